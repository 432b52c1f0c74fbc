"""The configuration: released keys and defaults, aliases, and what a saved file holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from eagle_model import Eagle2_5_VLConfig
from transformers import LlamaConfig, Qwen2Config, Qwen3Config, SiglipVisionConfig

RELEASED_DEFAULTS = {
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "pad2square": False,
    "select_layer": -4,
    "force_image_size": None,
    "downsample_ratio": 0.5,
    "template": None,
    "dynamic_image_size": False,
    "use_thumbnail": False,
    "loss_version": "v1",
    "min_dynamic_tiles": 1,
    "max_dynamic_tiles": 6,
    "mlp_checkpoint": False,
    "image_token_index": 151667,
    "use_pixel_shuffle": True,
    "mlp_connector_layers": 2,
}


def vision(size: int, patch: int) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", "image_size": size, "patch_size": patch}


def test_defaults_are_the_released_ones():
    config = Eagle2_5_VLConfig()
    assert {key: getattr(config, key) for key in RELEASED_DEFAULTS} == RELEASED_DEFAULTS
    assert isinstance(config.text_config, Qwen2Config)
    assert config.text_config.architectures == ["Qwen2ForCausalLM"]
    assert isinstance(config.vision_config, SiglipVisionConfig)
    assert (config.model_type, config.is_composition) == ("eagle_2_5_vl", True)
    assert config.tie_word_embeddings == config.text_config.tie_word_embeddings


@pytest.mark.parametrize(
    ("size", "patch", "shuffle", "tokens"),
    [(448, 14, True, 256), (512, 16, True, 256), (448, 16, True, 196), (448, 14, False, 1024)],
)
def test_tokens_per_tile_follow_from_tile_patch_and_shuffle(size: int, patch: int, shuffle: bool, tokens: int):
    assert Eagle2_5_VLConfig(vision_config=vision(size, patch), use_pixel_shuffle=shuffle).num_image_token == tokens


def test_force_image_size_is_the_tile_size():
    config = Eagle2_5_VLConfig(vision_config=vision(448, 14), force_image_size=224)
    assert (config.tile_size, config.num_image_token) == (224, 64)


def test_llm_config_is_read_as_text_config_and_wins_over_it():
    config = Eagle2_5_VLConfig(
        text_config={"architectures": ["Qwen2ForCausalLM"]}, llm_config={"architectures": ["LlamaForCausalLM"], "hidden_size": 64}
    )
    assert isinstance(config.text_config, LlamaConfig)
    assert config.text_config.hidden_size == 64


def test_dynamic_patch_aliases_are_read_and_answer_as_attributes():
    config = Eagle2_5_VLConfig(min_dynamic_patch=2, max_dynamic_patch=12)
    assert (config.min_dynamic_tiles, config.max_dynamic_tiles) == (2, 12)
    assert config.max_dynamic_patch == 12
    assert Eagle2_5_VLConfig(max_dynamic_patch=12, max_dynamic_tiles=4).max_dynamic_tiles == 4


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, Qwen3Config),
        ({"model_type": "qwen3"}, Qwen3Config),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, LlamaConfig),
    ],
)
def test_text_config_is_found_by_architecture_or_model_type(fields: dict[str, Any], kind: type):
    assert type(Eagle2_5_VLConfig(text_config=fields).text_config) is kind


def test_tied_embeddings_are_copied_from_the_text_config():
    assert Eagle2_5_VLConfig(text_config={"model_type": "qwen2", "tie_word_embeddings": True}).tie_word_embeddings
    assert not Eagle2_5_VLConfig(text_config={"model_type": "qwen2"}, tie_word_embeddings=True).tie_word_embeddings


def test_a_saved_file_forces_no_attention_implementation():
    stored = {"_attn_implementation": "flash_attention_2", "_attn_implementation_autoset": True}
    config = Eagle2_5_VLConfig(
        vision_config={**vision(448, 14), **stored},
        text_config={"model_type": "qwen2", "attn_implementation": "flash_attention_2", **stored},
        **stored,
    )
    for part in (config, config.text_config, config.vision_config):
        assert part._attn_implementation is None


def test_round_trip_through_a_file_changes_nothing_and_keeps_unknown_keys(tmp_path: Any):
    config = Eagle2_5_VLConfig(
        vision_config=vision(448, 14),
        text_config={"model_type": "qwen2", "rope_theta": 1e6, "vocab_size": 152064},
        pre_feature_reduction=False,
        ps_version="v2",
        auto_map={"AutoConfig": "configuration_eagle2_5_vl.Eagle2_5_VLConfig"},
        torch_dtype="bfloat16",
    )
    config.save_pretrained(tmp_path)
    again = Eagle2_5_VLConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert (again.ps_version, again.pre_feature_reduction) == ("v2", False)
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((tmp_path / "again" / "config.json").read_text())


def released_like_file() -> dict[str, Any]:
    """A config.json as the release and its siblings write it: old keys, private attributes, keys nobody here knows."""
    return {
        "_attn_implementation": "flash_attention_2",
        "_attn_implementation_autoset": True,
        "architectures": ["Eagle2_5_VLForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_eagle2_5_vl.Eagle2_5_VLConfig",
            "AutoModel": "modeling_eagle2_5_vl.Eagle2_5_VLForConditionalGeneration",
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "image_token_index": 151667,
        "keep_aspect_ratio": False,
        "loss_version": "efficient_v2_cp_head",
        "max_dynamic_tiles": 12,
        "min_dynamic_tiles": 1,
        "mlp_checkpoint": False,
        "mlp_connector_layers": 2,
        "model_type": "eagle_2_5_vl",
        "pad2square": False,
        "pre_feature_reduction": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "qwen2-chat",
        "text_config": {
            "_attn_implementation_autoset": True,
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_window_layers": 70,
            "model_type": "qwen2",
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "something_of_the_text": [1, 2],
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "vocab_size": 152064,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": None,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_pixel_shuffle": True,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["SiglipVisionModel"],
            "hidden_size": 1152,
            "image_size": 448,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "something_of_the_tower": {"a": 1},
            "torch_dtype": "bfloat16",
        },
    }


def test_a_released_file_keeps_every_key_and_value_when_saved_again(tmp_path: Any):
    """Except the private attributes that force one attention, and what transformers itself stamps."""
    file = released_like_file()
    (tmp_path / "config.json").write_text(json.dumps(file))
    Eagle2_5_VLConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())

    def kept(fields: dict[str, Any]) -> dict[str, Any]:
        dropped = ("transformers_version", "rope_scaling", "torch_dtype")
        return {key: value for key, value in fields.items() if not key.startswith("_attn") and key not in dropped}

    for part in ("text_config", "vision_config"):
        lost = {key: value for key, value in kept(file[part]).items() if saved[part].get(key, "absent") != value}
        assert lost == {}
    top = {key: value for key, value in kept(file).items() if key not in ("text_config", "vision_config")}
    assert {key: saved.get(key, "absent") for key in top} == top
    assert saved["torch_dtype"] == "bfloat16"
    assert (tmp_path / "again" / "config.json").read_text().count("flash_attention_2") == 0


def test_the_legacy_file_with_llm_config_means_the_same_model(tmp_path: Any):
    file = released_like_file()
    legacy = {**file, "llm_config": file["text_config"], "max_dynamic_patch": 12, "min_dynamic_patch": 1}
    for key in ("text_config", "max_dynamic_tiles", "min_dynamic_tiles"):
        del legacy[key]
    configs = []
    for number, content in enumerate((file, legacy)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "config.json").write_text(json.dumps(content))
        configs.append(Eagle2_5_VLConfig.from_pretrained(tmp_path / str(number)).to_diff_dict())
    assert configs[0] == configs[1]


def test_the_saved_file_has_every_key_that_the_released_code_reads(tmp_path: Any):
    Eagle2_5_VLConfig(text_config={"model_type": "qwen3", "rope_theta": 5e5}, torch_dtype="bfloat16").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert RELEASED_DEFAULTS.keys() <= saved.keys()
    assert saved["model_type"] == "eagle_2_5_vl"
    assert saved["torch_dtype"] == "bfloat16"
    assert saved["vision_config"]["model_type"] == "siglip_vision_model"
    assert {"image_size", "patch_size", "num_hidden_layers"} <= saved["vision_config"].keys()
    assert saved["text_config"]["architectures"] == ["Qwen3ForCausalLM"]
    assert saved["text_config"]["rope_theta"] == 5e5
    assert "auto_map" not in saved


def test_long_context_rope_scaling_survives_the_round_trip(tmp_path: Any):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = Eagle2_5_VLConfig(text_config={"model_type": "qwen2", "rope_theta": 1e6, "rope_scaling": dict(scaling)})
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert saved["rope_scaling"] == scaling
    again: Any = Eagle2_5_VLConfig.from_pretrained(tmp_path).text_config
    assert again.rope_parameters == {**scaling, "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text_config": {"model_type": "gpt2"}}, "text_config is of kind 'gpt2'"),
        ({"text_config": {"architectures": ["Phi3ForCausalLM"]}}, "Phi3ForCausalLM"),
        ({"vision_config": {"model_type": "radio"}}, "vision_config is of kind 'radio'"),
        ({"mlp_connector_layers": 3}, "mlp_connector_layers is 3"),
        ({"downsample_ratio": 0.3}, "downsample_ratio 0.3"),
        ({"ps_version": "v1"}, "ps_version"),
        ({"vision_config": vision(42, 14)}, "3 x 3 patches"),
    ],
)
def test_configs_that_cannot_be_built_are_errors_that_name_the_key(options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        Eagle2_5_VLConfig(**options)
