"""Loading through the Auto classes of transformers, and what importing costs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from typing import Any

import eagle_model
import pytest
import torch
from eagle_model import (
    PACKED_SDPA,
    Eagle2_5_VLConfig,
    Eagle2_5_VLForConditionalGeneration,
    Eagle2_5_VLImageProcessor,
    Eagle2_5_VLProcessor,
    add_special_tokens,
    register,
)
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor


@pytest.fixture
def folder(make_model: Any, processor: Any, tmp_path: Any) -> Any:
    make_model(dtype=torch.float32).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText])
def test_a_saved_folder_loads_without_remote_code(folder: Any, auto: Any):
    model = auto.from_pretrained(folder)
    assert type(model) is Eagle2_5_VLForConditionalGeneration
    assert type(AutoConfig.from_pretrained(folder)) is Eagle2_5_VLConfig
    assert type(AutoProcessor.from_pretrained(folder)) is Eagle2_5_VLProcessor
    assert type(AutoImageProcessor.from_pretrained(folder)) is Eagle2_5_VLImageProcessor


def test_the_tokenizer_of_a_saved_folder_gives_the_same_ids(folder: Any, tokenizer: Any):
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img>Read 12 digits.<|im_end|>\n"
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert AutoProcessor.from_pretrained(folder).tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_folder_that_names_remote_code_still_loads_this_code(folder: Any):
    """The released folder carries auto_map entries; they must neither run nor be asked about."""
    remote = {
        "config.json": {
            "AutoConfig": "configuration_eagle2_5_vl.Eagle2_5_VLConfig",
            "AutoModel": "modeling_eagle2_5_vl.Eagle2_5_VLForConditionalGeneration",
        },
        "processor_config.json": {"AutoProcessor": "processing_eagle2_5_vl.Eagle2_5_VLProcessor"},
        "preprocessor_config.json": {"AutoImageProcessor": "image_processing_eagle2_5_vl_fast.Eagle2_5_VLImageProcessorFast"},
    }
    for name, auto_map in remote.items():
        content = json.loads((folder / name).read_text())
        content["auto_map"] = auto_map
        if name == "preprocessor_config.json":
            content["image_processor_type"] = "Eagle2_5_VLImageProcessorFast"
        (folder / name).write_text(json.dumps(content))
    model = AutoModel.from_pretrained(folder)
    assert type(model) is Eagle2_5_VLForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(folder)) is Eagle2_5_VLProcessor
    model.save_pretrained(folder / "again")
    assert json.loads((folder / "again" / "config.json").read_text())["auto_map"] == remote["config.json"]


@pytest.mark.parametrize("attention", ["eager", "sdpa", PACKED_SDPA])
def test_the_attention_asked_for_reaches_tower_and_language_model(folder: Any, attention: str):
    model = AutoModel.from_pretrained(folder, attn_implementation=attention)
    assert model.language_model.config._attn_implementation == attention
    assert model.vision_model.vision_model.config._attn_implementation == attention


def test_dtype_is_honoured_for_every_parameter(folder: Any):
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_loaded_folder_answers_like_the_model_it_was_saved_from(folder: Any, make_model: Any, processor: Any):
    from PIL import Image

    messages = [
        {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (40, 30))}, {"type": "text", "text": "?"}]}
    ]
    loaded = AutoProcessor.from_pretrained(folder)
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
    answers = [
        model.generate(**made.apply_chat_template(messages, **options), max_new_tokens=5, do_sample=False, pad_token_id=0)
        for model, made in ((make_model(dtype=torch.float32), processor), (AutoModel.from_pretrained(folder), loaded))
    ]
    assert torch.equal(*answers)


def test_config_and_model_survive_pickling(make_model: Any):
    model = make_model()
    again = pickle.loads(pickle.dumps(model))
    assert again.config.to_dict() == model.config.to_dict()
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_adding_special_tokens_twice_adds_nothing_and_registering_twice_is_harmless(tokenizer: Any):
    before = len(tokenizer)
    assert add_special_tokens(tokenizer) == 0
    assert len(tokenizer) == before
    register()


def test_importing_works_where_decoder_database_and_arrow_are_missing():
    absent = ("av", "lmdb", "pyarrow", "decord", "torchvision", "flash_attn")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import eagle_model; print(eagle_model.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == eagle_model.__version__
