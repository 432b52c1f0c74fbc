"""`cp_attention` over ranks that share one GPU: exactness in bfloat16, bits, host synchronisation and memory.

Ranks are threads (`parallel_bench.thread_ranks`); what NCCL does between two GPUs is not tested here. On a CPU the same tests run
on emulated operators, but for those that need a GPU by nature.
"""

from importlib import import_module

import pytest
import torch
from eagle_parallel import ModelShape, make_plan

bare = import_module("parallel_bench.bare")
exact = import_module("parallel_bench.exact")
emulated = import_module("parallel_bench.emulated")
one_gpu = import_module("parallel_bench.one_gpu")
packs = import_module("parallel_bench.packs")
thread_ranks = import_module("parallel_bench.thread_ranks")

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
LENGTHS = (1537, 33, 700, 2, 1100, 724) if CUDA else (60, 2, 33, 41)
MESHES = [(2, 1, "gather_kv"), (4, 1, "gather_kv"), (1, 2, "gather_kv"), (1, 4, "gather_kv"), (2, 2, "gather_kv")]
MESHES += [(2, 1, "ring"), (4, 1, "ring")]
HEADS = [ModelShape(28, 4, 128), ModelShape(7, 1, 64), ModelShape(14, 2, 64)] if CUDA else [ModelShape(14, 2, 8)]


@pytest.fixture(autouse=True)
def _ranks_on_this_device():
    with thread_ranks.hand_driven():
        if CUDA:
            yield
        else:
            with emulated.emulated_kernels():
                yield


def _pack(heads: ModelShape = HEADS[0], lengths: tuple[int, ...] = LENGTHS):
    return packs.Pack("test", lengths, heads)


@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: f"{heads.query_heads}-{heads.kv_heads}-{heads.head_dim}")
@pytest.mark.parametrize(("ring", "ulysses", "algorithm"), MESHES)
@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
def test_ranks_are_as_exact_as_the_bare_call(kernel, ring, ulysses, algorithm, heads):
    if kernel == "cudnn" and CUDA and (ring * ulysses > 2 or heads != HEADS[0]):
        pytest.skip("cuDNN builds a plan for every shape; two ranks and one shape of heads cover its path")
    pack = _pack(heads, LENGTHS if kernel == "flash" else LENGTHS[-3:])
    tensors = one_gpu.inputs(pack, DEVICE)
    truth = exact.truth_of(tensors, pack.lengths)
    plain = truth.errors(bare.whole(bare.bare_call(kernel, tensors, pack.lengths)()))
    plan = make_plan(pack.borders, (ring, ulysses), heads)
    found, _ = thread_ranks.attention_of_ranks(tensors, plan, algorithm=algorithm, kernel=kernel, head_groups=2)
    allowed = exact.limits(kernel, algorithm, ring, ulysses, heads.kv_heads)
    assert not exact.wrong(truth.errors(found), plain, allowed)


@pytest.mark.parametrize(("ring", "ulysses", "algorithm"), MESHES)
def test_two_runs_give_the_same_bits_in_deterministic_mode(ring, ulysses, algorithm):
    pack = _pack()
    tensors = one_gpu.inputs(pack, DEVICE)
    plan = make_plan(pack.borders, (ring, ulysses))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            thread_ranks.attention_of_ranks(tensors, plan, algorithm=algorithm, kernel="flash", head_groups=2)[0]
            for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(before)
    for name, one, other in zip(exact.NAMES, first, second, strict=True):
        assert torch.isfinite(one).all(), name  # fresh memory is filled with NaN in this mode
        assert torch.equal(one, other), name


@needs_gpu
@pytest.mark.parametrize("ranks", [2, 4])
def test_gathered_attention_has_the_very_bits_of_one_gpu_forward(ranks):
    pack = _pack()
    tensors = one_gpu.inputs(pack, DEVICE)
    plain = bare.whole(bare.bare_call("flash", tensors, pack.lengths)())
    plan = make_plan(pack.borders, ranks)
    found, _ = thread_ranks.attention_of_ranks(tensors, plan, algorithm="gather_kv", kernel="flash")
    assert torch.equal(found[0], plain[0])


@needs_gpu
@pytest.mark.parametrize(
    ("kernel", "ring", "ulysses", "algorithm"),
    [
        *(("flash", 2, 1, "gather_kv"), ("flash", 1, 2, "gather_kv"), ("flash", 2, 2, "gather_kv"), ("flash", 2, 1, "ring")),
        *(("cudnn", 2, 1, "gather_kv"), ("cudnn", 2, 1, "ring")),
    ],
)
def test_a_layer_never_waits_for_the_device(kernel, ring, ulysses, algorithm):
    pack = _pack(lengths=LENGTHS if kernel == "flash" else LENGTHS[-3:])
    tensors = one_gpu.inputs(pack, DEVICE)
    plan = make_plan(pack.borders, (ring, ulysses))
    options = {"algorithm": algorithm, "kernel": kernel}
    _, logs = thread_ranks.attention_of_ranks(tensors, plan, log=True, **options)
    local = thread_ranks.shares(tensors, plan)
    for number in range(plan.cp):
        rank = thread_ranks.alone(ring, ulysses, number, logs[number])
        one_gpu.one_round(rank, plan, local[number], options)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            one_gpu.one_round(rank, plan, local[number], options)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_synchronising_is_noticed():
    """The switch that the test above relies on."""
    found = torch.ones(3, device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            found.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_attention_of_one_rank_of_two_needs_at_most_0_58_of_the_memory_of_a_long_document():
    row = next(one_gpu.memory_rows(_pack(lengths=(131072,)), "flash", DEVICE))
    assert row["value"] <= 0.58, row
