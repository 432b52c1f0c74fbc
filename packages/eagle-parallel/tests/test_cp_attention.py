"""cp_attention on one process, and what it refuses before anything is sent."""

import pytest
import torch
from eagle_parallel import Mesh, ModelShape, NotYetSupported, cp_attention, make_plan, varlen_attention


def test_one_process_without_a_mesh_is_plain_packed_attention():
    q, k, v = (torch.randn(9, heads, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    plan = make_plan([0, 3, 9], 1)
    assert torch.autograd.gradcheck(lambda q, k, v: cp_attention(q, k, v, plan, scale=0.3), (q, k, v))
    torch.testing.assert_close(cp_attention(q, k, v, plan), varlen_attention(q, k, v, [0, 3, 9])[0])


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (NotYetSupported, r"sliding windows \(window=4096\).*use full attention, window=None", {"window": 4096}),
        (
            NotYetSupported,
            "kernel 'flash' cannot run here: .* needs a CUDA device, not cpu. Use kernel='auto'",
            {"kernel": "flash"},
        ),
        (ValueError, "algorithm 'rings' is unknown; use one of auto, gather_kv, ring", {"algorithm": "rings"}),
        (ValueError, "kernel 'flas' is unknown; use one of auto, truth, flash", {"kernel": "flas"}),
        (ValueError, "head_groups must be a positive integer or None, got 0", {"head_groups": 0}),
    ],
)
def test_options_that_cannot_be_had_are_typed_errors_with_the_mend(error, match, options):
    plan = make_plan([0, 8], 1)
    with pytest.raises(error, match=match):
        cp_attention(torch.zeros(8, 2, 4), torch.zeros(8, 2, 4), torch.zeros(8, 2, 4), plan, **options)


@pytest.mark.parametrize(
    ("match", "plan_mesh", "mesh", "rows", "shape"),
    [
        ("pass the mesh it was made for", 2, None, 4, None),
        (r"made for cp_ring=2.*call make_plan\(cu_seqlens, mesh\)", 2, Mesh(1, 4, 1, rank=0), 4, None),
        ("q has 5 tokens .* but rank 1 owns 4 of the plan's 8", 2, Mesh(1, 2, 1, rank=1), 5, None),
        ("model_shape says 8 query heads", 2, Mesh(1, 2, 1, rank=0), 4, ModelShape(8, 2, 4)),
    ],
)
def test_mesh_plan_and_tensors_that_do_not_fit_are_errors(match, plan_mesh, mesh, rows, shape):
    plan = make_plan([0, 8], plan_mesh, shape)
    with pytest.raises(ValueError, match=match):
        cp_attention(torch.zeros(rows, 2, 4), torch.zeros(rows, 2, 4), torch.zeros(rows, 2, 4), plan, mesh)
