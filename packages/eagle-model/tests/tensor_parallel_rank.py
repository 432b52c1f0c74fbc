"""One of two ranks that load a folder with tensor parallelism; prints what it found. Run by `test_many_devices.py`."""

import json
import sys
from typing import Any

import eagle_model  # noqa: F401
import torch
import torch.distributed as dist
import transformers
from transformers import AutoModelForImageTextToText

folder = sys.argv[1]
torch.set_num_threads(1)
inputs = torch.load(f"{folder}/inputs.pt")
with torch.no_grad():
    expected = AutoModelForImageTextToText.from_pretrained(folder)(**inputs).logits
    if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 20):
        how = {"distributed_config": transformers.DistributedConfig(tp_plan="auto")}
    else:
        how = {"tp_plan": "auto"}
    sharded = AutoModelForImageTextToText.from_pretrained(folder, **how)
    found = sharded(**inputs).logits
local = {}
for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
    weight: Any = sharded.get_parameter(f"language_model.model.layers.0.{name}.weight")
    local[name] = list(weight.to_local().shape if hasattr(weight, "to_local") else weight.shape)
if dist.get_rank() == 0:
    print(json.dumps({"difference": float((found - expected).abs().max()), "scale": float(expected.abs().max()), "local": local}))
dist.destroy_process_group()
