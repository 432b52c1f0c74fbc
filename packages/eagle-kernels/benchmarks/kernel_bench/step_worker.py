"""Forward + backward of a 7.62 B Qwen2.5-7B-shaped language model in a process of its own, which `step.py` starts.

A process a job: peak memory, allocator and the classes that a peer patches are then nobody else's. Random weights from one
seed, bfloat16, batch 1, every decoder layer checkpointed (non-reentrant), labels given, gradients cleared before each step, no
optimizer. Prints one JSON line a finished implementation, {"impl": …} or {"impl": …, "failure": …}.
Not for: use by hand; `python run.py --cases step_32768`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kernel_bench.measure import GIB, free_memory, summarise
from kernel_bench.step_options import Job, StepOptions

PEAK_FLOPS = 989e12
VOCABULARY, RANDOM_IDS = 152064, 150000


def build(job: Job) -> nn.Module:
    """The model with random weights on the job's device; tiny for a quick job."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": VOCABULARY,
    }
    settings: dict[str, Any] = {
        "max_position_embeddings": 1 << 21,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }
    if job.quick:
        sizes = {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
        }
    config = Qwen2Config(**sizes, **settings)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(job.device):
        model = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model.train()


def flops(model: Any, tokens: int) -> float:
    """Operations of a step without recomputation: 6 a token and weight (no embedding), causal attention as 3.5 forwards."""
    config = model.config
    weights = sum(parameter.numel() for parameter in model.parameters()) - config.vocab_size * config.hidden_size
    attention = config.num_hidden_layers * 3.5 * 4 * config.hidden_size * tokens**2 / 2
    return 6 * weights * tokens + attention


def prepare(model: Any, impl: str, options: StepOptions, quick: bool) -> tuple[Any, Callable[[], object]]:
    """Set the model up for one implementation: (its Checkpointer or None, what undoes the checkpointing)."""
    if impl in ("eagle", "eagle_no_offload", "plain"):
        import eagle_kernels

        eagle_kernels.apply(model, mlp_tile_tokens=options.mlp_tile_tokens)
    if impl not in ("eagle", "eagle_no_offload") or options.checkpointer == "torch":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        return None, model.gradient_checkpointing_disable
    from eagle_kernels.checkpointing import CheckpointPolicy, checkpoint_layers, stop_checkpointing

    policy = CheckpointPolicy(**({} if impl == "eagle_no_offload" else options.policy()))
    if quick:
        policy = replace(policy, smallest=0)  # tensors of tiny shapes are offloaded as well
    return checkpoint_layers(model, policy), lambda: stop_checkpointing(model)


def one_step(model: Any, ids: torch.Tensor) -> dict[str, float]:
    """Seconds, loss, peak GiB in all and GiB held between forward and backward."""
    cuda = ids.device.type == "cuda"
    for parameter in model.parameters():
        parameter.grad = None
    before = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    loss = model(input_ids=ids, labels=ids).loss
    held = torch.cuda.memory_allocated() - before if cuda else 0
    loss.backward()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return {"seconds": seconds, "loss": loss.item(), "peak_gib": peak / GIB, "held_gib": held / GIB}


def grad_norm(model: nn.Module) -> float:
    """Norm of all gradients together, in float32."""
    norms = [parameter.grad.norm(dtype=torch.float32) for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack(norms).norm().item()


def save_profile(model: Any, ids: torch.Tensor, path: str) -> None:
    """The 25 operators of one step that take the most time."""
    from kernel_bench.profile import profiled

    with open(path, "w", encoding="utf-8") as file:
        file.write(profiled(lambda: one_step(model, ids), ids.device))


def run(job: Job) -> None:
    """Warm every implementation up, then time them in turns, setting the model up anew at each turn when there are several."""
    device = torch.device(job.device)
    if job.impls == ("liger",):
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2  # pyright: ignore[reportMissingImports]

        apply_liger_kernel_to_qwen2(rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=True, cross_entropy=False)
    model: Any = build(job)
    generator = torch.Generator(device).manual_seed(3)
    high = min(RANDOM_IDS, model.config.vocab_size)
    ids = torch.randint(0, high, (1, job.tokens), device=device, generator=generator)
    steps: dict[str, list[dict[str, float]]] = {impl: [] for impl in job.impls}
    facts: dict[str, dict[str, Any]] = {}
    for impl in [impl for _ in range(job.runs if len(job.impls) > 1 else 1) for impl in job.impls]:
        if "failure" in facts.get(impl, {}):
            continue
        try:
            checkpointer, undo = prepare(model, impl, job.options, job.quick)
            one_step(model, ids)
            facts[impl] = {"grad_norm": grad_norm(model)}
            free_memory(device)
            steps[impl] += [one_step(model, ids) for _ in range(1 if len(job.impls) > 1 else job.runs)]
            facts[impl]["host_bytes"] = 0 if checkpointer is None else checkpointer.memory.peak_bytes
            if job.profile and impl == "eagle":
                save_profile(model, ids, job.profile)
            undo()
        except Exception as error:
            facts[impl] = {"failure": f"{type(error).__name__}: {str(error)[:400]}"}
        checkpointer = None
        free_memory(device)
    for impl in job.impls:
        print(
            json.dumps(
                {"impl": impl, **(facts[impl] if "failure" in facts[impl] else answer(model, job, steps[impl], facts[impl]))}
            )
        )


def answer(model: Any, job: Job, steps: list[dict[str, float]], facts: dict[str, Any]) -> dict[str, Any]:
    """The figures of one implementation, as they go into its row."""
    timing = summarise([step["seconds"] * 1e3 for step in steps])
    seconds = timing.median_ms / 1e3
    config = model.config
    layer_bytes = job.tokens * config.hidden_size * 2
    row = {
        "value": seconds,
        "runs": timing.runs,
        "spread": timing.spread,
        "peak_gib": max(step["peak_gib"] for step in steps),
        "held_gib": max(step["held_gib"] for step in steps),
        "loss": steps[-1]["loss"],
        "grad_norm": facts["grad_norm"],
        "tokens_per_s": job.tokens / seconds,
        "mfu": flops(model, job.tokens) / seconds / PEAK_FLOPS,
        "layer_inputs_gib": config.num_hidden_layers * layer_bytes / GIB,
        "host_gib": facts["host_bytes"] / GIB,
    }
    if job.impls != ("eagle",) and facts["host_bytes"]:
        # The last layer's input is needed at once in the backward pass and stays on the device.
        row["host_ratio"] = facts["host_bytes"] / ((config.num_hidden_layers - 1) * layer_bytes)
    return row


if __name__ == "__main__":
    run(Job.from_json(sys.argv[1]))
