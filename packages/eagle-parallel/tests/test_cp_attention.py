"""cp_attention on one process, and what it refuses before anything is sent."""

import pytest
import torch
from eagle_parallel import Mesh, ModelShape, NotYetSupported, cp_attention, make_plan, varlen_attention
from eagle_parallel.cp_attention import local_spans


def test_one_process_without_a_mesh_is_plain_packed_attention():
    q, k, v = (torch.randn(9, heads, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    plan = make_plan([0, 3, 9], 1)
    assert torch.autograd.gradcheck(lambda q, k, v: cp_attention(q, k, v, plan, scale=0.3), (q, k, v))
    torch.testing.assert_close(cp_attention(q, k, v, plan), varlen_attention(q, k, v, [0, 3, 9])[0])


def test_spans_give_each_piece_the_keys_from_its_documents_start():
    plan = make_plan([0, 8, 12], 2)
    assert [tuple(span) for span in local_spans(plan, 0)] == [(0, 2, 0, 2, 0), (2, 4, 0, 8, 6), (4, 5, 8, 9, 0), (5, 6, 8, 12, 3)]


@pytest.mark.parametrize(
    ("error", "match", "mesh", "options"),
    [
        (NotYetSupported, r"ulysses=2 is not in this version; use init_mesh\(cp=2, ulysses=1\)", Mesh(1, 1, 2, rank=0), {}),
        (
            NotYetSupported,
            "algorithm 'ring' is not in this version; use algorithm='gather_kv'",
            Mesh(1, 2, 1, rank=0),
            {"algorithm": "ring"},
        ),
    ],
)
def test_what_is_not_there_yet_is_a_typed_error_with_the_mend(error, match, mesh, options):
    plan = make_plan([0, 8], mesh)
    with pytest.raises(error, match=match):
        cp_attention(torch.zeros(4, 2, 4), torch.zeros(4, 2, 4), torch.zeros(4, 2, 4), plan, mesh, **options)


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
