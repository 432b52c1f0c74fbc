"""MP4 tables: the packets FFmpeg's demuxer gives, without reading the media; damage is never more than an UnreadableTable."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from eagle_data.media.byte_source import LocalFileSource, MemorySource
from eagle_data.media.mp4_index import NoVideoTrack, read_mp4
from eagle_data.media.packet_table import PacketTable, UnreadableTable
from hypothesis import given, settings
from hypothesis import strategies as st

from ..media_files import cut_without_reencoding, write_video

B_FRAMES = {"bf": "3", "g": "12"}
FILES: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "plain.mov": {},
    "fast_start.mp4": {"container_options": {"movflags": "faststart"}},
    "sound.mp4": {"sound": True},
    "negative.mp4": {"container_options": {"movflags": "negative_cts_offsets"}},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "dash.mp4": {"container_options": {"movflags": "dash+frag_every_frame"}},
    "hybrid.mp4": {"container_options": {"movflags": "frag_keyframe"}},
}


class CountingSource(LocalFileSource):
    """A file that counts the bytes read of it."""

    read = 0

    def read_at(self, offset: int, length: int) -> bytes:
        data = super().read_at(offset, length)
        self.read += len(data)
        return data


def packets_of_ffmpeg(path: Path) -> list[tuple[Any, ...]]:
    with av.open(str(path)) as container:
        return [
            (packet.pts, packet.is_keyframe, packet.size, packet.pos, packet.is_discard)
            for packet in container.demux(video=0)
            if packet.size
        ]


def assert_same(table: PacketTable, packets: list[tuple[Any, ...]]) -> None:
    pts, keyframe, size, offset, discard = (np.array(column) for column in zip(*packets, strict=True))
    assert np.array_equal(np.diff(table.pts), np.diff(pts))
    assert np.array_equal(table.keyframe, keyframe)
    assert np.array_equal(table.size, size)
    assert np.array_equal(table.offset, offset)
    assert np.array_equal(table.discard, discard)


@pytest.mark.parametrize("name", FILES)
def test_the_tables_give_the_packets_that_ffmpeg_demuxes(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, 40, options=B_FRAMES, **FILES[name])
    table, claimed = read_mp4(LocalFileSource(str(path)))
    assert_same(table, packets_of_ffmpeg(path))
    assert claimed == path.stat().st_size
    assert (table.stream.codec, table.stream.width, table.stream.height) == ("h264", 96, 64)


@pytest.mark.parametrize("first", [5, 17, 31])
def test_an_edit_list_discards_what_ffmpeg_discards(tmp_path: Path, first: int) -> None:
    whole = write_video(tmp_path / "whole.mp4", 40, options=B_FRAMES)
    path = cut_without_reencoding(whole, tmp_path / "cut.mp4", first)
    table, _ = read_mp4(LocalFileSource(str(path)))
    packets = packets_of_ffmpeg(path)
    skipped = len(table) - len(packets)  # FFmpeg leaves out what lies before the keyframe that the edit needs.
    assert table.discard.sum() == first
    assert table.discard[:skipped].all()
    columns = {name: getattr(table, name)[skipped:] for name in ("pts", "keyframe", "size", "offset", "discard")}
    assert_same(replace(table, **columns), packets)


def test_the_media_are_not_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "large.mp4", 60, size=(640, 480), options={"qp": "0"})
    source = CountingSource(str(path))
    table, _ = read_mp4(source)
    assert source.read <= os.path.getsize(path) - table.size.sum() + 64


# tables written here ------------------------------------------------------------------------------------------------------------


def box(kind: bytes, *bodies: bytes) -> bytes:
    body = b"".join(bodies)
    return (8 + len(body)).to_bytes(4, "big") + kind + body


def full(kind: bytes, *bodies: bytes, version: int = 0) -> bytes:
    return box(kind, version.to_bytes(4, "little"), *bodies)


def u32(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "big", signed=value < 0) for value in values)


MATRIX = u32(1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def written(
    chunks: list[list[int]],
    deltas: list[int],
    offsets: list[int],
    keyframes: list[int],
    *,
    wide: bool = False,
    size_bits: int = 32,
    large_mdat: bool = False,
) -> tuple[bytes, list[int]]:
    """A movie of VP9 samples of the given sizes in chunks, and where each sample lies."""
    sizes = [size for chunk in chunks for size in chunk]
    entry = box(b"vp09", bytes(6), b"\0\1", bytes(16), (64).to_bytes(2, "big"), (48).to_bytes(2, "big"), bytes(50))
    data = b"".join(bytes([number % 251]) * size for number, size in enumerate(sizes))
    head = u32(1) + b"mdat" + (16 + len(data)).to_bytes(8, "big") if large_mdat else u32(8 + len(data)) + b"mdat"
    starts, places, at = [], [], len(head)
    for chunk in chunks:
        starts.append(at)
        for size in chunk:
            places.append(at)
            at += size
    if size_bits == 32:
        size_table = full(b"stsz", u32(0, len(sizes)), u32(*sizes))
    elif size_bits == 4:
        padded = [*sizes, 0]
        packed = bytes(padded[i] << 4 | padded[i + 1] for i in range(0, len(sizes), 2))
        size_table = full(b"stz2", u32(4, len(sizes)), packed)
    else:
        size_table = full(b"stz2", u32(size_bits, len(sizes)), *(size.to_bytes(size_bits // 8, "big") for size in sizes))
    stbl = box(
        b"stbl",
        full(b"stsd", u32(1), entry),
        full(b"stts", u32(len(deltas)), *(u32(1, delta) for delta in deltas)),
        full(b"ctts", u32(len(offsets)), *(u32(1, offset) for offset in offsets), version=1),
        full(b"stss", u32(len(keyframes)), u32(*(number + 1 for number in keyframes))),
        size_table,
        full(b"stsc", u32(len(chunks)), *(u32(number + 1, len(chunk), 1) for number, chunk in enumerate(chunks))),
        full(b"co64", u32(len(starts)), *(start.to_bytes(8, "big") for start in starts))
        if wide
        else full(b"stco", u32(len(starts)), u32(*starts)),
    )
    track = box(
        b"trak",
        full(b"tkhd", u32(0, 0, 1, 0, 0), bytes(16), MATRIX, u32(64 << 16, 48 << 16)),
        box(
            b"mdia",
            full(b"mdhd", u32(0, 0, 1000, 0), bytes(4)),
            full(b"hdlr", bytes(4), b"vide", bytes(13)),
            box(b"minf", box(b"dinf", full(b"dref", u32(1), box(b"url ", u32(1)))), stbl),
        ),
    )
    movie = box(b"moov", full(b"mvhd", u32(0, 0, 1000, 0, 1 << 16), bytes(12), MATRIX, bytes(28)), track)
    return head + data + movie, places


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=5), min_size=1, max_size=12),
    st.sampled_from([4, 8, 16, 32]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_any_table_comes_back(chunks: list[list[int]], bits: int, wide: bool, large: bool, data: st.DataObject) -> None:
    count = sum(map(len, chunks))
    numbers = st.integers(0, 10_000)
    deltas = data.draw(st.lists(numbers, min_size=count, max_size=count))
    offsets = data.draw(st.lists(st.integers(-5000, 5000), min_size=count, max_size=count))
    keys = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    file, places = written(chunks, deltas, offsets, keys, wide=wide, size_bits=bits, large_mdat=large)
    table, claimed = read_mp4(MemorySource(file, "made"))
    dts = np.cumsum(deltas) - deltas
    assert claimed == len(file)
    assert table.size.tolist() == [size for chunk in chunks for size in chunk]
    assert table.offset.tolist() == places
    assert table.pts.tolist() == (dts + offsets).tolist()
    assert np.flatnonzero(table.keyframe).tolist() == keys
    assert (table.stream.codec, table.stream.width, table.stream.height) == ("vp9", 64, 48)


@pytest.mark.parametrize("kind", [b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco"])
def test_a_table_that_claims_four_billion_entries_is_refused_without_allocating_them(kind: bytes) -> None:
    file, _ = written([[9, 9], [9]], [1, 1, 1], [0, 0, 0], [0])
    at = file.index(kind) + 8 + (4 if kind == b"stsz" else 0)
    lying = file[:at] + b"\xff\xff\xff\xff" + file[at + 4 :]
    with pytest.raises(UnreadableTable):
        read_mp4(MemorySource(lying, "lying"))


def test_a_constant_size_that_the_file_cannot_hold_is_refused() -> None:
    file, _ = written([[9, 9], [9]], [1, 1, 1], [0, 0, 0], [0])
    at = file.index(b"stsz") + 8
    with pytest.raises(UnreadableTable, match="larger than the file"):
        read_mp4(MemorySource(file[:at] + u32(1000, 0x7FFFFFFF) + file[at + 8 :], "lying"))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_tables_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    chance = np.random.default_rng(seed)
    options = [{}, {"movflags": "frag_keyframe+empty_moov"}, {"movflags": "faststart"}, {"movflags": "dash"}][seed]
    whole = write_video(tmp_path / "whole.mp4", 20, options=B_FRAMES, container_options=options).read_bytes()
    tables = [at for kind in (b"moov", b"moof") for at in range(len(whole)) if whole[at : at + 4] == kind]
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for at in chance.choice(tables) + chance.integers(0, 700, chance.integers(1, 6)):
            data[min(at, len(data) - 1)] = (0, 1, 0x7F, 0x80, 0xFF, int(chance.integers(256)))[chance.integers(6)]
        try:
            table, _ = read_mp4(MemorySource(bytes(data), "mutated"))
        except (UnreadableTable, NoVideoTrack):
            refused += 1
        else:
            assert len(table.pts) == len(table.offset) == len(table.discard)
            table.as_index()
    assert refused > 0
