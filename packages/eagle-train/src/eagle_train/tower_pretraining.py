"""Pretraining of the toy vision tower by classifying digits: a stand-in for a pretrained SigLIP2, in seconds.

Only the quick start uses it. A linear head on the mean patch feature is trained with the tower and thrown away. The
pictures are drawn from the training split alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from eagle_train.digits import CELL, draw_cell, training_pictures
from eagle_train.recipe import TowerPretraining


def pretrain_tower(
    model: Any, config: TowerPretraining, *, seed: int, progress: Callable[[int, float], None] | None = None
) -> float:
    """Train `model.vision_model` in place and return its accuracy on the last tenth of the steps' pictures.

    The accuracy is on pictures drawn anew from training images, before the step that learns from them.
    """
    pools = training_pictures(seed)
    rng = np.random.default_rng([seed, 1])
    tower = model.vision_model
    tower.train()
    head = torch.nn.Linear(model.config.vision_config.hidden_size, 10)
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.02)
    right = seen = 0
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 20) * (1 - step / config.steps)
        labels = rng.integers(0, 10, config.batch)
        cells = np.stack([draw_cell(pools[d][int(rng.integers(len(pools[d])))], rng, cell=CELL) for d in labels])
        pixels = torch.from_numpy(cells.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
        target = torch.from_numpy(labels)
        logits = head(tower(pixels, -1).mean(dim=1))
        loss = torch.nn.functional.cross_entropy(logits, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step >= 0.9 * config.steps:
            right += int((logits.argmax(-1) == target).sum())
            seen += config.batch
        if progress is not None:
            progress(step + 1, float(loss.detach()))
    return right / max(seen, 1)
