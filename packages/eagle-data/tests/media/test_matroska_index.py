"""Matroska blocks: the packets FFmpeg's demuxer gives, without reading payloads; damage is never more than an UnreadableTable."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from eagle_data.errors import MediaError
from eagle_data.media.byte_source import LocalFileSource, MemorySource
from eagle_data.media.matroska_index import read_matroska
from eagle_data.media.packet_table import UnreadableTable
from eagle_data.video import open_video

from ..media_files import write_video
from .test_mp4_index import CountingSource

UNEVEN = list(accumulate(17 + 31 * (i % 5) for i in range(40)))
FILES: dict[str, dict[str, Any]] = {
    "b_frames.mkv": {"options": {"bf": "3", "g": "12"}},
    "sound.mkv": {"options": {"bf": "3", "g": "12"}, "sound": True},
    "uneven.mkv": {"options": {"bf": "3", "g": "12"}, "pts": UNEVEN, "time_base": Fraction(1, 1000)},
    "small_clusters.mkv": {"options": {"g": "12"}, "container_options": {"cluster_size_limit": "300"}},
    "live.mkv": {"options": {"bf": "3", "g": "12"}, "container_options": {"live": "1"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "deadline": "realtime", "cpu-used": "8"}},
}


@pytest.mark.parametrize("name", FILES)
def test_the_blocks_give_the_packets_that_ffmpeg_demuxes(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, 40, **FILES[name])
    table, cut = read_matroska(LocalFileSource(str(path)))
    with av.open(str(path)) as container:
        packets = [(p.pts, p.is_keyframe, bytes(p)) for p in container.demux(video=0) if p.size]
    file = path.read_bytes()
    assert not cut
    assert table.pts.tolist() == [pts for pts, _, _ in packets]
    assert table.keyframe.tolist() == [keyframe for _, keyframe, _ in packets]
    places = zip(table.offset.tolist(), table.size.tolist(), strict=True)
    assert [file[offset : offset + size] for offset, size in places] == [data for _, _, data in packets]


def test_payloads_are_not_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "large.mkv", 60, size=(640, 480), options={"qp": "0"})
    source = CountingSource(str(path))
    table, _ = read_matroska(source)
    assert source.read < 72 * len(table) + 1000 < 0.1 * table.size.sum()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_file_is_told_and_keeps_its_whole_blocks(tmp_path: Path, share: float) -> None:
    whole = write_video(tmp_path / "whole.mkv", 40, options={"g": "12"}).read_bytes()
    data = whole[: int(len(whole) * share)]
    table, cut = read_matroska(MemorySource(data, "cut"))
    assert cut
    assert 0 < len(table) < 40
    assert (table.offset + table.size <= len(data)).all()
    with open_video(data, truncated=True) as video:
        assert video.metadata.frames == len(table)
        assert not video.frames_at(range(len(table))).corrupt.any()


@pytest.mark.parametrize("seed", range(3))
def test_mutated_headers_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    chance = np.random.default_rng(seed)
    whole = write_video(tmp_path / "whole.mkv", 20, options={"g": "12"}, sound=seed == 1).read_bytes()
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for at in chance.integers(0, 900, chance.integers(1, 6)):
            data[at] = (0, 1, 0x7F, 0x80, 0xFF, int(chance.integers(256)))[chance.integers(6)]
        try:
            table, _ = read_matroska(MemorySource(bytes(data), "mutated"))
        except UnreadableTable:
            refused += 1
        else:
            assert len(table.pts) == len(table.offset)
            table.as_index()
    assert refused > 0


def test_a_hole_in_the_middle_is_refused_unless_what_is_there_will_do(tmp_path: Path) -> None:
    path = write_video(tmp_path / "hole.mkv", 60, options={"g": "5", "qp": "0"}, container_options={"cluster_size_limit": "3000"})
    data = bytearray(path.read_bytes())
    with open_video(bytes(data)) as video:
        truth = video.frames_at(range(60)).pixels
    middle = len(data) // 2
    data[middle : middle + len(data) // 10] = bytes(len(data) // 10)
    with pytest.raises(MediaError, match=r"has a hole in it: only \d+ of its frames"):
        open_video(bytes(data))
    with open_video(bytes(data), truncated=True) as video:
        assert 30 < video.metadata.frames < 60
        found = video.frames_at(range(video.metadata.frames))
    numbers = np.round(found.seconds * 25).astype(int)
    assert np.array_equal(found.pixels[~found.corrupt], truth[numbers[~found.corrupt]])
