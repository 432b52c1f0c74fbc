"""Eagle 2.5 for transformers: config, model, image processor and processor.

Importing it registers them with the Auto classes, so that a released or saved checkpoint folder loads without
`trust_remote_code`. Video decoders, LMDB and Arrow are not imported until a call needs them.
"""

from eagle_model.attention import PACKED_SDPA
from eagle_model.configuration import Eagle2_5_VLConfig
from eagle_model.documents import document_pages
from eagle_model.freeze import freeze, train_only
from eagle_model.image_processing import Eagle2_5_VLImageProcessor, Eagle2_5_VLImageProcessorFast
from eagle_model.modeling import Eagle2_5_VLForConditionalGeneration, Eagle2_5_VLOutput
from eagle_model.processing import Eagle2_5_VLProcessor
from eagle_model.register import register
from eagle_model.tokens import add_special_tokens, token_id

__all__ = [
    "PACKED_SDPA",
    "Eagle2_5_VLConfig",
    "Eagle2_5_VLForConditionalGeneration",
    "Eagle2_5_VLImageProcessor",
    "Eagle2_5_VLImageProcessorFast",
    "Eagle2_5_VLOutput",
    "Eagle2_5_VLProcessor",
    "add_special_tokens",
    "document_pages",
    "freeze",
    "register",
    "token_id",
    "train_only",
]
__version__ = "0.1.0"

register()
