"""`eagle-parallel plan`: print the best meshes for a run, what bounds each, and how far the figures can be trusted."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from eagle_parallel.planner.calibration import comparisons, summary
from eagle_parallel.planner.documents import mix_lengths, read_lengths
from eagle_parallel.planner.hardware import H200, INFINIBAND, KERNELS, Cluster
from eagle_parallel.planner.model import MODELS, load_model
from eagle_parallel.planner.run import Run
from eagle_parallel.planner.search import Prediction, explain, search

_MIXES = ("one", "sft", "video")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when a plan fits memory, 1 when none does, 2 for arguments that make no run."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        run = _run(options)
        found = search(run)
    except ValueError as error:
        print(f"eagle-parallel plan: {error}", file=sys.stderr)
        return 2
    print(json.dumps(_as_json(run, found[: options.top]), indent=2) if options.json else _table(run, found, options.top))
    return 0 if found[0].fits else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eagle-parallel", description="Context parallelism for packed causal sequences.")
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="predict time and memory of every mesh and layout of a run")
    plan.add_argument("--model", required=True, help=f"{', '.join(MODELS)}, or a config.json")
    plan.add_argument("--context", type=_tokens, help="tokens of a pack, such as 131072 or 128K (1K is 1024)")
    plan.add_argument("--gpus", type=int, required=True, help="GPUs of the run")
    plan.add_argument("--gpus-per-node", type=int, default=8, help="GPUs joined by NVLink (8)")
    plan.add_argument("--documents", default="one", help="one, sft, video, or a file of document lengths (one)")
    plan.add_argument("--seed", type=int, default=0, help="of the sft mix (0)")
    plan.add_argument("--kernel", choices=tuple(KERNELS), default="flash", help="attention kernel (flash)")
    plan.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=3, help="ZeRO stage over all GPUs (3)")
    plan.add_argument("--batch-tokens", type=_tokens, help="at most so many tokens in a step; bounds dp")
    plan.add_argument("--tiles", type=int, default=0, help="vision tiles of a pack (0)")
    plan.add_argument("--no-checkpointing", action="store_true", help="layers keep their activations")
    plan.add_argument("--keep-attention", action="store_true", help="checkpointing keeps attention's output")
    plan.add_argument("--offload-inputs", action="store_true", help="layer inputs in host memory")
    plan.add_argument("--mlp-tile-tokens", type=_tokens, help="the MLP in tiles of so many tokens")
    plan.add_argument("--memory-gib", type=float, help=f"memory of a GPU ({H200.memory / 2**30:.0f})")
    plan.add_argument("--infiniband-gbytes", type=float, help="GB/s of one GPU's adapter (42, assumed)")
    plan.add_argument("--top", type=int, default=5, help="how many to print (5)")
    plan.add_argument("--json", action="store_true", help="machine-readable, with every measured point and its error")
    return parser


def _tokens(text: str) -> int:
    """131072, 128K (of 1024) or 1M."""
    factor = {"k": 1024, "m": 1024**2, "g": 1024**3}.get(text[-1:].lower(), 1)
    number = int(text if factor == 1 else text[:-1]) * factor
    if number < 1:
        raise ValueError(text)
    return number


_tokens.__name__ = "token count"  # what argparse calls it in errors


def _run(options: argparse.Namespace) -> Run:
    if options.top < 1:
        raise ValueError("--top must be at least 1.")
    if options.documents in _MIXES:
        if options.context is None:
            raise ValueError("--context is missing; only a file of lengths says how long a pack is.")
        lengths = mix_lengths(options.documents, options.context, options.seed)
    elif Path(options.documents).is_file():
        lengths = read_lengths(options.documents)
        if options.context not in (None, sum(lengths)):
            raise ValueError(f"--context is {options.context} but the lengths sum to {sum(lengths)}; leave --context out.")
    else:
        raise ValueError(f"--documents {options.documents!r} is neither {', '.join(_MIXES)} nor a file of lengths.")
    device, link = H200, INFINIBAND
    if options.memory_gib is not None:
        device = replace(device, memory=options.memory_gib * 2**30)
    if options.infiniband_gbytes is not None:
        if options.infiniband_gbytes <= 0:
            raise ValueError("--infiniband-gbytes must be positive.")
        link = replace(link, points=((options.infiniband_gbytes * 1e9, 1.0),))
    return Run(
        model=load_model(options.model),
        lengths=lengths,
        gpus=options.gpus,
        cluster=Cluster(device, options.gpus_per_node, infiniband=link),
        kernel=KERNELS[options.kernel],
        zero_stage=options.zero_stage,
        checkpointing=not options.no_checkpointing,
        offload_inputs=options.offload_inputs,
        keep_attention=options.keep_attention,
        mlp_tile_tokens=options.mlp_tile_tokens,
        tiles=options.tiles,
        batch_tokens=options.batch_tokens,
    )


def _table(run: Run, found: list[Prediction], top: int) -> str:
    head = (
        f"{run.model.name}, packs of {run.context} tokens (documents: {len(run.lengths)}), GPUs: {run.gpus} "
        f"({run.cluster.device.name}, {run.cluster.gpus_per_node} a node), ZeRO-{run.zero_stage}, {run.kernel.name} attention"
    )
    if not found[0].fits:
        head += (
            f"\nNOTHING FITS {run.cluster.device.memory / 2**30:.0f} GiB; smallest first. Try --offload-inputs, "
            "--mlp-tile-tokens 16K, a higher --zero-stage or more GPUs."
        )
    columns = ("dp", "ring", "ulysses", "layout", "algorithm", "step s", "tok/s/GPU", "MFU %", "GiB", "wire %", "bound by")
    rows = [columns] + [_row(run, prediction) for prediction in found[:top]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([head, "", *lines, "", "Best:", explain(found[0]), "", summary()])


def _row(run: Run, prediction: Prediction) -> tuple[str, ...]:
    choice, time, memory = prediction.choice, prediction.time, prediction.memory
    wire = (time.ulysses + time.ring + time.zero) / time.total
    return (
        str(choice.dp),
        str(choice.cp_ring),
        str(choice.cp_ulysses),
        choice.layout if choice.cp_ring > 1 else "-",
        choice.algorithm if choice.cp_ring > 1 else "-",
        f"{time.total:.3g}",
        f"{prediction.tokens_per_second / run.gpus:.0f}",
        f"{prediction.mfu * 100:.1f}",
        f"{memory.total / 2**30:.1f}",
        f"{wire * 100:.1f}",
        f"{time.bound}; {memory.bound}",
    )


def _as_json(run: Run, found: list[Prediction]) -> dict[str, Any]:
    plans = [
        {
            **asdict(prediction),
            "step_seconds": prediction.time.total,
            "memory_bytes": prediction.memory.total,
            "time_bound": prediction.time.bound,
            "memory_bound": prediction.memory.bound,
            "why": explain(prediction),
        }
        for prediction in found
    ]
    return {
        "model": asdict(run.model),
        "context": run.context,
        "documents": len(run.lengths),
        "gpus": run.gpus,
        "gpus_per_node": run.cluster.gpus_per_node,
        "device": run.cluster.device.name,
        "kernel": run.kernel.name,
        "zero_stage": run.zero_stage,
        "plans": plans,
        "calibration": {
            "summary": summary(),
            "points": [{**asdict(comparison), "error": comparison.error} for comparison in comparisons()],
        },
    }
