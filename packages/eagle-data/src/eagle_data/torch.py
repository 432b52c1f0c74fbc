"""Batches as torch tensors, for those who have torch (`pip install eagle-data[torch]`).

`cu_seqlens` and `loss_rows` stay on the host: they are known there, and reading them back from a device would
synchronise it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eagle_data.collate import Batch

if TYPE_CHECKING:
    import torch

_HOST = ("cu_seqlens", "loss_rows")


def to_torch(batch: Batch, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The arrays of `batch` as tensors of the same shape and dtype, keyed by field name; provenance is left out."""
    import torch

    tensors = {}
    for name in batch.__dataclass_fields__:
        value = getattr(batch, name)
        if name == "provenance":
            continue
        tensor = torch.from_numpy(value)
        tensors[name] = tensor if name in _HOST else tensor.to(device, non_blocking=True)
    return tensors
