"""Real gloo processes: gather, sharding and the loss over 1 to 4 ranks equal one process in float64."""

import pytest
import torch
import torch.distributed as dist
from eagle_parallel import (
    cp_attention,
    gather,
    global_loss,
    global_normaliser,
    init_mesh,
    make_plan,
    normalise_loss,
    shard_batch,
    varlen_attention,
)
from eagle_parallel.testing import run_ranks

WORLDS = (1, 2, 3, 4)


def _tiny_step(world_mesh, packs, weights):
    """Two micro-batches a data-parallel rank of a one-layer attention model; gradients averaged over the world as DDP does."""
    torch.manual_seed(0)
    table = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    mesh = world_mesh
    local_sums, shards = [], []
    for step in range(2):
        borders, ids = packs[2 * mesh.dp_rank + step]
        plan = make_plan(borders, mesh, layout="zigzag")
        batch = {
            "input_ids": ids[None],
            "shift_labels": ids.roll(-1)[None],
            "loss_weight": weights[2 * mesh.dp_rank + step][None],
        }
        shards.append((plan, shard_batch(batch, plan, mesh.cp_rank)))
        local_sums.append(float(shards[-1][1]["loss_weight"].sum()))
    normaliser = global_normaliser(local_sums, mesh)
    losses = []
    for plan, shard in shards:
        hidden = table[shard["input_ids"][0]]
        mixed = cp_attention(hidden[:, None], hidden[:, None], hidden[:, None], plan, mesh)[:, 0]
        rows = torch.nn.functional.cross_entropy(mixed @ table.T, shard["shift_labels"][0], reduction="none")
        losses.append((rows * shard["loss_weight"][0]).sum())
        normalise_loss(losses[-1], normaliser, averaged_over=mesh.world).backward()
    grad = table.grad
    assert grad is not None
    if mesh.world > 1:
        dist.all_reduce(grad)
    return normaliser, global_loss([loss.item() for loss in losses], normaliser, mesh), grad / mesh.world


def _packs(seed=0):
    """Four packs of different lengths; tokens weigh the square root of one over their document's length, some weigh nothing."""
    generator = torch.Generator().manual_seed(seed)
    packs, weights = [], []
    for borders in ((0, 5, 12), (0, 9), (0, 1, 2, 8), (0, 17)):
        packs.append((borders, torch.randint(11, (borders[-1],), generator=generator)))
        lengths = torch.tensor(borders).diff()
        weight = lengths.to(torch.float64).rsqrt().repeat_interleave(lengths)
        weights.append(weight * (torch.rand(borders[-1], generator=generator) < 0.8))
    return packs, weights


def training_on_rank():
    """The step at every context-parallel size that divides this world into one or two data-parallel ranks."""
    world = dist.get_world_size()
    packs, weights = _packs()
    results = {}
    for dp in (1, 2):
        if world % dp == 0:
            results[dp] = _tiny_step(init_mesh(cp=world // dp), packs, weights)
    mesh = init_mesh(cp=world)
    whole = global_normaliser(7.0, mesh, group="dp")
    rows = torch.arange(10, dtype=torch.float64)[:, None].repeat(1, 2)
    plan = make_plan((0, 3, 10), mesh, layout="zigzag")
    local = shard_batch({"x": rows.clone()}, plan, mesh.cp_rank, token_dims={"x": 0})["x"].requires_grad_()
    joined = gather(local, plan, mesh)
    (joined * rows).sum().backward()
    integers = gather(plan.local_index(mesh.cp_rank)[None], plan, mesh, dim=1)
    return results, whole, torch.equal(joined, rows), torch.equal(local.grad, world * local.detach()), integers.tolist()


_KEPT = []


def keep_a_mesh_until_the_interpreter_ends():
    _KEPT.append(init_mesh(cp=dist.get_world_size()))
    total = global_normaliser(1.0, _KEPT[-1])
    dist.destroy_process_group()
    try:
        global_normaliser(1.0, _KEPT[-1])
    except ValueError as error:
        return total, str(error)


def raise_on_the_last_rank():
    if dist.get_rank() == dist.get_world_size() - 1:
        raise KeyError("a marker of this failure")
    dist.barrier()


@pytest.fixture(scope="module")
def training():
    return run_ranks(__file__, "training_on_rank", WORLDS)


@pytest.mark.parametrize("world", WORLDS)
def test_loss_and_gradient_of_a_step_do_not_depend_on_ranks_or_on_who_holds_what(training, world):
    """One process that takes all packs as one big sum is the truth, for one and two data-parallel ranks."""
    packs, weights = _packs()
    for dp in training[world][0][0]:
        torch.manual_seed(0)
        table = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
        total = torch.zeros((), dtype=torch.float64)
        for (borders, ids), weight in list(zip(packs, weights, strict=True))[: 2 * dp]:
            hidden = table[ids][:, None]
            mixed = varlen_attention(hidden, hidden, hidden, borders)[0][:, 0]
            total = total + (torch.nn.functional.cross_entropy(mixed @ table.T, ids.roll(-1), reduction="none") * weight).sum()
        normaliser = float(torch.cat(weights[: 2 * dp]).sum())
        (truth,) = torch.autograd.grad(total / normaliser, table)
        for rank in training[world]:
            found_normaliser, found_loss, grad = rank[0][dp]
            assert found_normaliser == pytest.approx(normaliser, rel=1e-14)
            assert found_loss == pytest.approx(total.item() / normaliser, rel=1e-13)
            torch.testing.assert_close(grad, truth, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("world", WORLDS)
def test_weights_of_whole_packs_are_not_counted_once_for_each_context_parallel_rank(training, world):
    assert [rank[1] for rank in training[world]] == [7.0] * world


@pytest.mark.parametrize("world", WORLDS)
def test_gather_undoes_shard_batch_and_its_backward_sums_over_ranks(training, world):
    for rank in training[world]:
        assert rank[2]
        assert rank[3]
        assert rank[4] == [list(range(10))]


def test_a_mesh_kept_after_the_shutdown_says_so_and_lets_the_process_end():
    """A gloo group that Python still holds when the interpreter ends aborts the process (seen with torch 2.13)."""
    for total, message in run_ranks(__file__, "keep_a_mesh_until_the_interpreter_ends", (2,), seconds=60, fresh=True)[2]:
        assert total == 2.0
        assert "no live process group for axis 'dp_cp'" in message


def test_a_failing_rank_ends_the_others_and_is_named():
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2 raised.*a marker of this failure"):
        run_ranks(__file__, "raise_on_the_last_rank", (2,), seconds=60)
