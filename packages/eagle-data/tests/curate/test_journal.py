"""The journal keeps every answer through kills, and says so when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from eagle_data.curate.journal import Journal, Usage
from eagle_data.errors import EagleDataError


def test_answers_are_found_again_and_spoiled_ones_are_paid_for(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.finish("a", "caption", "v@0-1", {"brief": "Grüße\n"}, Usage(10, 2))
        journal.spoil("b", "caption", "v@1-2", "no JSON", "is none", Usage(5, 1))
        assert "a" in journal
        assert "b" not in journal
    with Journal(path) as journal:
        assert journal.answer("a") == {"brief": "Grüße\n"}
        assert journal.answer("b") is None
        assert (journal.spent, journal.requests, len(journal)) == (Usage(15, 3), 2, 1)
        journal.finish("b", "caption", "v@1-2", [1], Usage(1, 1))
        assert journal.answer("b") == [1]
        assert journal.answer("a") == {"brief": "Grüße\n"}


def test_a_line_cut_off_anywhere_costs_that_line_only(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.finish("a", "k", "u", 1, Usage(1, 1))
        whole = path.stat().st_size
        journal.finish("b", "k", "u", 2, Usage(1, 1))
    data = path.read_bytes()
    for length in range(whole, len(data)):
        path.write_bytes(data[:length])
        with Journal(path) as journal:
            assert (journal.answer("a"), journal.answer("b")) == (1, None)
            journal.finish("c", "k", "u", 3, Usage(1, 1))
        assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_a_damaged_line_in_the_midst_is_named(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.finish("a", "k", "u", 1, Usage())
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(EagleDataError, match=r"journal.jsonl:1: is no line of a journal .* remove that line"):
        Journal(path)


def test_a_second_process_is_refused_and_a_later_one_is_not(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    code = f"from eagle_data.curate.journal import Journal\nfrom pathlib import Path\nJournal(Path({str(path)!r}))"
    with Journal(path):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "another run is writing it" in second.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_threads_write_whole_lines(tmp_path: Path):
    with Journal(tmp_path / "j") as journal:

        def write(number: int) -> None:
            for i in range(25):
                journal.finish(f"{number}-{i}", "k", "u", "x" * (number * 50), Usage(1, 2))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(journal.answer(f"{number}-{i}") == "x" * (number * 50) for number in range(8) for i in range(25))
    with Journal(tmp_path / "j") as journal:
        assert (len(journal), journal.spent) == (200, Usage(200, 400))
