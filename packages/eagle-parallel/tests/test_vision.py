"""Vision over 1 to 4 gloo ranks: loss and every gradient of tower, connector and language model equal one process in float64."""

from collections import Counter
from itertools import accumulate

import pytest
import torch
import torch.distributed as dist
from eagle_parallel import cp_attention, gather, global_loss, global_normaliser, init_mesh, make_plan, normalise_loss, shard_batch
from eagle_parallel.mesh import Mesh
from eagle_parallel.testing import run_ranks
from eagle_parallel.vision import dummy_unit, local_units, scatter_vision
from eagle_parallel.vision_plan import make_vision_plan
from torch import nn

WORLDS = (1, 2, 3, 4)
HIDDEN, PIXELS, IMAGE = 6, 5, 0
# Document lengths, then (first token, tokens) of every unit: no picture, one, fewer than ranks, many, all tokens visual.
PACKS = {
    "none": ((7, 5), ()),
    "one": ((9, 4), ((3, 4),)),
    "fewer than ranks": ((13, 6, 1), ((2, 3), (14, 3))),
    "many": ((23, 1, 17, 11), tuple((start, 2) for start in (0, 2, 4, 6, 8, 12, 14, 18, 26, 28, 30, 44, 46))),
    "uneven units": ((19, 8), ((0, 5), (5, 1), (6, 2), (20, 3))),
    "all visual": ((8,), ((0, 4), (4, 4))),
    "one token": ((1,), ()),
}


class Toy(nn.Module):
    """A tower that mixes the patches of a unit, a connector, and a two-layer attention model with a head."""

    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(PIXELS, 8), nn.GELU(), nn.Linear(8, 8))
        self.mlp1 = nn.Linear(8, HIDDEN)
        self.embed = nn.Embedding(11, HIDDEN)
        self.layers = nn.ModuleList(nn.Linear(HIDDEN, 3 * HIDDEN) for _ in range(2))
        self.head = nn.Linear(HIDDEN, 11)

    def encode(self, pixels):
        """[units, tokens, PIXELS] to [units, tokens, HIDDEN]; tokens of a unit see one another."""
        features = self.tower(pixels)
        return self.mlp1(features + features.mean(1, keepdim=True))

    def loss(self, hidden, labels, weights, plan, mesh):
        for layer in self.layers:
            q, k, v = layer(hidden).chunk(3, dim=-1)
            q, k, v = (x.unflatten(-1, (2, 3)) for x in (q, k, v))
            hidden = hidden + cp_attention(q, k, v, plan, mesh).flatten(1)
        rows = nn.functional.cross_entropy(self.head(hidden), labels, reduction="none")
        return (rows * weights).sum()


def _toy():
    torch.manual_seed(0)
    return Toy().double()


def _pack(name):
    """Batch and pixels; units are padded to the longest and cut again, so a unit may have any number of tokens."""
    lengths, units = PACKS[name]
    generator = torch.Generator().manual_seed(len(name))
    tokens = sum(lengths)
    ids = torch.randint(1, 11, (tokens,), generator=generator)
    for start, count in units:
        ids[start : start + count] = IMAGE
    batch = {
        "input_ids": ids[None],
        "shift_labels": torch.randint(11, (1, tokens), generator=generator),
        "loss_weight": torch.rand(1, tokens, dtype=torch.float64, generator=generator),
    }
    pixels = torch.randn(len(units), 5, PIXELS, dtype=torch.float64, generator=generator)
    return [0, *accumulate(lengths)], batch, pixels, [count for _, count in units]


def _truth(name):
    """One process, all units, plain indexing."""
    borders, batch, pixels, counts = _pack(name)
    model, ids = _toy(), batch["input_ids"][0]
    hidden = model.embed(ids)
    if counts:
        features = model.encode(pixels)
        hidden = hidden.clone()
        hidden[ids == IMAGE] = torch.cat([unit[:count] for unit, count in zip(features, counts, strict=True)])
    loss = model.loss(hidden, batch["shift_labels"][0], batch["loss_weight"][0], make_plan(borders, 1), None)
    loss = loss / batch["loss_weight"].sum()
    loss.backward()
    zeros = {key: torch.zeros_like(value) for key, value in model.named_parameters()}
    return loss.item(), {**zeros, **{key: value.grad for key, value in model.named_parameters() if value.grad is not None}}


def steps_on_rank():
    """Every pack as one optimiser step, gradients averaged over ranks as engines do, with the exchange's traffic."""
    return {(name, layout): _step(name, layout) for name in PACKS for layout in ("zigzag", "contiguous")}


