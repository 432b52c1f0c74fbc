"""Building an Eagle from a SigLIP checkpoint and a language model's."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from eagle_data.special_tokens import SPECIAL_TOKENS
from eagle_model import Eagle2_5_VLForConditionalGeneration
from eagle_model.cli import main
from eagle_model.convert import EagleOptions, assemble, convert, load_tower
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

# Typed loosely: transformers' own annotations know neither the parts of a model nor its generate.
Eagle: Any = AutoModelForImageTextToText
Text: Any = AutoModelForCausalLM
Siglip: Any = SiglipModel

PADDING = 24
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
TOWER: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 3, **SMALL}
TEXT_TOWER: dict[str, Any] = {"vocab_size": 20, "num_hidden_layers": 1, **SMALL}


@pytest.fixture
def siglip(tmp_path: Any) -> Any:
    """A whole SigLIP checkpoint as on the hub: both towers in one file."""
    torch.manual_seed(1)
    config = SiglipConfig(vision_config=dict(TOWER), text_config=dict(TEXT_TOWER))
    SiglipModel(config).save_pretrained(tmp_path / "siglip")
    return tmp_path / "siglip"


@pytest.fixture
def make_text(tmp_path: Any, bare_tokenizer: Any, make_config: Any) -> Any:
    """A language model's folder; `rows` more than the tokenizer has, as Qwen pads its vocabulary."""

    def make(architecture: str = "Qwen2ForCausalLM", rows: int = PADDING, **options: Any) -> Any:
        torch.manual_seed(2)
        options = {"vocab_size": len(bare_tokenizer) + rows, **options}
        config = make_config(text=architecture, text_options=options).text_config
        Text.from_config(config).save_pretrained(tmp_path / "text")
        copy.deepcopy(bare_tokenizer).save_pretrained(tmp_path / "text")
        return tmp_path / "text"

    return make


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"])
def test_the_parts_are_kept_bit_for_bit_and_nothing_is_missing(siglip: Any, make_text: Any, tmp_path: Any, architecture: str):
    text = make_text(architecture)
    done = convert(siglip, text, tmp_path / "eagle", dtype=torch.float32)
    assert (done.tile_size, done.tokens_per_tile) == ((32, 32), 4)
    loader: Any = Eagle2_5_VLForConditionalGeneration
    eagle, info = loader.from_pretrained(tmp_path / "eagle", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    state = eagle.state_dict()
    for name, value in Siglip.from_pretrained(siglip).vision_model.state_dict().items():
        assert torch.equal(state[f"vision_model.vision_model.{name}"], value), name
    for name, value in Text.from_pretrained(text).state_dict().items():
        kept = slice(None) if value.shape[0] != done.vocabulary_rows[0] else slice(0, value.shape[0] - PADDING)
        assert torch.equal(state[f"language_model.{name}"][kept], value[kept]), name


def test_a_padded_vocabulary_keeps_its_rows_and_only_new_tokens_get_other_ones(
    siglip: Any, make_text: Any, tmp_path: Any, bare_tokenizer: Any
):
    text = make_text()
    old = Text.from_pretrained(text)
    done = convert(siglip, text, tmp_path / "eagle", dtype=torch.float32)
    named = len(bare_tokenizer)
    assert done.vocabulary_rows == (named + PADDING, named + PADDING)
    assert done.new_tokens == SPECIAL_TOKENS
    eagle = Eagle.from_pretrained(tmp_path / "eagle")
    new = list(range(named, named + len(SPECIAL_TOKENS)))
    for ours, theirs in (
        (eagle.get_input_embeddings(), old.get_input_embeddings()),
        (eagle.get_output_embeddings(), old.get_output_embeddings()),
    ):
        changed = (ours.weight != theirs.weight).any(1).nonzero().squeeze(1).tolist()
        assert changed == new
        torch.testing.assert_close(ours.weight[new], theirs.weight[:named].mean(0).expand(len(new), -1))
    processor = AutoProcessor.from_pretrained(tmp_path / "eagle")
    assert eagle.config.image_token_index == done.image_token_index == processor.tokenizer.get_vocab()["<IMG_CONTEXT>"]


def test_a_vocabulary_that_is_too_small_grows_to_a_whole_multiple(
    siglip: Any, make_text: Any, tmp_path: Any, bare_tokenizer: Any
):
    done = convert(siglip, make_text(rows=0), tmp_path / "eagle", dtype=torch.float32)
    before, after = done.vocabulary_rows
    assert before == len(bare_tokenizer)
    assert after % 64 == 0
    assert after >= before + len(SPECIAL_TOKENS)
    eagle = Eagle.from_pretrained(tmp_path / "eagle")
    assert eagle.config.text_config.vocab_size == after == eagle.get_output_embeddings().weight.shape[0]


def test_tokens_that_are_there_already_keep_their_ids_and_rows(siglip: Any, make_text: Any, tmp_path: Any, tokenizer: Any):
    """A language model prepared by the training code, which adds `<IMG_CONTEXT>` first."""
    text = make_text()
    prepared = copy.deepcopy(tokenizer)
    prepared.save_pretrained(text)
    old = Text.from_pretrained(text).get_input_embeddings().weight.clone()
    done = convert(siglip, text, tmp_path / "eagle", dtype=torch.float32)
    assert done.new_tokens == ()
    assert done.image_token_index == tokenizer.get_vocab()["<IMG_CONTEXT>"]
    eagle = Eagle.from_pretrained(tmp_path / "eagle")
    assert torch.equal(eagle.get_input_embeddings().weight, old)


def test_tied_embeddings_stay_tied(siglip: Any, make_text: Any, tmp_path: Any):
    convert(siglip, make_text(tie_word_embeddings=True), tmp_path / "eagle", dtype=torch.float32)
    eagle = Eagle.from_pretrained(tmp_path / "eagle")
    assert eagle.config.tie_word_embeddings
    assert eagle.get_output_embeddings().weight is eagle.get_input_embeddings().weight


def test_another_tile_size_resamples_positions_and_the_result_answers(siglip: Any, make_text: Any, tmp_path: Any):
    done = convert(siglip, make_text(), tmp_path / "eagle", EagleOptions(tile_size=64), dtype=torch.float32)
    assert (done.tile_size, done.tokens_per_tile) == ((32, 64), 16)
    model = Eagle.from_pretrained(tmp_path / "eagle")
    processor = AutoProcessor.from_pretrained(tmp_path / "eagle")
    assert model.vision_model.vision_model.embeddings.position_embedding.weight.shape == (64, 32)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "?"}]}
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (1, 2)


