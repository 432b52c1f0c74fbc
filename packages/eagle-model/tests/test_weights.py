"""State-dict keys of the released checkpoint, and saving and loading."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from eagle_model import Eagle2_5_VLConfig, Eagle2_5_VLForConditionalGeneration
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen3Config, SiglipVisionConfig

Loader: Any = Eagle2_5_VLForConditionalGeneration


def released_keys(*, layers: int = 28, tower_layers: int = 27, head: bool = True) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the 8B checkpoint as upstream section 1.3 lists them."""
    hidden, mlp, text, text_mlp, kv, vocabulary = 1152, 4304, 3584, 18944, 512, 152064
    keys: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, inside: int, bias: bool = True) -> None:
        keys[f"{name}.weight"] = (out, inside)
        if bias:
            keys[f"{name}.bias"] = (out,)

    def norm(name: str, size: int) -> None:
        keys[f"{name}.weight"], keys[f"{name}.bias"] = (size,), (size,)

    tower = "vision_model.vision_model."
    keys[f"{tower}embeddings.patch_embedding.weight"] = (hidden, 3, 14, 14)
    keys[f"{tower}embeddings.patch_embedding.bias"] = (hidden,)
    keys[f"{tower}embeddings.position_embedding.weight"] = (1024, hidden)
    for i in range(tower_layers):
        layer = f"{tower}encoder.layers.{i}."
        norm(f"{layer}layer_norm1", hidden)
        norm(f"{layer}layer_norm2", hidden)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}self_attn.{part}", hidden, hidden)
        linear(f"{layer}mlp.fc1", mlp, hidden)
        linear(f"{layer}mlp.fc2", hidden, mlp)
    norm(f"{tower}post_layernorm", hidden)
    if head:
        keys[f"{tower}head.probe"] = (1, 1, hidden)
        keys[f"{tower}head.attention.in_proj_weight"] = (3 * hidden, hidden)
        keys[f"{tower}head.attention.in_proj_bias"] = (3 * hidden,)
        linear(f"{tower}head.attention.out_proj", hidden, hidden)
        norm(f"{tower}head.layernorm", hidden)
        linear(f"{tower}head.mlp.fc1", mlp, hidden)
        linear(f"{tower}head.mlp.fc2", hidden, mlp)
    norm("mlp1.0", 4 * hidden)
    linear("mlp1.1", text, 4 * hidden)
    linear("mlp1.3", text, text)
    keys["language_model.model.embed_tokens.weight"] = (vocabulary, text)
    for i in range(layers):
        layer = f"language_model.model.layers.{i}."
        keys[f"{layer}input_layernorm.weight"] = keys[f"{layer}post_attention_layernorm.weight"] = (text,)
        linear(f"{layer}self_attn.q_proj", text, text)
        linear(f"{layer}self_attn.k_proj", kv, text)
        linear(f"{layer}self_attn.v_proj", kv, text)
        linear(f"{layer}self_attn.o_proj", text, text, bias=False)
        linear(f"{layer}mlp.gate_proj", text_mlp, text, bias=False)
        linear(f"{layer}mlp.up_proj", text_mlp, text, bias=False)
        linear(f"{layer}mlp.down_proj", text, text_mlp, bias=False)
    keys["language_model.model.norm.weight"] = (text,)
    keys["language_model.lm_head.weight"] = (vocabulary, text)
    return keys


def toy_keys(head: bool) -> set[str]:
    """The released names for the toy's numbers of layers."""
    return set(released_keys(layers=2, tower_layers=3, head=head))


def released_config(head: bool) -> Eagle2_5_VLConfig:
    vision = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=448, patch_size=14
    )
    vision.vision_use_head = head
    text = Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    )
    return Eagle2_5_VLConfig(vision_config=vision, text_config=text, select_layer=-1)


@pytest.mark.parametrize("head", [True, False])
def test_the_8b_model_has_exactly_the_released_keys_and_shapes(head: bool):
    with torch.device("meta"):
        model = Eagle2_5_VLForConditionalGeneration(released_config(head))
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == released_keys(head=head)
    assert model.config.num_image_token == 256