def _step(name, layout):
    mesh = init_mesh(cp=dist.get_world_size())
    borders, batch, pixels, counts = _pack(name)
    plan = make_plan(borders, mesh, layout=layout)
    vision = make_vision_plan(batch["input_ids"] == IMAGE, counts, mesh)
    local = shard_batch(batch, plan, mesh.cp_rank)
    model = _toy()
    own = vision.own_units(mesh.cp_rank)
    features = model.encode(local_units(pixels, vision, mesh.cp_rank))
    rows = [unit[: counts[number]] for unit, number in zip(features, own, strict=False)]
    embeds = model.embed(local["input_ids"])
    hidden = scatter_vision(embeds, torch.cat(rows) if rows else features, vision, plan, mesh)
    total = model.loss(hidden[0], local["shift_labels"][0], local["loss_weight"][0], plan, mesh)
    normaliser = global_normaliser(float(local["loss_weight"].sum()), mesh)
    normalise_loss(total, normaliser, averaged_over=mesh.world).backward()
    missing = [key for key, value in model.named_parameters() if value.grad is None]
    dummy = [] if own else [model.tower[0].weight.grad, model.mlp1.bias.grad]
    silent = all(grad is not None and not grad.any() for grad in dummy)
    grads = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    for grad in grads.values():
        if mesh.world > 1:
            dist.all_reduce(grad)
        grad /= mesh.world
    return global_loss(total, normaliser, mesh), grads, missing, silent


def loading_on_rank():
    """For each pack the units that this rank reads when its loader asks `loads`, and the embeddings of the whole pack."""
    mesh, found = init_mesh(cp=dist.get_world_size()), {}
    for name in PACKS:
        borders, batch, pixels, counts = _pack(name)
        plan, vision, model = (
            make_plan(borders, mesh, layout="zigzag"),
            make_vision_plan(batch["input_ids"] == IMAGE, counts, mesh),
            _toy(),
        )
        read = [unit for unit in range(len(counts)) if vision.loads(unit, mesh.cp_rank)]
        features = model.encode(torch.stack([pixels[unit] for unit in read]) if read else dummy_unit(pixels))
        rows = [unit[: counts[number]] for unit, number in zip(features, read, strict=False)]
        embeds = model.embed(shard_ids(batch, plan, mesh))
        hidden = scatter_vision(embeds, torch.cat(rows) if rows else features, vision, plan, mesh)
        found[name] = read, gather(hidden[0], plan, mesh).detach()
    return found


def collectives_on_rank():
    """Names and sizes of what each rank sends for a pack without pictures and for one with fewer than ranks."""
    mesh, log = init_mesh(cp=dist.get_world_size()), []
    original = dist.all_to_all_single

    def recorded(output, sent, output_splits, input_splits, **options):
        log.append((sum(input_splits), sum(output_splits)))
        return original(output, sent, output_splits, input_splits, **options)

    dist.all_to_all_single = recorded
    try:
        for name in ("none", "fewer than ranks", "many"):
            borders, batch, _, counts = _pack(name)
            plan, vision = make_plan(borders, mesh, layout="zigzag"), make_vision_plan(batch["input_ids"] == IMAGE, counts, mesh)
            rows = torch.randn(max(1, vision.own_tokens(mesh.cp_rank)), 2, dtype=torch.float64, requires_grad=True)
            hidden = scatter_vision(torch.zeros(plan.local_tokens(mesh.cp_rank), 2).double(), rows, vision, plan, mesh)
            hidden.sum().backward()
            log.append((name, vision.own_tokens(mesh.cp_rank), int((shard_ids(batch, plan, mesh) == IMAGE).sum())))
    finally:
        dist.all_to_all_single = original
    return log


def shard_ids(batch, plan, mesh):
    return shard_batch({"input_ids": batch["input_ids"]}, plan, mesh.cp_rank)["input_ids"]


@pytest.fixture(scope="module")
def steps():
    return run_ranks(__file__, "steps_on_rank", WORLDS)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", PACKS)
def test_loss_and_every_gradient_equal_one_process(steps, world, name):
    loss, truth = _truth(name)
    largest = max(float(grad.abs().max()) for grad in truth.values())
    for rank in steps[world]:
        for layout in ("zigzag", "contiguous"):
            found_loss, grads, missing, silent = rank[name, layout]
            assert found_loss == pytest.approx(loss, rel=1e-13)
            assert not missing, "an engine would wait for the gradients of these"
            assert silent, "a dummy unit must not move the tower"
            for key, expected in truth.items():
                bound = 1e-12 * max(float(expected.abs().max()), 1e-3 * largest)
                assert float((grads[key] - expected).abs().max()) <= bound, (layout, key)


