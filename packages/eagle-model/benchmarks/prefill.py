"""Prefill and decode of Eagle 2.5 at the 8B shape with random weights: time to first token, tokens per second, peak memory.

    python packages/eagle-model/benchmarks/prefill.py --out FILE.json --commit "$(git rev-parse HEAD)"

Promises: the rate of an 8192³ matrix product is measured in the same run, so that the prefill's share of it is a property of the
software and not of the day. The tower is part of the prefill, and of the operations. A run that is not timed is watched for
tensors of tokens x tokens. Weights are random: nothing here says that an answer is right, the tests do. `--quick` proves that it
runs, on a CPU, in seconds. Needs numpy, Pillow, torch and transformers, with eagle-model and eagle-data installed or on the path.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import eagle_model
import torch
from eagle_model import Eagle2_5_VLConfig, Eagle2_5_VLForConditionalGeneration
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import StoppingCriteria, StoppingCriteriaList

sys.path.insert(0, str(Path(__file__).parent))
from model_bench.targets import MOST_GIB, SHARE  # pyright: ignore[reportMissingImports]
from prefill_operations import prefill_operations  # pyright: ignore[reportMissingImports]
from square_tensors import SquareTensors  # pyright: ignore[reportMissingImports]

GIB = 1 << 30
WRAPPER_TOKENS = 13
"""Around the context tokens of one frame, as the released prompt words it ("Frame 12 sample at 5.50s: <img>" and "</img>")."""


@dataclass(frozen=True)
class Problem:
    """What is run: model shape, frames, generated tokens, side of the square matrix product."""

    config: Eagle2_5_VLConfig
    frames: int
    question_tokens: int
    new_tokens: int
    matmul_side: int

    @property
    def tokens(self) -> int:
        return self.frames * (self.config.num_image_token + WRAPPER_TOKENS) + self.question_tokens


def released_8b() -> Eagle2_5_VLConfig:
    """SigLIP2 So400m at 448/14 and Qwen2.5-7B, without the pooling head, which never runs."""
    return Eagle2_5_VLConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 448,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "rope_theta": 1e6,
            "max_position_embeddings": 262144,
        },
        select_layer=-1,
    )


def toy() -> Eagle2_5_VLConfig:
    """The same parts, small enough for a CPU."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Eagle2_5_VLConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "vision_use_head": False, **small},
        text_config={"model_type": "qwen2", "vocab_size": 160, "num_key_value_heads": 2, **small},
        select_layer=-1,
        image_token_index=159,
    )


def build(problem: Problem, device: torch.device, dtype: torch.dtype, *, attention: str, kernels: bool) -> Any:
    """The model with random weights, made on the device."""
    torch.manual_seed(0)
    model_class: Any = Eagle2_5_VLForConditionalGeneration
    with torch.device(device):
        model = model_class._from_config(problem.config, dtype=dtype).eval()
    model.set_attn_implementation(attention)
    if kernels:
        import eagle_kernels

        eagle_kernels.apply(model)
    return model


