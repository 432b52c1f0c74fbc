"""One rank of a DeepSpeed ZeRO-3 training of an applied toy model, compared with the unmodified model trained alone.

A program, started once per rank with RANK and its likes in the environment: python train_rank.py CASE.
"""

from __future__ import annotations

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
import transformers
from eagle_kernels import apply
from eagle_kernels.checkpointing import CheckpointPolicy, checkpoint_layers

STEPS = 2
RANKS = int(os.environ["WORLD_SIZE"])
CASES = {
    "applied": ({}, None, False),
    "everything": ({"mlp_tile_tokens": 4}, CheckpointPolicy(offload_inputs=True, keep_attention=True, smallest=0), True),
}
CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_clipping": 0.0,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    # 0: even the smallest weights are partitioned, so one that is read without being gathered is empty.
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


def toy_model(tied: bool) -> transformers.Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=tied,
    )
    return transformers.Qwen2ForCausalLM(config).train()


def batches() -> torch.Tensor:
    return torch.randint(64, (STEPS, RANKS, 1, 11), generator=torch.Generator().manual_seed(1))


def trained_alone(model: transformers.Qwen2ForCausalLM) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in batches():
        optimizer.zero_grad()
        for ids in step:
            (model(input_ids=ids, labels=ids).loss / RANKS).backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def main(case: str) -> None:
    options, policy, tied = CASES[case]
    # A C++ extension for the ranks of one machine, which would be compiled on first use; gloo does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    model = apply(toy_model(tied), **options)
    if policy is not None:
        checkpoint_layers(model, policy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    for step in batches():
        ids = step[int(os.environ["RANK"])]
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
    expected = trained_alone(toy_model(tied))
    start = dict(toy_model(tied).named_parameters())
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters(parameter):
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-4, atol=1e-5)
        assert not torch.equal(expected[name], start[name]), f"{name} was not trained"
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
    # Everything was compared. DeepSpeed still holds gloo's groups, whose threads can abort the interpreter's end (torch 2.13).
    sys.stdout.flush()
    os._exit(0)
