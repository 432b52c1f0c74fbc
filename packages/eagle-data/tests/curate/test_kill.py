"""Runs that are killed anywhere go on without asking again for anything that the journal had, and end with the same samples."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from .chat_server import ChatServer, chat_server
from .scene_files import write_scenes

CONCURRENCY = 3


def start(folder: Path) -> subprocess.Popen[bytes]:
    code = "from eagle_data.cli import main; main()"
    command = [sys.executable, "-c", code, "curate", str(folder / "recipe.yaml"), "--out", str(folder / "out")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def seals(journal: Path) -> set[str]:
    """The digests of all bodies whose answers lie whole in the journal."""
    if not journal.exists():
        return set()
    whole = [line for line in journal.read_bytes().split(b"\n")[:-1] if line]
    return {seal for line in whole for seal in re.findall(r"seal ([0-9a-f]{12})", json.dumps(json.loads(line)["answer"]))}


def kill_after(answers: int, folder: Path, server: ChatServer) -> bool:
    """Start a run and kill it when so many more answers are in the journal; False when it ended before."""
    journal = folder / "out" / "journal.jsonl"
    before = len(seals(journal))
    process = start(folder)
    while process.poll() is None:
        if len(seals(journal)) >= before + answers:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.002)
    output = process.communicate()
    assert process.returncode == 0, output
    return False


def check_kills(folder: Path, kills: int, seed: int) -> None:
    write_scenes(folder / "media" / "one.mp4", range(10, 18))
    recipe = {
        "videos": ["media"],
        "root": "media",
        "clips": {"seconds": 2},
        "clip_level": {"questions": 3},
        "story_level": {"chapters": "chapters.jsonl", "questions": 3},
    }
    parts = [{"start": 4 * i, "end": 4 * i + 4, "title": f"Part {i}"} for i in range(4)]
    (folder / "chapters.jsonl").write_text(json.dumps({"video": "one.mp4", "chapters": parts}))
    chance = random.Random(seed)
    requests = 8 * 2 + 4 + 1
    with chat_server(delay=0.05) as server:
        recipe["endpoint"] = {"url": server.url, "model": "small", "concurrency": CONCURRENCY}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        killed = 0
        for _ in range(kills):
            if not kill_after(chance.randrange(0, 5), folder, server):
                break
            killed += 1
            time.sleep(0.1)  # what was under way at the server ends
            done, asked = seals(folder / "out" / "journal.jsonl"), len(server.asked)
            again = start(folder)
            time.sleep(chance.uniform(0.0, 0.6))
            again.kill()
            again.communicate()
            assert not done & set(server.asked[asked:]), "a finished answer was paid for again"
        assert killed >= min(kills, 3)
        assert not kill_after(10_000, folder, server)
        assert server.wrong == []
        assert len(server.counts) == requests
        assert len(server.asked) <= requests + 2 * killed * CONCURRENCY
        asked = len(server.asked)
        samples = (folder / "out" / "clips.jsonl").read_text()
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        process = start(folder)
        process.communicate()
        assert (process.returncode, len(server.asked)) == (0, asked)
        assert (folder / "out" / "clips.jsonl").read_text() == samples
    report = json.loads((folder / "out" / "report.json").read_text())
    assert (report["captioned"], report["stories"], report["requests"]) == (8, 1, requests)


def test_the_server_counts_no_request_that_was_cut_while_it_was_sent():
    with chat_server() as server:
        host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
        for body, asked in ((b"{}", 0), (b"{}" + b" " * 98, 1)):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n" + body)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
            assert len(server.asked) == asked


def test_killed_runs_pay_for_nothing_twice(tmp_path: Path):
    check_kills(tmp_path, kills=3, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 6))
def test_runs_killed_ten_times_pay_for_nothing_twice(seed: int, tmp_path: Path):
    check_kills(tmp_path, kills=10, seed=seed)
