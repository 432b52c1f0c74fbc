"""Linear + cross-entropy at Qwen2.5-7B's head: loss and both gradients, time and peak memory, beside its matrix products alone.

The logits are peaked, as a trained model's are: a row of `hidden` is normal noise plus a mix of the head's rows of eight
random candidate tokens, whose logits stand near 18, 17.5, 17, …, and its label is one of the eight, drawn by their softmax.
More than 99 % of the probability then lies on tokens above the threshold (2^-12) under which Cut Cross-Entropy drops gradients.
All implementations of all cases see the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernel_bench.measure import Budget, one_turn, summarise
from kernel_bench.peers import IGNORED, Operator, Supervision, ours
from kernel_bench.problem import Call, Problem, Setting

HIDDEN, VOCABULARY = 3584, 152064
CANDIDATES = 8
TOP_LOGIT, STEP = 18.0, 0.5
HEAD_SCALE = 0.02
BUDGET = Budget(rounds=2, warmup_ms=50, rep_ms=700)
TRUTH_ROWS = 2048


@dataclass(frozen=True)
class Data:
    """`hidden` [tokens, hidden] and `weight` [vocab, hidden] in bfloat16, `labels` [tokens]."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor


def peaked(setting: Setting, tokens: int, width: int, vocabulary: int) -> Data:
    """The rows described above; the fewer dimensions, the less distinct are the candidates."""
    random = setting.random()
    # The norm of a head's row is that of the full width also where the width is small.
    weight = random(vocabulary, width) * (HEAD_SCALE * math.sqrt(HIDDEN / width))
    hidden = random(tokens, width).float()
    generator = torch.Generator(setting.device).manual_seed(1)
    candidates = torch.randint(vocabulary, (tokens, CANDIDATES), generator=generator, device=setting.device)
    logits = TOP_LOGIT - STEP * torch.arange(CANDIDATES, device=setting.device)
    for place in range(CANDIDATES):
        rows = weight[candidates[:, place]].float()
        hidden += rows * (logits[place] / rows.square().sum(-1, keepdim=True))
    drawn = torch.multinomial(logits.softmax(-1), tokens, replacement=True, generator=generator)
    return Data(hidden.bfloat16(), weight, candidates.gather(1, drawn[:, None]).squeeze(1))


def truth_of(data: Data, given: Supervision) -> dict[str, Tensor]:
    """Loss and gradients, computed in float64 a few rows at a time and kept in float32."""
    head = data.weight.double()
    loss = torch.zeros((), dtype=torch.float64, device=head.device)
    dhidden = torch.zeros(data.hidden.shape, device=head.device)
    dweight = torch.zeros_like(head)
    for rows in (given.labels != IGNORED).nonzero().squeeze(1).split(TRUTH_ROWS):
        x, labels = data.hidden[rows].double(), given.labels[rows, None]
        share = torch.ones_like(labels, dtype=torch.float64) if given.weight is None else given.weight[rows, None].double()
        logs = (x @ head.T).log_softmax(-1)
        loss -= (logs.gather(1, labels) * share).sum()
        slope = logs.exp_().scatter_add_(1, labels, torch.full_like(share, -1)).mul_(share)
        dhidden[rows] = (slope @ head).float()
        dweight.addmm_(slope.T, x)
    return {"loss": loss.float(), "dhidden": dhidden, "dweight": dweight.float()}


def chunk_sizes(setting: Setting, rows: int, width: int) -> list[int]:
    """Rows of each chunk, as the operator cuts them on this device."""
    if setting.device.type != "cuda" or rows <= setting.chunk_rows:
        return [min(setting.chunk_rows, rows - begin) for begin in range(0, rows, setting.chunk_rows)]
    from eagle_kernels.ops.products import wave_chunks

    processors = torch.cuda.get_device_properties(setting.device).multi_processor_count
    return [end - begin for begin, end in wave_chunks(rows, setting.chunk_rows, width, processors)]


