"""The fused loss: equal to plain autograd in float64, exact in what it skips, bounded in what it holds, loud about bad input."""

import math
from typing import Any

import eagle_kernels
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from eagle_kernels.implementation import use_implementation
from eagle_kernels.ops.chunked_loss import Request, form
from eagle_kernels.ops.linear_cross_entropy import naive_linear_cross_entropy
from eagle_kernels.ops.row_loss import LossTerms
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.spawn import start_processes
from torch.utils._python_dispatch import TorchDispatchMode


def _case(tokens, width, vocab, supervised, seed=0, dtype=torch.float64) -> Any:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, width, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (tokens,), generator=generator)
    keep = torch.rand(tokens, generator=generator) < supervised
    return hidden, weight, labels.where(keep, -100), torch.rand(tokens, generator=generator)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(0, 23),
    width=st.integers(1, 9),
    vocab=st.integers(1, 17),
    supervised=st.sampled_from([0.0, 0.3, 1.0]),
    chunk_rows=st.integers(1, 30),
    weighted=st.booleans(),
    rows_given=st.booleans(),
    softcap=st.sampled_from([None, 2.5]),
    z_loss=st.sampled_from([0.0, 0.01]),
    label_smoothing=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 99),
)
def test_loss_and_gradients_equal_plain_autograd(
    tokens, width, vocab, supervised, chunk_rows, weighted, rows_given, softcap, z_loss, label_smoothing, seed
):
    hidden, weight, labels, loss_weight = _case(tokens, width, vocab, supervised, seed)
    loss_weight = loss_weight if weighted else None
    rows = (labels != -100).nonzero().squeeze(-1)
    result = eagle_kernels.linear_cross_entropy(
        hidden,
        weight,
        labels,
        loss_weight=loss_weight,
        loss_rows=rows if rows_given else None,
        softcap=softcap,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        chunk_rows=chunk_rows,
    )
    terms = LossTerms(softcap, z_loss, label_smoothing)
    expected = naive_linear_cross_entropy(hidden, weight, labels, loss_weight, rows, terms)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(3 * result, (hidden, weight))
    torch.testing.assert_close(grads, torch.autograd.grad(3 * expected, (hidden, weight)), rtol=1e-11, atol=1e-12)


