"""Memory of the writer of prepared samples grows by a stated number of bytes a sample, and the index says the same for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from eagle_data import prepared_index
from eagle_data.prepared import PreparedDataset

BYTES_A_SAMPLE = 32
"""For each context length, until a row group of the index is full: 16 of facts, and the allocator's slack. Held as the batches
that were read, facts of these small groups take a hundred bytes and more."""

FEED = """
import hashlib, io, json, os, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from eagle_data.encode import Encoded
from eagle_data.prepared_rows import Row, batches_of
from eagle_data.prepared_writer import Group, PreparedWriter

ids = np.zeros(4, np.int32)
facts, samples = batches_of([Row(number, Encoded(ids, ids, ()), ()) for number in range(32)])
sink = pa.BufferOutputStream()
with pa.ipc.new_stream(sink, facts.schema) as stream:
    stream.write_batch(facts)
stored = sink.getvalue().to_pybytes()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def group(number):
    data = bytes(bytearray(stored))  # each result is read from a file of its own
    digest = hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()
    return Group("a.jsonl", 32 * number, list(pa.ipc.open_stream(data)), lambda: [samples], digest, 1000)

few, many = 1000, 5000
with PreparedWriter(sys.argv[1], [64]) as writer:
    for number in range(many):
        if number == few:
            before = resident()
        writer.add_group(64, group(number))
    print(json.dumps([32 * (many - few), resident() - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="resident memory is read from /proc")
def test_the_writer_keeps_few_bytes_a_sample(tmp_path: Path):
    found = subprocess.run([sys.executable, "-c", FEED, str(tmp_path)], check=True, stdout=subprocess.PIPE, text=True)
    rows, grown = json.loads(found.stdout)
    assert rows < prepared_index._INDEX_ROWS, "a row group that is written would hide what is kept"
    assert grown < BYTES_A_SAMPLE * rows
    dataset = PreparedDataset(tmp_path, 64)
    assert len(dataset) == 160_000
    assert [dataset.where(row) for row in (0, 33, 159_999)] == ["a.jsonl:0", "a.jsonl:33", "a.jsonl:159999"]
