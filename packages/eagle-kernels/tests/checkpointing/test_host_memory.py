"""The pool of host bytes: exact, bounded, without overlap, and no larger than the largest sum ever in use at one time."""

import copy
import os
import pickle
import threading

import pytest
import torch
from eagle_kernels.checkpointing import HostMemory, HostMemoryExceeded
from eagle_kernels.checkpointing.host_memory import available_memory
from hypothesis import given, settings
from hypothesis import strategies as st

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5000)), max_size=40))
def test_blocks_never_overlap_and_registered_bytes_are_the_peak_of_the_bytes_in_use(steps):
    memory = HostMemory(limit=1 << 30)
    alive = []
    peak = 0
    for index, (drop, size) in enumerate(steps):
        if drop and alive:
            del alive[size % len(alive)]
        else:
            block = memory.take(size, CPU)
            for piece in block.pieces:
                piece.fill_(index)
            alive.append((index, size, block))
        in_use = sum(size for _, size, _ in alive)
        peak = max(peak, in_use)
        block = None
        assert memory.bytes_in_use == in_use
        assert memory.bytes_registered == memory.peak_bytes == peak
    for index, size, block in alive:
        assert block.nbytes == size
        assert all((piece == index).all() for piece in block.pieces)


def test_memory_given_back_in_parts_serves_a_larger_block_without_registering_more():
    memory = HostMemory(limit=100)
    parts = [memory.take(10, CPU) for _ in range(10)]
    parts.clear()
    whole = memory.take(100, CPU)
    assert whole.nbytes == memory.bytes_registered == 100


def test_neighbours_that_are_given_back_are_one_piece_again():
    memory = HostMemory(limit=100)
    block = memory.take(100, CPU)
    del block
    parts = [memory.take(size, CPU) for size in (30, 50, 20)]
    assert [len(part.pieces) for part in parts] == [1, 1, 1]
    del parts[1], parts[0], parts[0]
    assert len(memory.take(100, CPU).pieces) == 1


def test_past_the_bound_the_error_tells_the_numbers_and_nothing_has_changed():
    memory = HostMemory(limit=100)
    block = memory.take(60, CPU)
    with pytest.raises(HostMemoryExceeded, match=r"41 bytes.*60 are in use.*host_limit is 100") as caught:
        memory.take(41, CPU)
    assert (caught.value.needed, caught.value.in_use, caught.value.limit) == (41, 60, 100)
    assert isinstance(caught.value, MemoryError)
    assert (memory.bytes_in_use, memory.bytes_registered) == (60, 60)
    rest = memory.take(40, CPU)
    assert block.nbytes + rest.nbytes == memory.bytes_in_use == 100


def test_the_error_survives_pickle_and_copy():
    error = HostMemoryExceeded(3, 2, 1)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(twin), twin.needed) == (str(error), 3)


def test_release_gives_back_what_no_block_uses():
    memory = HostMemory(limit=100)
    kept, dropped = memory.take(30, CPU), memory.take(20, CPU)
    del dropped
    memory.release()
    assert memory.bytes_registered == 30
    del kept
    memory.release()
    assert memory.bytes_registered == memory.bytes_in_use == 0
    assert memory.take(100, CPU).nbytes == 100


def test_a_block_outlives_its_pool():
    block = HostMemory(limit=100).take(10, CPU)
    block.pieces[0].fill_(7)
    assert block.pieces[0].tolist() == [7] * 10


def test_devices_share_the_bound_and_not_the_memory():
    memory = HostMemory(limit=100)
    first = memory.take(60, CPU)
    del first
    with pytest.raises(HostMemoryExceeded):
        memory.take(60, torch.device("cpu", 0))


def test_threads_may_take_and_drop_at_the_same_time():
    memory = HostMemory(limit=1 << 20)
    wrong = []

    def work(mark):
        for step in range(200):
            block = memory.take(1 + (step * 37) % 101, CPU)
            for piece in block.pieces:
                piece.fill_(mark)
            if not all((piece == mark).all() for piece in block.pieces):
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert memory.bytes_in_use == 0
    assert memory.bytes_registered <= 2 * 4 * 101  # a thread takes its next block before it drops the last


def test_without_a_limit_the_ranks_of_a_machine_share_what_is_available(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    limit = HostMemory().limit
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < limit <= 0.8 * total / 4
    assert limit == pytest.approx(0.8 * available_memory() / 4, rel=0.5)
