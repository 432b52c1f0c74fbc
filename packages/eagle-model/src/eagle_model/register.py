"""Make the Auto classes of transformers know Eagle 2.5.

After `import eagle_model`, a released or saved folder loads through AutoConfig, AutoModel,
AutoModelForImageTextToText, AutoImageProcessor and AutoProcessor without `trust_remote_code`. Repeating it is harmless.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

# In transformers 5.17 the name at the top level is a stand-in that refuses to work without torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from eagle_model.attention import register_attention
from eagle_model.configuration import Eagle2_5_VLConfig
from eagle_model.image_processing import Eagle2_5_VLImageProcessor
from eagle_model.modeling import Eagle2_5_VLForConditionalGeneration
from eagle_model.processing import Eagle2_5_VLProcessor


def register() -> None:
    """Register attention, config, model, image processor and processor with transformers."""
    register_attention()
    AutoConfig.register(Eagle2_5_VLConfig.model_type, Eagle2_5_VLConfig, exist_ok=True)
    AutoModel.register(Eagle2_5_VLConfig, Eagle2_5_VLForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(Eagle2_5_VLConfig, Eagle2_5_VLForConditionalGeneration, exist_ok=True)
    # One class for both names: it needs no torchvision, and a machine that has it must not get other pixels.
    backends: dict[str, type] = {"pil": Eagle2_5_VLImageProcessor, "torchvision": Eagle2_5_VLImageProcessor}
    AutoImageProcessor.register(Eagle2_5_VLConfig, image_processor_classes=backends, exist_ok=True)
    AutoProcessor.register(Eagle2_5_VLConfig, Eagle2_5_VLProcessor, exist_ok=True)
