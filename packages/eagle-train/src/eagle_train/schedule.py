"""The learning-rate schedule: linear warm-up, then a cosine to a floor. Pure arithmetic."""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, peak: float, warmup: float, floor: float) -> float:
    """Rate of step `step` (0-based) out of `steps`.

    `warmup` is the share of steps that rise linearly to `peak` (release: 0.03); the rest follow half a cosine down to
    `floor * peak`, which the last step comes next to.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, steps - rising)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
