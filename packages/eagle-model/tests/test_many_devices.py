"""One model over several devices: the tensor-parallel plan, and device maps of accelerate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText


@pytest.fixture
def folder(make_model: Any, make_config: Any, tmp_path: Any) -> Any:
    model = make_model(
        make_config(text_options={"vocab_size": 512}), dtype=torch.float32
    )  # older plans divide the rows of the head
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[1, *[model.config.image_token_index] * 4, 2, 3]])
    torch.save({"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32)}, tmp_path / "inputs.pt")
    return tmp_path


def test_the_plan_covers_every_large_matrix_of_the_language_model(make_model: Any):
    model = make_model()
    planned = {name.removeprefix("language_model.model.layers.*.") for name in model.tp_plan if ".layers.*." in name}
    matrices = {name.split(".layers.0.")[1] for name, _ in model.named_modules() if "language_model.model.layers.0." in name}
    assert planned == {name for name in matrices if name.endswith("_proj")}
    assert "language_model.lm_head" in model.tp_plan
    assert not any(name.startswith(("vision_model", "mlp1")) for name in model.tp_plan)


def test_two_ranks_with_the_plan_answer_like_one(folder: Any):
    pytest.importorskip("accelerate", reason="transformers loads onto several ranks with accelerate only")
    script = Path(__file__).parent / "tensor_parallel_rank.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(folder)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    assert found["difference"] < 1e-5 * found["scale"]
    assert found["local"] == {"self_attn.q_proj": [16, 32], "self_attn.o_proj": [32, 16], "mlp.down_proj": [32, 32]}


def test_a_device_map_with_a_tower_on_disk_answers_the_same(folder: Any, tmp_path: Any):
    pytest.importorskip("accelerate", reason="device maps are accelerate's")
    inputs = torch.load(folder / "inputs.pt")
    where = {"vision_model": "disk", "mlp1": "cpu", "language_model": "cpu"}
    split = AutoModelForImageTextToText.from_pretrained(folder, device_map=where, offload_folder=tmp_path / "offload")
    assert split.hf_device_map == where
    with torch.no_grad():
        torch.testing.assert_close(split(**inputs).logits, AutoModelForImageTextToText.from_pretrained(folder)(**inputs).logits)


def test_no_layer_is_split_over_devices(make_model: Any):
    accelerate = pytest.importorskip("accelerate", reason="device maps are accelerate's")
    for text in ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM"):
        model = make_model(text=text, dtype=torch.float32)
        sizes = {"cpu": 150_000, "disk": 10**9}
        split = accelerate.infer_auto_device_map(model, max_memory=sizes, no_split_module_classes=model._no_split_modules)
        assert len(set(split.values())) == 2
        assert not any("layers." in name and name.split("layers.")[1].count(".") for name in split)
