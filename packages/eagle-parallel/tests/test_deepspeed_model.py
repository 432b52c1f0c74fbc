"""A DeepSpeed engine around a transformers model whose attention is spread over ranks trains as one process does.

Everything that a real run joins: packs, a plan, `apply`, ZeRO-2 with the mesh as its mpu, gradient accumulation, checkpointing.
float32, which DeepSpeed keeps; SGD, because Adam turns rounding of a gradient that is really zero into a whole step.
"""

import os
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from eagle_parallel import DeepSpeedMesh, apply, global_normaliser, init_mesh, make_plan, normalise_loss, shard_batch
from eagle_parallel.testing import run_ranks

if find_spec("deepspeed") is None or find_spec("transformers") is None:
    pytest.skip("DeepSpeed or transformers is not installed", allow_module_level=True)

PACKS = ((0, 7, 8, 20), (0, 11, 13), (0, 1, 16), (0, 19))
STEPS, ACCUMULATED, RATE, VOCABULARY = 2, 2, 0.2, 31


def build():
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64}
    special: dict[str, Any] = {f"{token}_token_id": None for token in ("pad", "bos", "eos")}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, **heads, **special))


def pack(number):
    borders = PACKS[number]
    generator = torch.Generator().manual_seed(number)
    ids, labels = torch.randint(VOCABULARY, (2, 1, borders[-1]), generator=generator)
    positions = torch.cat([torch.arange(end - start) for start, end in pairwise(borders)])[None]
    weight = (torch.rand(1, borders[-1], generator=generator) < 0.8).float()
    return borders, {"input_ids": ids, "position_ids": positions, "shift_labels": labels, "loss_weight": weight}


def loss_sum(logits, batch):
    losses = torch.nn.functional.cross_entropy(logits[0].float(), batch["shift_labels"][0], reduction="none")
    return (losses * batch["loss_weight"][0]).sum()


def one_process():
    """transformers' own attention, each document in a call of its own."""
    model = build()
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for step in range(STEPS):
        packs = [pack(step * ACCUMULATED + turn) for turn in range(ACCUMULATED)]
        total = sum(float(batch["loss_weight"].sum()) for _, batch in packs)
        for borders, batch in packs:
            logits = [model(batch["input_ids"][:, start:end]).logits for start, end in pairwise(borders)]
            (loss_sum(torch.cat(logits, dim=1), batch) / total).backward()
        optimiser.step()
        optimiser.zero_grad()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def train(ulysses):
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(dist.get_rank())}
    import deepspeed

    # Its shared-memory operator would be compiled at the first use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    mesh = init_mesh(cp=2, ulysses=ulysses)
    model = apply(build().train(), mesh)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": ACCUMULATED,
        "gradient_clipping": 0.0,  # left out, it clips at 1
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 2},
    }
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    engine: Any = deepspeed.initialize(model=model, optimizer=optimiser, config=config, mpu=DeepSpeedMesh(mesh))[0]
    for step in range(STEPS):
        shares = []
        for turn in range(ACCUMULATED):
            borders, batch = pack(step * ACCUMULATED + turn)
            plan = make_plan(borders, mesh, layout="auto")
            shares.append((plan, shard_batch(batch, plan, mesh.cp_rank)))
        normaliser = global_normaliser([float(local["loss_weight"].sum()) for _, local in shares], mesh)
        for plan, local in shares:
            logits = engine(input_ids=local["input_ids"], position_ids=local["position_ids"], cp_plan=plan).logits
            loss = normalise_loss(
                loss_sum(logits, local), normaliser, averaged_over=mesh.world, accumulation_divided_by=ACCUMULATED
            )
            engine.backward(loss)
            engine.step()
    weights = {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}
    engine.destroy()
    return weights


@pytest.mark.parametrize("ulysses", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_zero_2_around_an_applied_model_takes_the_steps_of_one_process(ulysses):
    truth = one_process()
    start = {name: parameter.detach() for name, parameter in build().named_parameters()}
    for weights in run_ranks(__file__, "train", (2,), arguments=(ulysses,), fresh=True)[2]:
        assert weights.keys() == truth.keys()
        for name, expected in truth.items():
            # Two units in the last place of the weight, and rounding of the gradients that moved it.
            bound = 2**-22 * float(expected.abs().max()) + 2e-6 * float((expected - start[name]).abs().max())
            difference = float((weights[name] - expected).abs().max())
            assert difference <= bound, f"{name} differs by {difference:.1e}, allowed are {bound:.1e}"
