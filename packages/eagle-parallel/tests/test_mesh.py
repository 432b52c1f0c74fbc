"""The mesh as integers: groups of every axis, coordinates, and errors that give the sizes that would fit."""

import pytest
from eagle_parallel import Mesh, init_mesh
from eagle_parallel.mesh import AXES, mesh_sizes
from hypothesis import given, settings
from hypothesis import strategies as st

meshes = st.builds(Mesh, dp=st.integers(1, 4), cp_ring=st.integers(1, 4), cp_ulysses=st.integers(1, 4), rank=st.just(0))


@pytest.mark.parametrize(
    ("cp", "ulysses", "cp_ulysses", "cp_ring", "dp"),
    [
        (2, 2, ["01", "23", "45", "67"], ["0", "1", "2", "3", "4", "5", "6", "7"], ["0246", "1357"]),
        (4, 4, ["0123", "4567"], ["0", "1", "2", "3", "4", "5", "6", "7"], ["04", "15", "26", "37"]),
        (8, 4, ["0123", "4567"], ["04", "15", "26", "37"], ["0", "1", "2", "3", "4", "5", "6", "7"]),
        (8, 8, ["01234567"], ["0", "1", "2", "3", "4", "5", "6", "7"], ["0", "1", "2", "3", "4", "5", "6", "7"]),
    ],
)
def test_groups_of_eight_ranks_are_those_of_the_published_table(cp, ulysses, cp_ulysses, cp_ring, dp):
    """Appendix A.6."""
    mesh = Mesh(*mesh_sizes(8, cp, ulysses), rank=0)
    found = [["".join(map(str, ranks)) for ranks in groups] for groups in map(mesh.ranks, ("cp_ulysses", "cp_ring", "dp"))]
    assert found == [cp_ulysses, cp_ring, dp]


@settings(deadline=None, max_examples=40)
@given(mesh=meshes, data=st.data())
def test_each_axis_divides_the_world_and_places_each_rank_where_its_coordinates_say(mesh, data):
    rank = data.draw(st.integers(0, mesh.world - 1))
    here = Mesh(mesh.dp, mesh.cp_ring, mesh.cp_ulysses, rank)
    for axis in AXES:
        groups = here.ranks(axis)
        assert sorted(sum(groups, ())) == list(range(here.world))
        assert {len(group) for group in groups} == {here.size(axis)}
    places = (here.dp_rank, here.ring_rank, here.ulysses_rank, here.cp_rank, rank)
    for axis, place in zip(AXES, places, strict=True):
        assert next(group for group in here.ranks(axis) if rank in group).index(rank) == place
    assert rank == (here.dp_rank * here.cp_ring + here.ring_rank) * here.cp_ulysses + here.ulysses_rank


def test_one_process_is_a_mesh_of_one_without_groups():
    mesh = init_mesh()
    assert (mesh.world, mesh.rank, mesh.dp, mesh.cp) == (1, 0, 1, 1)
    assert [mesh.group(axis) for axis in AXES] == [None] * 5


@pytest.mark.parametrize(
    ("world", "cp", "ulysses", "match"),
    [
        (8, 3, 1, r"cp=3 does not divide the 8 running processes; use cp in \{1, 2, 4, 8\}"),
        (8, 4, 3, r"ulysses=3 does not divide cp=4; use ulysses in \{1, 2, 4\}"),
        (8, 0, 1, "cp must be a positive integer, got 0"),
        (8, 2, 1.5, "ulysses must be a positive integer"),
    ],
)
def test_sizes_that_do_not_fit_are_errors_that_list_the_ones_that_would(world, cp, ulysses, match):
    with pytest.raises(ValueError, match=match):
        mesh_sizes(world, cp, ulysses)


def test_more_ranks_than_processes_are_refused():
    with pytest.raises(ValueError, match="cp=2 does not divide the 1 running processes"):
        init_mesh(cp=2)


def test_a_mesh_made_by_hand_has_no_groups_and_says_so():
    with pytest.raises(ValueError, match=r"build it with eagle_parallel\.init_mesh"):
        Mesh(1, 2, 1, rank=0).group("cp")
    with pytest.raises(ValueError, match="axis 'tp' is not an axis"):
        Mesh(1, 2, 1, rank=0).ranks("tp")  # pyright: ignore[reportArgumentType]