def test_a_tower_alone_and_one_without_a_head_convert(make_text: Any, tmp_path: Any, bare_tokenizer: Any):
    torch.manual_seed(3)
    config = SiglipVisionConfig(**TOWER)
    config.vision_use_head = False
    SiglipVisionModel(config).save_pretrained(tmp_path / "tower")
    assert not any("head" in name for name in load_tower(tmp_path / "tower", dtype=torch.float32).state_dict())
    stated = json.loads((tmp_path / "tower" / "config.json").read_text())
    del stated["vision_use_head"]  # a file that does not say so: the head would be random
    (tmp_path / "tower" / "config.json").write_text(json.dumps(stated))
    assert not any("head" in name for name in load_tower(tmp_path / "tower", dtype=torch.float32).state_dict())
    convert(tmp_path / "tower", make_text(), tmp_path / "eagle", dtype=torch.float32)
    assert Eagle.from_pretrained(tmp_path / "eagle").config.vision_config.vision_use_head is False


def test_the_connector_is_drawn_from_the_seed(siglip: Any, make_text: Any, bare_tokenizer: Any):
    text = make_text()

    def connector(seed: int) -> torch.Tensor:
        parts = load_tower(siglip, dtype=torch.float32), Text.from_pretrained(text), copy.deepcopy(bare_tokenizer)
        model = assemble(*parts, EagleOptions(seed=seed))[0]
        assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
        return model.get_parameter("mlp1.1.weight")

    assert torch.equal(connector(1), connector(1))
    assert not torch.equal(connector(1), connector(2))


def test_the_command_reports_what_it_did_and_refuses_what_cannot_be(siglip: Any, make_text: Any, tmp_path: Any, capsys: Any):
    text, out = make_text(), tmp_path / "eagle"
    arguments = ["convert", "--vision", str(siglip), "--text", str(text), "--out", str(out), "--dtype", "float32"]
    assert main([*arguments, "--connector-layers", "1", "--max-tiles", "6"]) == 0
    assert "tiles of 32 pixels" in capsys.readouterr().out
    saved = json.loads((out / "config.json").read_text())
    assert (saved["mlp_connector_layers"], saved["max_dynamic_tiles"], saved["force_image_size"]) == (1, 6, 32)
    assert "auto_map" not in saved
    assert main(arguments) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert main([*arguments[:6], str(tmp_path / "other"), "--tile-size", "60"]) == 2
    assert "tile of 60 pixels" in capsys.readouterr().err
    assert main(["convert", "--vision", str(text), "--text", str(text), "--out", str(tmp_path / "other")]) == 2
    assert "SigLIP of fixed resolution" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
