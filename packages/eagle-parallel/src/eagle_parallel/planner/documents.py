"""Document lengths of a pack: three named mixes that fill any context, or a file of lengths."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Literal, get_args

Mix = Literal["one", "sft", "video"]
_VIDEO = (30011, 17389, 9127, 5003, 2411, 1021, 389, 185)  # a long-video pack of 65536 tokens
_SFT_MEDIAN, _SFT_SIGMA, _SFT_SHORTEST, _SFT_LONGEST = 600, 1.2, 16, 8192


def mix_lengths(mix: str, context: int, seed: int = 0) -> tuple[int, ...]:
    """Lengths that sum to `context`.

    Args:
        mix: "one" (a single document), "sft" (log-normal, median 600, sigma 1.2, clipped to 16-8192, the last one cut to fill the
            pack) or "video" (eight documents from 46 % to 0.3 % of the pack).
        context: tokens of the pack.
        seed: of "sft".

    Raises:
        ValueError: the mix is unknown or context is not positive.
    """
    if context < 1:
        raise ValueError(f"context must be a positive integer, got {context!r}.")
    if mix == "one":
        return (context,)
    if mix == "video":
        rest = [length * context // sum(_VIDEO) for length in _VIDEO[1:]]
        return tuple(length for length in (context - sum(rest), *rest) if length)
    if mix != "sft":
        raise ValueError(f"mix {mix!r} is unknown; use one of {', '.join(get_args(Mix))}.")
    draw, lengths, left = random.Random(seed), [], context
    while left:
        length = round(draw.lognormvariate(math.log(_SFT_MEDIAN), _SFT_SIGMA))
        lengths.append(min(left, max(_SFT_SHORTEST, min(_SFT_LONGEST, length))))
        left -= lengths[-1]
    return tuple(lengths)


def read_lengths(path: str | Path) -> tuple[int, ...]:
    """Lengths from a file: a JSON list of integers, or integers between white space.

    Raises:
        ValueError: the file cannot be read or holds something else than positive integers.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); pass a text file of document lengths.") from None
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else [int(word) for word in text.split()]
    except ValueError as error:
        raise ValueError(f"{path}: {error}; write integers between white space, or a JSON list of integers.") from None
    if not found or not all(isinstance(length, int) and not isinstance(length, bool) and length > 0 for length in found):
        raise ValueError(f"{path} must hold positive integers, one for each document.")
    return tuple(found)
