"""The pool of gloo processes: reuse, growth, and a named rank whenever one raises, dies or hangs."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from eagle_parallel.testing import Pool, run_ranks

LAST = "rank 1 of 2"


def who_am_i():
    return dist.get_rank(), dist.get_world_size(), os.getpid()


def sum_over_ranks(factor, tensor):
    total = tensor * (dist.get_rank() + 1)
    dist.all_reduce(total)
    return total * factor


def leave_the_group():
    dist.destroy_process_group()


def raise_on_the_last_rank():
    print("a line that the rank printed", flush=True)
    if dist.get_rank() == dist.get_world_size() - 1:
        raise KeyError("a marker of this failure")
    dist.barrier()


def die_on_the_last_rank():
    if dist.get_rank() == dist.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def exit_on_the_first_rank():
    if dist.get_rank() == 0:
        os._exit(7)
    dist.barrier()


def sleep_on_the_last_rank():
    if dist.get_rank() == dist.get_world_size() - 1:
        time.sleep(600)
    dist.barrier()


def leave_out_a_collective():
    if dist.get_rank() == 0:
        dist.barrier()


def return_a_function():
    return lambda: None


_AT_EXIT = []


def die_after_the_work():
    class Bomb:
        def __del__(self):
            os._exit(3)

    _AT_EXIT.append(Bomb())


def test_processes_are_reused_by_later_jobs_and_a_larger_world_adds_to_them():
    with Pool() as pool:
        first = pool.run(__file__, "who_am_i", 2)
        again = pool.run(__file__, "who_am_i", 2)
        larger = pool.run(__file__, "who_am_i", 3)
        smaller = pool.run(__file__, "who_am_i", 1)
        processes = pool.processes
    assert first == again == [(0, 2, processes[0]), (1, 2, processes[1])]
    assert larger == [(rank, 3, processes[rank]) for rank in range(3)]
    assert smaller == [(0, 1, processes[0])]
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_arguments_and_tensors_travel_both_ways_over_every_world():
    found = run_ranks(__file__, "sum_over_ranks", (1, 2, 3), arguments=(10, torch.tensor([1.0, 2.0])))
    for world, results in found.items():
        total = 10 * world * (world + 1) / 2
        assert [result.tolist() for result in results] == [[total, 2 * total]] * world


def test_a_function_may_leave_the_group_itself():
    assert run_ranks(__file__, "leave_the_group", (2,)) == {2: [None, None]}


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        ("raise_on_the_last_rank", RuntimeError, f"(?s){LAST} raised:.*a marker of this failure.*a line that the rank printed"),
        ("die_on_the_last_rank", RuntimeError, f"{LAST} died with signal SIGKILL"),
        ("exit_on_the_first_rank", RuntimeError, "rank 0 of 2 died with exit code 7"),
        ("sleep_on_the_last_rank", TimeoutError, "(?s)rank 1 hangs and rank 0 waits for it in a.*in sleep_on_the_last_rank"),
        ("leave_out_a_collective", RuntimeError, "(?s)rank 0 of 2 raised:.*in barrier"),
        ("return_a_function", RuntimeError, "(?s)of 2 raised:.*return_a_function"),
        ("no_such_function", RuntimeError, "(?s)of 2 raised:.*no_such_function"),
    ],
)
def test_a_rank_that_fails_is_named_ends_the_others_and_leaves_a_working_pool(function, error, match):
    start = time.monotonic()
    with pytest.raises(error, match=match):
        run_ranks(__file__, function, (2,), seconds=3.0)
    assert time.monotonic() - start < 12.0
    assert [rank for rank, _, _ in run_ranks(__file__, "who_am_i", (2,))[2]] == [0, 1]


def test_a_file_that_cannot_be_imported_shows_its_traceback(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise ValueError('a marker of the import')")
    with pytest.raises(RuntimeError, match=r"(?s)broken\.py cannot be imported by the ranks.*a marker of the import"):
        run_ranks(broken, "anything", (1,))


def test_fresh_processes_belong_to_one_run_and_must_end_well():
    mine = {process for _, _, process in run_ranks(__file__, "who_am_i", (2,), fresh=True)[2]}
    later = {process for _, _, process in run_ranks(__file__, "who_am_i", (2,))[2]}
    assert not mine & later
    with pytest.raises(RuntimeError, match="rank 0 ended with exit code 3 after its work"):
        run_ranks(__file__, "die_after_the_work", (1,), fresh=True)


def test_worlds_must_be_positive():
    with pytest.raises(ValueError, match="worlds must hold positive world sizes"):
        run_ranks(__file__, "who_am_i", ())
