"""Under DeepSpeed ZeRO-3 an applied model trains as the unmodified one does alone: every weight is gathered where it is read."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RANKS = 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="two ranks on the CPU")
@pytest.mark.parametrize("case", ["applied", "everything"])
def test_two_ranks_reach_the_weights_of_the_unmodified_model(case):
    pytest.importorskip("deepspeed", reason="ZeRO-3 is DeepSpeed's")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("train_rank.py")), case]
    ranks = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(RANKS)
    ]
    try:
        told = [rank.communicate(timeout=200)[0].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(told)[-4000:]
