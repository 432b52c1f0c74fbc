"""What a run changes of its surroundings, and puts back: torch's threads and determinism, transformers' chatter.

Context managers for the edge of the program. Nothing here changes what is computed for a given recipe, except that
the same recipe computes the same.
"""

from __future__ import annotations

import logging as python_logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def reproducible(*, threads: int | None, deterministic: bool) -> Iterator[None]:
    """Run the block on `threads` CPU threads (None: as it is) and, if asked, with deterministic operators only."""
    old_threads = torch.get_num_threads()
    old_mode = torch.get_deterministic_debug_mode()
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(old_threads)
        torch.set_deterministic_debug_mode(old_mode)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars ("Loading weights", "Writing model shards") and no notes of transformers between our own lines."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(python_logging.ERROR)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"transformers\.")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


__all__ = ["quiet_transformers", "reproducible"]
