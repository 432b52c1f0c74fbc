"""Batches as tensors: the same values, with what the host reads kept on the host."""

from __future__ import annotations

import numpy as np
import pytest
from eagle_data.collate import LoadedSample, collate
from eagle_data.torch import to_torch

torch = pytest.importorskip("torch")


def test_every_array_becomes_a_tensor_of_equal_values_and_dtype():
    ids = np.array([1, 2, 3], dtype=np.int32)
    batch = collate([LoadedSample(ids, ids, np.zeros((1, 3, 4, 4), np.float32), "a:1")], tile_size=4)
    tensors = to_torch(batch, "meta")
    assert set(tensors) == set(batch.__dataclass_fields__) - {"provenance"}
    assert {name for name, tensor in tensors.items() if tensor.device.type == "cpu"} == {"cu_seqlens", "loss_rows"}
    for name, tensor in to_torch(batch).items():
        assert np.array_equal(tensor.numpy(), getattr(batch, name))
        assert tensor.numpy().dtype == getattr(batch, name).dtype