@pytest.mark.parametrize("world", [1, 2])
def test_ranks_that_read_only_their_own_units_read_all_of_them_once_and_place_them_right(world):
    ranks = run_ranks(__file__, "loading_on_rank", (world,))[world]
    for name in PACKS:
        _, batch, pixels, counts = _pack(name)
        model, ids = _toy(), batch["input_ids"][0]
        expected = model.embed(ids)
        if counts:
            rows = [unit[:count] for unit, count in zip(model.encode(pixels), counts, strict=True)]
            expected = expected.index_put((ids == IMAGE,), torch.cat(rows))
        assert sorted(unit for rank in ranks for unit in rank[name][0]) == list(range(len(counts)))
        assert all(len(rank[name][0]) < len(counts) for rank in ranks if world > 1 and len(counts) > 1)
        for _, found in (rank[name] for rank in ranks):
            torch.testing.assert_close(found, expected.detach(), rtol=1e-13, atol=1e-14)


def test_every_rank_takes_part_in_every_exchange_and_no_row_travels_twice():
    for world, ranks in run_ranks(__file__, "collectives_on_rank", (2, 4)).items():
        assert all(len(log) == 3 * 3 for log in ranks), "forward and backward of every pack, on every rank"
        traffic = Counter()
        for log in ranks:
            for forward, backward, (name, encoded, needed) in zip(log[::3], log[1::3], log[2::3], strict=True):
                assert (forward, backward) == ((encoded, needed), (needed, encoded))
                traffic[name] += forward[0]
        assert traffic == {name: sum(count for _, count in PACKS[name][1]) for name in traffic}, world


def test_one_process_needs_neither_mesh_nor_communication():
    borders, batch, pixels, counts = _pack("many")
    vision = make_vision_plan(batch["input_ids"] == IMAGE, counts, 1)
    assert torch.equal(local_units(pixels, vision, 0), pixels)
    rows, embeds = torch.randn(sum(counts), 4), torch.randn(1, borders[-1], 4)
    placed = scatter_vision(embeds, rows, vision, make_plan(borders, 1))
    mask = batch["input_ids"] == IMAGE
    assert torch.equal(placed[mask], rows)
    assert torch.equal(placed[~mask], embeds[~mask])


def test_features_take_the_dtype_of_the_embeddings():
    vision = make_vision_plan([True, False], [1], 1)
    placed = scatter_vision(torch.zeros(2, 4, dtype=torch.bfloat16), torch.ones(1, 1, 4), vision, make_plan([0, 2], 1))
    assert placed.dtype == torch.bfloat16
    assert placed.tolist() == [[1] * 4, [0] * 4]


def test_a_rank_without_units_gets_one_of_zeros_of_their_shape_and_dtype():
    vision = make_vision_plan([True], [1], 2)
    units = torch.ones(1, 3, 4, 4, dtype=torch.bfloat16)
    idle = 1 - vision.owner(0)
    for dummy in (local_units(units, vision, idle), dummy_unit(units[:0])):
        assert (dummy.shape, dummy.dtype, dummy.any().item()) == ((1, 3, 4, 4), torch.bfloat16, False)


@pytest.mark.parametrize(
    ("match", "embeds", "features", "ranks", "tokens"),
    [
        (r"features has 3 rows .* but rank 0 encodes 2; pass the features of its own", (1, 4, 5), (3, 5), 1, 4),
        (r"features has 6 channels but embeds has 5", (4, 5), (1, 2, 6), 1, 4),
        (r"embeds has shape \[2, 4, 5\], expected \[4, hidden\]", (2, 4, 5), (2, 5), 1, 4),
        (r"embeds has shape \[3, 5\]", (3, 5), (2, 5), 1, 4),
        ("the vision plan for 2, the mesh for 1; make both plans with this mesh", (4, 5), (2, 5), 2, 4),
        ("fills token 3 but the plan's pack has 3 tokens", (3, 5), (2, 5), 1, 3),
    ],
)
def test_what_does_not_fit_is_an_error_with_the_mend(match, embeds, features, ranks, tokens):
    vision = make_vision_plan([False, False, True, True], [2], ranks)
    with pytest.raises(ValueError, match=match):
        scatter_vision(torch.zeros(embeds), torch.zeros(features), vision, make_plan([0, tokens], 1))


def test_plans_meshes_and_pixels_of_another_pack_are_refused():
    vision, plan = make_vision_plan([True] * 4, [2, 2], 2), make_plan([0, 4], 2)
    with pytest.raises(ValueError, match="pass the mesh it was made for"):
        scatter_vision(torch.zeros(2, 5), torch.zeros(2, 5), vision, plan)
    with pytest.raises(ValueError, match="the mesh for 4"):
        scatter_vision(torch.zeros(2, 5), torch.zeros(2, 5), vision, plan, Mesh(1, 4, 1, rank=0))
    with pytest.raises(ValueError, match="units has 3 entries but the vision plan has 2"):
        local_units(torch.zeros(3, 1), vision, 0)