def test_the_8b_model_on_qwen3_has_the_names_of_the_training_scripts():
    """Upstream section 1.2: Qwen3-8B has norms on queries and keys and no bias; tiles of 512 with patches of 16."""
    vision = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=512, patch_size=16
    )
    text = Qwen3Config(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
    )
    with torch.device("meta"):
        model = Eagle2_5_VLForConditionalGeneration(Eagle2_5_VLConfig(vision_config=vision, text_config=text, select_layer=-1))
    names = set(released_keys(layers=36))
    for i in range(36):
        attention = f"language_model.model.layers.{i}.self_attn."
        names -= {f"{attention}{part}_proj.bias" for part in "qkv"}
        names |= {f"{attention}{part}_norm.weight" for part in "qk"}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert set(shapes) == names
    assert shapes["vision_model.vision_model.embeddings.patch_embedding.weight"] == (1152, 3, 16, 16)
    assert shapes["vision_model.vision_model.embeddings.position_embedding.weight"] == (1024, 1152)
    assert shapes["mlp1.1.weight"] == (4096, 4608)
    assert shapes["language_model.model.layers.0.self_attn.k_norm.weight"] == (128,)


@pytest.mark.parametrize("head", [True, False])
def test_a_released_state_dict_loads_into_the_8b_model_with_nothing_missing_or_unexpected(head: bool):
    with torch.device("meta"):
        model = Eagle2_5_VLForConditionalGeneration(released_config(head))
        released = {name: torch.empty(shape) for name, shape in released_keys(head=head).items()}
    result = model.load_state_dict(released, strict=False, assign=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])


def test_saved_files_hold_the_in_memory_keys_and_load_back_bit_for_bit(make_model: Any, tmp_path: Any):
    model = make_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    again, info = Loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_sharded_checkpoints_load_back(make_model: Any, tmp_path: Any):
    model = make_model(dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = Loader.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("head", [True, False])
def test_shards_written_under_the_released_names_load_with_nothing_missing(
    make_model: Any, make_config: Any, tmp_path: Any, head: bool
):
    """As the release lies on disk: an index, shards, names of upstream section 1.3; written here without save_pretrained."""
    model = make_model(make_config(vision={"vision_use_head": head}), dtype=torch.float32)
    names = sorted(toy_keys(head))
    assert set(names) == set(model.state_dict())
    files = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        shard = {name: model.state_dict()[name].contiguous() for name in names if files[name] == file}
        save_file(shard, tmp_path / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model.config.save_pretrained(tmp_path)
    again, info = Loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(again.state_dict()[name], model.state_dict()[name]) for name in names)


@pytest.mark.parametrize(("stored", "wanted"), [(True, False), (False, True)])
def test_checkpoints_with_and_without_the_pooling_head_load_into_either_model(
    make_model: Any, make_config: Any, tmp_path: Any, stored: bool, wanted: bool
):
    def build(head: bool) -> Eagle2_5_VLConfig:
        return make_config(vision={"vision_use_head": head})

    model = make_model(build(stored), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    again, info = Loader.from_pretrained(tmp_path, config=build(wanted), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again.get_image_features(pixels), model.get_image_features(pixels))


def test_tied_embeddings_share_one_tensor_and_are_saved_once(make_model: Any, make_config: Any, tmp_path: Any):
    model = make_model(make_config(text_options={"tie_word_embeddings": True}), dtype=torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "language_model.lm_head.weight" not in file.keys()  # noqa: SIM118
    again = Loader.from_pretrained(tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_resizing_the_vocabulary_keeps_old_rows_and_updates_both_configs(make_model: Any):
    model = make_model(dtype=torch.float32)
    old = model.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(len(old) + 7)
    assert model.config.text_config.vocab_size == model.language_model.config.vocab_size == len(old) + 7
    assert torch.equal(model.get_input_embeddings().weight[: len(old)], old)
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape[-1] == len(old) + 7


def test_a_tile_size_the_tower_has_no_positions_for_is_an_error(make_config: Any):
    with pytest.raises(ValueError, match="force_image_size is 64"):
        Eagle2_5_VLForConditionalGeneration(make_config(force_image_size=64))