def floors(setting: Setting, data: Data, rows: int) -> dict[str, float]:
    """Milliseconds of the three matrix products alone over `rows` rows, in chunks as the operator makes them.

    `floor`: the head's gradient accumulates in float32; `floor_plain`: every product writes bfloat16. The operand of the two
    gradient products is a real gradient of logits (a matrix unit runs faster on zeros), one chunk of it read again and again.
    """
    pieces = data.hidden[:rows].split(chunk_sizes(setting, rows, data.hidden.shape[1]))
    chunk = max(len(piece) for piece in pieces)
    logits = data.hidden[:chunk] @ data.weight.T
    slope = (
        logits.float().softmax(-1).scatter_add_(1, data.labels[:chunk, None], torch.full((chunk, 1), -1.0, device=logits.device))
    )
    slope = slope.bfloat16()
    dhidden = torch.empty_like(data.hidden[:chunk])
    wide, plain = (torch.zeros(data.weight.shape, dtype=kind, device=logits.device) for kind in (torch.float32, torch.bfloat16))
    on_gpu = setting.device.type == "cuda"

    def form_logits() -> None:
        for piece in pieces:
            torch.mm(piece, data.weight.T, out=logits[: len(piece)])

    def form_dhidden() -> None:
        for piece in pieces:
            torch.mm(slope[: len(piece)], data.weight, out=dhidden[: len(piece)])

    def form_dweight() -> None:
        for place, piece in enumerate(pieces):
            part = slope[: len(piece)].T
            if not on_gpu:
                wide.addmm_(part.float(), piece.float(), beta=min(place, 1))
            elif place == 0:
                torch.mm(part, piece, out_dtype=torch.float32)
            else:
                torch.addmm(wide, part, piece, out_dtype=torch.float32, out=wide)

    def form_dweight_plain() -> None:
        for place, piece in enumerate(pieces):
            plain.addmm_(slope[: len(piece)].T, piece, beta=min(place, 1))

    shared, exact, rounded = (
        sum(summarise(one_turn(product, setting.device, BUDGET)).median_ms for product in group)
        for group in ((form_logits, form_dhidden), (form_dweight,), (form_dweight_plain,))
    )
    # A single chunk has nothing to accumulate.
    exact = rounded if len(pieces) == 1 else exact
    return {"floor": shared + exact, "floor_plain": shared + rounded, "chunk_rows": chunk}


def supervise(data: Data, supervised: float, weighted: bool) -> Supervision:
    """Labels of which a random share is kept, the kept rows as a collator's list in pinned host memory, random weights."""
    generator = torch.Generator(data.labels.device).manual_seed(2)
    dropped = torch.rand(data.labels.shape, generator=generator, device=data.labels.device) >= supervised
    labels = data.labels.masked_fill(dropped, IGNORED)
    rows = (labels != IGNORED).nonzero().squeeze(1).cpu()
    if labels.device.type == "cuda":
        rows = rows.pin_memory()
    weight = 0.5 + torch.rand(labels.shape, generator=generator, device=labels.device) if weighted else None
    return Supervision(labels, rows, weight)


def problems(setting: Setting, case: str, *, tokens: int, supervised: float = 1.0, weighted: bool = False) -> Iterator[Problem]:
    """One shape a case; the weighted case also times our operator without weights, in the same turns."""
    tokens = tokens // 256 if setting.quick else tokens
    data = peaked(setting, tokens, *((64, 512) if setting.quick else (HIDDEN, VOCABULARY)))
    given = supervise(data, supervised, weighted)

    def bind(operator: Operator, own: tuple[Tensor, ...]) -> Call:
        hidden, weight = (tensor.requires_grad_() for tensor in own)

        def call() -> tuple[Tensor, ...]:
            loss = operator(hidden, weight, given)
            return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))

        return call

    def without_weights(hidden: Tensor, weight: Tensor, given: Supervision) -> Tensor:
        return ours(setting.chunk_rows)["linear_ce"](hidden, weight, replace(given, weight=None))

    yield Problem(
        case=case,
        shape={"tokens": tokens, "hidden": data.hidden.shape[1], "vocab": len(data.weight), "supervised": len(given.rows)},
        operator="linear_ce",
        inputs=(data.hidden, data.weight),
        bind=bind,
        truth=truth_of(data, given),
        unit="ms",
        value=lambda ms: ms,
        budget=BUDGET,
        with_peak=True,
        unchecked={"eagle_unweighted": without_weights} if weighted else {},
        extra=floors(setting, data, len(given.rows)),
    )