def test_it_passes_gradcheck_with_every_term_on():
    hidden, weight, labels, loss_weight = _case(7, 3, 5, 0.7)

    def loss(hidden, weight):
        return eagle_kernels.linear_cross_entropy(
            hidden, weight, labels, loss_weight=loss_weight, softcap=3.0, z_loss=0.05, label_smoothing=0.1, chunk_rows=3
        )

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_without_options_it_is_torch_cross_entropy_summed():
    hidden, weight, labels, _ = _case(12, 6, 9, 0.6)
    expected = F.cross_entropy(hidden @ weight.T, labels, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(eagle_kernels.linear_cross_entropy(hidden, weight, labels), expected)


def test_square_root_weights_give_samples_the_published_shares():
    """Appendix A.4: 1, 100 and 900 labels give token weights .024390, .0024390, .00081301; zero logits cost log V each."""
    counts = [1, 100, 900]
    loss_weight = torch.cat([torch.full((n,), n**-0.5, dtype=torch.float64) for n in counts])
    hidden, weight = torch.zeros(1001, 2, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
    labels = torch.zeros(1001, dtype=torch.int64)
    normaliser = loss_weight.sum()
    assert normaliser.item() == pytest.approx(41)
    assert (loss_weight[[0, 1, 101]] / normaliser).tolist() == pytest.approx([0.024390, 0.0024390, 0.00081301], rel=1e-4)
    loss = eagle_kernels.linear_cross_entropy(hidden, weight, labels, loss_weight=loss_weight) / normaliser
    assert loss.item() == pytest.approx(math.log(5))


class _Products(TorchDispatchMode):
    """Records the shape of every matrix product's result and of every tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.products, self.made = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.made.append(tuple(result.shape))
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                self.products.append(tuple(result.shape))
        return result


def test_ignored_rows_are_never_multiplied_and_no_more_than_a_chunk_of_logits_exists():
    hidden, weight, labels, _ = _case(50, 3, 101, 0.4)
    rows = (labels != -100).nonzero().squeeze(-1)
    assert 0 < rows.numel() < 40
    with torch.no_grad(), _Products() as seen:
        form(hidden, weight, labels, None, rows, LossTerms(), Request(True, True, several=True, chunk_rows=8))
    logit_rows = [shape[0] for shape in seen.products if shape[1:] == (101,)]
    assert sum(logit_rows) == rows.numel()
    assert max(logit_rows) == 8
    assert max(shape[0] for shape in seen.made if len(shape) == 2 and shape[1] == 101) == 8


def test_a_pack_without_a_supervised_row_gives_zero_and_zero_gradients():
    hidden, weight, labels, _ = _case(5, 3, 7, 0.0)
    loss = eagle_kernels.linear_cross_entropy(hidden, weight, labels, loss_rows=torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_a_frozen_head_gets_no_gradient_and_a_frozen_trunk_neither():
    hidden, weight, labels, _ = _case(6, 3, 7, 1.0)
    both = torch.autograd.grad(eagle_kernels.linear_cross_entropy(hidden, weight, labels), (hidden, weight))
    alone = torch.autograd.grad(eagle_kernels.linear_cross_entropy(hidden, weight.detach(), labels), hidden)
    head = torch.autograd.grad(eagle_kernels.linear_cross_entropy(hidden.detach(), weight, labels), weight)
    torch.testing.assert_close((*alone, *head), both)
    with torch.no_grad():
        assert not eagle_kernels.linear_cross_entropy(hidden, weight, labels).requires_grad


def test_bfloat16_sums_the_weight_gradient_over_chunks_without_losing_small_parts():
    """4096 equal rows in chunks of 16: a bfloat16 accumulator would stall far below the true sum."""
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    loss = eagle_kernels.linear_cross_entropy(hidden, weight, torch.zeros(4096, dtype=torch.int64), chunk_rows=16)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4096 * math.log(2), rel=1e-5)
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == [-2048.0, 2048.0]


def test_bfloat16_error_is_no_worse_than_the_gradients_of_the_eager_loss():
    hidden, weight, labels, loss_weight = _case(300, 64, 200, 0.8, dtype=torch.bfloat16)
    rows = (labels != -100).nonzero().squeeze(-1)
    wide: Any = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    exact = torch.autograd.grad(naive_linear_cross_entropy(wide[0], wide[1], labels, loss_weight, rows, LossTerms()), wide)
    eager = torch.autograd.grad(
        naive_linear_cross_entropy(hidden, weight, labels, loss_weight, rows, LossTerms()), (hidden, weight)
    )
    loss = eagle_kernels.linear_cross_entropy(hidden, weight, labels, loss_weight=loss_weight, chunk_rows=64)
    ours = torch.autograd.grad(loss, (hidden, weight))
    for truth, theirs, mine in zip(exact, eager, ours, strict=True):
        assert (mine.double() - truth).norm() <= 1.05 * (theirs.double() - truth).norm()


def test_autocast_around_the_call_does_not_change_the_stated_casting():
    hidden, weight, labels, _ = _case(20, 8, 11, 0.5, dtype=torch.float32)
    plain = torch.autograd.grad(eagle_kernels.linear_cross_entropy(hidden, weight, labels), (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = torch.autograd.grad(eagle_kernels.linear_cross_entropy(hidden, weight, labels), (hidden, weight))
    for left, right in zip(plain, cast, strict=True):
        assert torch.equal(left, right)


def test_a_tied_embedding_receives_both_gradients():
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    ids, labels = torch.tensor([1, 2, 3]), torch.tensor([2, 3, -100])
    grad = torch.autograd.grad(eagle_kernels.linear_cross_entropy(table[ids], table, labels), table)
    expected = torch.autograd.grad(F.cross_entropy(table[ids] @ table.T, labels, reduction="sum"), table)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, r"hidden has shape \[1, 4, 3\], expected \[..., hidden\]", {"hidden": torch.zeros(1, 4, 3)}),
        (ValueError, r"weight has shape \[0\].*gathered", {"weight": torch.zeros(0)}),
        (TypeError, "weight is torch.float64 but hidden is torch.float32", {"weight": torch.zeros(5, 3, dtype=torch.float64)}),
        (TypeError, "shift_labels is torch.int32", {"shift_labels": torch.zeros(4, dtype=torch.int32)}),
        (ValueError, r"shift_labels has shape \[3\], expected \[4\]", {"shift_labels": torch.zeros(3, dtype=torch.int64)}),
        (ValueError, "shift_labels holds values from 0 to 5, outside", {"shift_labels": torch.tensor([0, 5, -100, 1])}),
        (ValueError, "shift_labels is on meta", {"shift_labels": torch.zeros(4, dtype=torch.int64, device="meta")}),
        (TypeError, "loss_weight has dtype torch.int64", {"loss_weight": torch.ones(4, dtype=torch.int64)}),
        (ValueError, "loss_weight has shape", {"loss_weight": torch.ones(1)}),
        (ValueError, "loss_weight requires grad", {"loss_weight": torch.ones(4, requires_grad=True)}),
        (TypeError, "loss_rows must be", {"loss_rows": torch.tensor([0], dtype=torch.int32)}),
        (ValueError, "loss_rows lists 1 rows but shift_labels supervises 2", {"loss_rows": torch.tensor([0])}),
        (ValueError, "softcap", {"softcap": 0.0}),
        (ValueError, "z_loss", {"z_loss": -0.1}),
        (ValueError, "label_smoothing", {"label_smoothing": 1.0}),
        (ValueError, "chunk_rows", {"chunk_rows": 0}),
    ],
)
def test_wrong_arguments_are_errors_that_name_the_argument(error, match, change):
    arguments = {"hidden": torch.zeros(4, 3), "weight": torch.zeros(5, 3), "shift_labels": torch.tensor([0, -100, 4, -100])}
    with pytest.raises(error, match=match):
        eagle_kernels.linear_cross_entropy(**(arguments | change))


@pytest.mark.parametrize("weighted", [True, False])
def test_a_row_listed_against_its_ignored_label_counts_nothing(weighted):
    """On an accelerator the list is trusted, so this row reaches the loop."""
    hidden, weight, labels, loss_weight = (tensor.detach() for tensor in _case(9, 4, 7, 0.5))
    loss_weight = loss_weight if weighted else None
    kept = (labels != -100).nonzero().squeeze(-1)
    request = Request(True, True, several=True, chunk_rows=2)
    expected = form(hidden, weight, labels, loss_weight, kept, LossTerms(), request)
    found = form(hidden, weight, labels, loss_weight, torch.arange(9), LossTerms(), request)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.grad_hidden, expected.grad_hidden)
    torch.testing.assert_close(found.grad_weight, expected.grad_weight)


@settings(deadline=None, max_examples=12)
@given(
    tokens=st.integers(0, 9),
    vocab=st.sampled_from([1, 5, 300]),
    supervised=st.sampled_from([0.0, 0.5, 1.0]),
    chunk_rows=st.sampled_from([2, 30]),
    weighted=st.booleans(),
    options=st.sampled_from([{}, {"softcap": 2.5}, {"z_loss": 0.01, "label_smoothing": 0.2}, {"softcap": 3.0, "z_loss": 0.1}]),
)
def test_the_kernel_equals_the_float64_truth(device, tokens, vocab, supervised, chunk_rows, weighted, options):
    hidden, weight, labels, loss_weight = _case(tokens, 6, vocab, supervised, tokens, torch.float32)
    rows = (labels != -100).nonzero().squeeze(-1)
    wide: Any = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    terms = LossTerms(**options)
    expected = naive_linear_cross_entropy(wide[0], wide[1], labels, loss_weight if weighted else None, rows, terms)
    truth = (expected, *torch.autograd.grad(3 * expected, wide))
    moved: Any = [tensor.detach().to(device).requires_grad_() for tensor in (hidden, weight)]
    with use_implementation("triton"):
        loss = eagle_kernels.linear_cross_entropy(
            moved[0],
            moved[1],
            labels.to(device),
            loss_weight=loss_weight.to(device) if weighted else None,
            loss_rows=rows,
            chunk_rows=chunk_rows,
            **options,
        )
        found = (loss, *torch.autograd.grad(3 * loss, moved))
    for mine, right in zip(found, truth, strict=True):
        torch.testing.assert_close(mine.double().cpu(), right, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("several", [True, False])
def test_the_registered_operator_passes_opcheck(device, several):
    hidden, weight, labels, loss_weight = _case(5, 3, 7, 0.6, dtype=torch.float32)
    rows = None if several else (labels != -100).nonzero().squeeze(-1).to(device)
    arguments: Any = [tensor.detach().to(device).requires_grad_() for tensor in (hidden, weight)]
    arguments += [labels.to(device), loss_weight.to(device), rows, 3.0, 0.01, 0.1, -100, True, True, several, 2 if several else 9]
    with use_implementation("triton"):
        torch.library.opcheck(torch.ops.eagle_kernels.linear_cross_entropy.default, tuple(arguments))


@pytest.mark.parametrize("rows_given", [True, False])
@pytest.mark.parametrize("chunk_rows", [2, 64])
def test_it_compiles_as_one_graph_and_equals_eager(device, rows_given, chunk_rows):
    hidden, weight, labels, _ = _case(9, 4, 11, 0.6, dtype=torch.float32)
    rows = (labels != -100).nonzero().squeeze(-1).to(device) if rows_given else None
    moved: Any = [tensor.detach().to(device).requires_grad_() for tensor in (hidden, weight)]

    def loss(hidden, weight, labels, rows):
        return eagle_kernels.linear_cross_entropy(hidden, weight, labels, loss_rows=rows, chunk_rows=chunk_rows) / 3

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(moved[0], moved[1], labels.to(device), rows), moved)
    found = torch.autograd.grad(compiled(moved[0], moved[1], labels.to(device), rows), moved)
    torch.testing.assert_close(found, expected)


def test_leading_dimensions_are_joined():
    hidden, weight, labels, loss_weight = _case(12, 3, 7, 0.7)
    expected = eagle_kernels.linear_cross_entropy(hidden, weight, labels, loss_weight=loss_weight)
    found = eagle_kernels.linear_cross_entropy(
        hidden.view(3, 4, 3), weight, labels.view(3, 4), loss_weight=loss_weight.view(3, 4)
    )
    torch.testing.assert_close(found, expected)


def _sharded_rank(rank, ranks, folder, implementation):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    hidden, weight, labels, loss_weight = _case(11, 4, 10, 0.7, dtype=torch.float32)
    begin, end = (0, 7) if rank == 0 else (7, 10)
    group: Any = dist.group.WORLD
    shard = eagle_kernels.VocabShard(group, begin, 10)
    mine = weight.detach()[begin:end].clone().requires_grad_()
    options = {"softcap": 3.0, "z_loss": 0.02, "label_smoothing": 0.1, "loss_weight": loss_weight}
    for chunk_rows in (3, 64):
        with use_implementation(implementation):
            whole = eagle_kernels.linear_cross_entropy(hidden, weight, labels, chunk_rows=chunk_rows, **options)
            loss = eagle_kernels.linear_cross_entropy(hidden, mine, labels, chunk_rows=chunk_rows, vocab_shard=shard, **options)
            expected = torch.autograd.grad(whole, (hidden, weight))
            found = torch.autograd.grad(loss, (hidden, mine))
        torch.testing.assert_close(loss, whole)
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1][begin:end])
    dist.destroy_process_group()


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="spawned ranks use the interpreter on the CPU")
def test_a_vocabulary_sharded_over_two_ranks_gives_the_loss_and_gradients_of_one(tmp_path, implementation):
    start_processes(_sharded_rank, (2, tmp_path, implementation), nprocs=2, start_method="fork")


def test_a_shard_that_does_not_fit_the_vocabulary_is_refused():
    shard = eagle_kernels.VocabShard(None, 4, 8)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="vocab_shard places the 5 rows of weight at 4 of a vocabulary of 8"):
        eagle_kernels.linear_cross_entropy(
            torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, dtype=torch.int64), vocab_shard=shard
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="bfloat16 needs a GPU: the interpreter truncates it")
@pytest.mark.parametrize("chunk_rows", [128, 4096])
def test_on_a_gpu_bfloat16_error_is_no_worse_than_that_of_the_eager_loss(chunk_rows):
    hidden, weight, labels, loss_weight = _case(700, 128, 5000, 0.6, dtype=torch.bfloat16)
    arguments: Any = [tensor.detach().cuda().requires_grad_() for tensor in (hidden, weight)]
    labels, loss_weight = labels.cuda(), loss_weight.cuda()
    rows = (labels != -100).nonzero().squeeze(-1)
    wide: Any = [tensor.detach().double().requires_grad_() for tensor in arguments]
    exact = naive_linear_cross_entropy(wide[0], wide[1], labels, loss_weight, rows, LossTerms())
    eager = naive_linear_cross_entropy(arguments[0], arguments[1], labels, loss_weight, rows, LossTerms())
    loss = eagle_kernels.linear_cross_entropy(
        arguments[0], arguments[1], labels, loss_weight=loss_weight, loss_rows=rows, chunk_rows=chunk_rows
    )
    triples = zip(
        (exact, *torch.autograd.grad(exact / 300, wide)),
        (eager, *torch.autograd.grad(eager / 300, arguments)),
        (loss, *torch.autograd.grad(loss / 300, arguments)),
        strict=True,
    )
    for place, (truth, theirs, mine) in enumerate(triples):
        error, allowed = (mine.double() - truth).norm(), 1.05 * (theirs.double() - truth).norm()
        # The loss itself is one float32 number, whose rounding decides below 1e-6 of it.
        assert error <= max(allowed, 1e-6 * truth.abs().sum() if place == 0 else 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: asks whether the host waits for it")
def test_with_loss_rows_the_host_never_waits_for_the_accelerator_and_a_listed_ignored_row_counts_nothing():
    hidden, weight, labels, loss_weight = _case(40, 8, 13, 0.5)
    supervised = (labels != -100).nonzero().squeeze(-1)
    expected = naive_linear_cross_entropy(hidden, weight, labels, loss_weight, supervised, LossTerms())
    truth = torch.autograd.grad(expected, (hidden, weight))
    moved: Any = [tensor.detach().cuda().requires_grad_() for tensor in (hidden, weight)]
    labels, loss_weight = labels.cuda(), loss_weight.cuda()
    mode = torch.cuda.get_sync_debug_mode()
    for rows in (supervised, torch.arange(40)):
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = eagle_kernels.linear_cross_entropy(
                moved[0], moved[1], labels, loss_weight=loss_weight, loss_rows=rows, chunk_rows=7
            )
            grads = torch.autograd.grad(loss, moved)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        torch.testing.assert_close(loss.cpu(), expected)
        torch.testing.assert_close([grad.cpu() for grad in grads], list(truth))
