"""An applied model under FSDP2 and DDP: precision cannot damage positions, and the loss finds the head's weight gathered."""

import copy
from typing import Any

import eagle_kernels
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import Qwen2Config, Qwen2ForCausalLM


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def _sharded(mesh, dtype, order) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    model = Qwen2ForCausalLM(config).train()
    if order == "apply, then shard":
        eagle_kernels.apply(model, mlp_tile_tokens=4)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in (*model.model.layers, model.lm_head, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    if order == "shard, then apply":
        eagle_kernels.apply(model, mlp_tile_tokens=4)
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("order", ["apply, then shard", "shard, then apply"])
def test_loss_and_gradients_are_those_of_the_sharded_original(mesh, order, dtype, tolerance):
    ids = torch.arange(12).reshape(2, 6)
    positions = ids + 30001  # bfloat16 would round these to multiples of 128
    released, applied = _sharded(mesh, dtype, "never"), _sharded(mesh, dtype, order)
    assert {row.implementation for row in eagle_kernels.explain(applied)} == {"torch"}
    outputs = [model(ids, position_ids=positions, labels=ids) for model in (released, applied)]
    assert outputs[1].logits is None
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss, rtol=tolerance / 10, atol=0)
    for output in outputs:
        output.loss.backward()
    for one, other in zip(released.parameters(), applied.parameters(), strict=True):
        expected, got = one.grad.full_tensor(), other.grad.full_tensor()
        assert (got - expected).norm() <= tolerance * expected.norm() + 1e-7


def test_under_ddp_gradients_are_those_of_the_unmodified_model(mesh):
    config = Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    torch.manual_seed(0)
    released = Qwen2ForCausalLM(config).train()
    applied = eagle_kernels.apply(copy.deepcopy(released), mlp_tile_tokens=4)
    ids = torch.arange(12).reshape(2, 6)
    released(ids, labels=ids).loss.backward()
    torch.nn.parallel.DistributedDataParallel(applied)(ids, labels=ids).loss.backward()
    for (name, one), other in zip(released.named_parameters(), applied.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