def inputs_of(problem: Problem, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """One prompt of frames and a question, and the frames' pixels, on the device."""
    generator = torch.Generator().manual_seed(1)
    per_frame = problem.config.num_image_token + WRAPPER_TOKENS
    # Any ordinary ids will do for the words, as long as none is the context token.
    ids = torch.randint(1, problem.config.image_token_index - 1, (problem.tokens,), generator=generator)
    frames = ids[: problem.frames * per_frame].view(problem.frames, per_frame)
    frames[:, WRAPPER_TOKENS - 1 : -1] = problem.config.image_token_index
    side = problem.config.tile_size
    pixels = torch.rand(problem.frames, 3, side, side, device=device, dtype=dtype) * 2 - 1
    return {"input_ids": ids[None].to(device), "pixel_values": pixels}


class Clock(StoppingCriteria):
    """Notes when each token is there; never stops."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        self.times.append(now(self.device))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def now(device: torch.device) -> float:
    """Seconds, with everything asked of the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_rate(side: int, device: torch.device, dtype: torch.dtype, repeats: int = 20) -> float:
    """Operations per second of a product of two random square matrices, the median of 5 rounds of `repeats`."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    rates = []
    for _ in range(5):
        start = now(device)
        for _ in range(repeats):
            torch.mm(a, b)
        rates.append(repeats * 2 * side**3 / (now(device) - start))
    return statistics.median(rates)


def run_once(
    model: Any, inputs: dict[str, torch.Tensor], new_tokens: int, cache: str, device: torch.device
) -> tuple[float, float]:
    """Seconds to the first token, tokens per second after it."""
    clock = Clock(device)
    options = {"cache_implementation": "static"} if cache == "static" else {}
    start = now(device)
    answer = model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
        **options,
    )
    if answer.shape[1] != new_tokens or len(clock.times) != new_tokens:
        raise RuntimeError(f"{answer.shape[1]} tokens came back where {new_tokens} were asked for")
    decode = (new_tokens - 1) / (clock.times[-1] - clock.times[0])
    return clock.times[0] - start, decode


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that goes into the result file."""
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype)
    problem = (
        Problem(toy(), 6, 20, 8, 256) if options.quick else Problem(released_8b(), options.frames, 200, options.new_tokens, 8192)
    )
    model = build(problem, device, dtype, attention=options.attention, kernels=options.kernels)
    inputs = inputs_of(problem, device, dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rates = [matmul_rate(problem.matmul_side, device, dtype)]
    first, decode = [], []
    with torch.no_grad(), _sdpa(options.sdpa_backend):
        with SquareTensors(problem.tokens) as squares:
            run_once(model, inputs, 2, options.cache, device)
        run_once(
            model, inputs, problem.new_tokens, options.cache, device
        )  # a watched run compiles nothing, so it warms nothing up
        for _ in range(options.runs):
            to_first, per_second = run_once(model, inputs, problem.new_tokens, options.cache, device)
            first.append(to_first)
            decode.append(per_second)
    memory: dict[str, float | None] = {"peak_gib": None}
    if device.type == "cuda":
        memory = {
            "peak_gib": torch.cuda.max_memory_allocated(device) / GIB,
            "reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
        }
    rates.append(matmul_rate(problem.matmul_side, device, dtype))
    operations = prefill_operations(problem.config, tiles=problem.frames, tokens=problem.tokens)
    rate = statistics.mean(rates)
    shape = {"frames": problem.frames, "tokens": problem.tokens, "new_tokens": problem.new_tokens}
    impl = "eagle" + ("+kernels" if options.kernels else "")

    def row(case: str, values: Sequence[float], unit: str, **more: Any) -> dict[str, Any]:
        middle = statistics.median(values)
        spread = (max(values) - min(values)) / middle if len(values) > 1 else 0.0
        return {
            "case": case,
            "impl": impl,
            "shape": shape,
            "value": middle,
            "unit": unit,
            "runs": len(values),
            "spread": spread,
            **more,
        }

    return {
        **head_of(device, options),
        "settings": {key: getattr(options, key) for key in ("attention", "sdpa_backend", "kernels", "cache", "dtype", "quick")},
        "operations": {**asdict(operations), "total": operations.total},
        "squares": {"largest_tensor": squares.largest, "tokens_by_tokens": sorted(squares.found)},
        "rows": [
            row("prefill_first_token", first, "s", **memory),
            row("prefill_share_of_matmul", [operations.total / rate / each for each in first], "1", floor=SHARE),
            row("prefill_rate", [operations.total / each / 1e12 for each in first], "TFLOP/s"),
            row("prefill_tokens", [problem.tokens / each for each in first], "tokens/s"),
            row("decode", decode, "tokens/s"),
            row(f"matmul_{problem.matmul_side}", [each / 1e12 for each in rates], "TFLOP/s"),
        ],
    }


def head_of(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Hardware, versions, commit, date (UTC) and command."""
    # A source folder on the path has no metadata, but says its version itself.
    versions = {"python": platform.python_version(), "eagle-model": eagle_model.__version__}
    if options.kernels:
        import eagle_kernels

        versions["eagle-kernels"] = eagle_kernels.__version__
    for package in ("torch", "triton", "transformers", "flash-attn"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        versions |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    words = [word if not Path(word).is_absolute() else Path(word).name for word in sys.argv]
    return {
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "versions": versions,
        "driver": _driver() if device.type == "cuda" else None,
        "commit": options.commit,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": shlex.join(["python", *words]),
        "spread": "range over median",
    }


def _driver() -> str | None:
    """The NVIDIA driver's version, or None where nvidia-smi does not say."""
    question = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(question, check=True, capture_output=True, text=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _sdpa(name: str) -> AbstractContextManager[Any]:
    if name == "auto":
        return nullcontext()
    first = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[name]
    others = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel([first, *(other for other in others if other != first)], set_priority=True)


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="result file to write")
    parser.add_argument("--commit", default="unknown", help="recorded in the file")
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3, help="measured runs, after one that warms up")
    parser.add_argument("--attention", default="sdpa", help="of tower and language model (default: sdpa)")
    parser.add_argument("--sdpa-backend", choices=("auto", "cudnn", "flash"), default="auto", help="tried first where it applies")
    parser.add_argument("--cache", choices=("dynamic", "static"), default="dynamic")
    parser.add_argument("--kernels", action="store_true", help="apply eagle-kernels to the model")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16, float32 with --quick")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a toy model and 6 frames: proves that everything runs")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the file, print the rows. Exit code 1 where a bar is missed: any tensor of tokens x tokens, or at full size
    the share of the matrix product or 80 GiB.
    """
    options = build_parser().parse_args(arguments)
    options.dtype = options.dtype or ("float32" if options.quick else "bfloat16")
    result = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    half = options.out.with_name(options.out.name + ".half")
    half.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(half, options.out)
    for row in result["rows"]:
        peak = f", peak {row['peak_gib']:.1f} GiB" if row.get("peak_gib") else ""
        print(f"{row['case']:<24} {row['value']:10.3f} {row['unit']}{peak}")
    missed = missed_bars(result, full_size=not options.quick)
    for words in missed:
        print(f"missed: {words}", file=sys.stderr)
    return 1 if missed else 0


def missed_bars(result: dict[str, Any], *, full_size: bool) -> list[str]:
    """What a result falls short of, in words; share and memory count at full size only."""
    rows = {row["case"]: row for row in result["rows"]}
    missed = [f"a tensor of {shape} was made" for shape in result["squares"]["tokens_by_tokens"]]
    if full_size:
        share, peak = rows["prefill_share_of_matmul"]["value"], rows["prefill_first_token"]["peak_gib"]
        missed += [f"share of the matrix product {share:.3f}, wanted {SHARE}"] if share < SHARE else []
        missed += [f"peak memory {peak:.1f} GiB, wanted below {MOST_GIB}"] if peak is not None and peak >= MOST_GIB else []
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
