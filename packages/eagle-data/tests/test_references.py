"""Pictures inside other files: tar members, parquet cells and PDF pages, and what is refused of them."""

from __future__ import annotations

import io
import multiprocessing
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from eagle_data.errors import MediaError, MissingMediaError
from eagle_data.images import image_bytes, image_size, load_image
from eagle_data.inspect_media import describe
from eagle_data.media_index import MediaIndexWriter, PreparedMedia
from eagle_data.references import Reference, parse_reference
from eagle_data.tar_members import member_names, open_member
from eagle_data.units import load_unit
from eagle_data.video import open_video
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from .media_files import number_in, numbered_picture, write_video


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(numbered_picture(number)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "a.tar", {f"d/{n}.png": png(n) for n in (10, 2, 7)})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [png(n) for n in range(6)]
    columns = {
        "image": pa.array(rows),
        "hf": pa.array([{"bytes": row, "path": "x.png"} for row in rows[:5]] + [None]),
        "n": range(6),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    return tmp_path / "t.parquet"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b.png", Reference("file", "a/b.png")),
        ("a.tar::b::c.png", Reference("tar", "a.tar", "b::c.png")),
        ("x/A.TAR::b.png", Reference("tar", "x/A.TAR", "b.png")),
        ("t.parquet::image::17", Reference("cell", "t.parquet", "image::17")),
        ("file:///d/p.pdf::3", Reference("pdf", "/d/p.pdf", "3")),
        ("a.tar::in.pdf::1", Reference("tar", "a.tar", "in.pdf::1")),
        ("strange::name.png", Reference("file", "strange::name.png")),
    ],
)
def test_a_text_names_a_file_or_something_inside_one(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


def test_a_file_that_really_has_such_a_name_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar::b.png"
    path.write_bytes(png(3))
    assert parse_reference(str(path)) == Reference("file", str(path))
    assert number_in(np.asarray(load_image(path))) == 3


@given(st.text(max_size=30))
def test_any_text_is_some_reference(text: str) -> None:
    reference = parse_reference(text)
    assert reference.kind == "file" or f"{reference.file}::{reference.inner}" in text or text.startswith("file://")


def test_a_tar_member_is_read_in_both_spellings(archive: Path) -> None:
    for source in (f"{archive}::d/7.png", {"tar_file": str(archive), "tar_member": "d/7.png"}):
        assert number_in(np.asarray(load_image(source))) == 7
        assert image_size(source) == (96, 64)
        assert image_bytes(source) == png(7)


def test_a_member_is_a_file_that_seeks_and_ends_at_its_own_end(archive: Path) -> None:
    data = png(2)
    with open_member(str(archive), "d/2.png") as member:
        assert member.read(8) == data[:8]
        assert member.seek(-4, io.SEEK_END) == len(data) - 4
        assert member.read() == data[-4:]
        assert member.read(100) == b""
        member.seek(0)
        assert member.read() == data


def test_links_cut_compressed_and_missing_members_are_refused(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "l.tar", "w") as links:
        info = tarfile.TarInfo("passwd.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        links.addfile(info)
    with pytest.raises(MediaError, match=r"l\.tar::passwd\.png: is a link"):
        load_image(f"{tmp_path / 'l.tar'}::passwd.png")
    with pytest.raises(MissingMediaError, match="no such file in this archive"):
        load_image(f"{archive}::none.png")
    with pytest.raises(MissingMediaError, match="no such archive"):
        load_image("none.tar::a.png")
    zipped = write_tar(tmp_path / "z.tar", {"a.png": png(1)}, "w:gz")
    with pytest.raises(MediaError, match="to-lmdb"):
        load_image(f"{zipped}::a.png")
    cut = tmp_path / "cut.tar"
    cut.write_bytes(archive.read_bytes()[: 512 + 100])
    with pytest.raises(MediaError, match=r"truncated|not a readable tar"):
        load_image(f"{cut}::d/10.png")


@given(data=st.data())
def test_a_damaged_archive_gives_its_bytes_or_a_media_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_tar(tmp_path_factory.mktemp("fuzz") / "f.tar", {"a.png": b"x" * 700, "b.png": b"y" * 10})
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, 3000), min_size=1, max_size=8)):
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        for name in member_names(str(path)):
            with open_member(str(path), name) as member:
                assert len(member.read()) <= len(content)
    except MediaError:
        return


def test_a_tar_of_pictures_is_a_video_in_natural_order(archive: Path) -> None:
    with open_video(archive, fps=2.0) as video:
        assert [number_in(picture) for picture in video.frames_at([0, 1, 2])] == [2, 7, 10]
        assert video.timestamps.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "gif"])
def test_a_video_inside_a_tar_is_read_in_place(ending: str, tmp_path: Path) -> None:
    clip = tmp_path / f"clip.{ending}"
    if ending == "gif":
        pictures = [Image.fromarray(numbered_picture(n)) for n in range(30)]
        pictures[0].save(clip, save_all=True, append_images=pictures[1:], duration=40)
    else:
        write_video(clip, frames=30, options={"g": "10"})
    archive = write_tar(tmp_path / "videos.tar", {"before": b"x" * 1000, f"d/{clip.name}": clip.read_bytes(), "after": b"y" * 99})
    with open_video(clip) as alone, open_video(f"{archive}::d/{clip.name}") as inside:
        assert inside.metadata == alone.metadata
        assert [number_in(picture) for picture in inside.frames_at([29, 0, 17])] == [29, 0, 17]
    with pytest.raises(MissingMediaError, match="no such file in this archive"):
        open_video(f"{archive}::none.mp4")


def test_a_parquet_cell_is_read_in_both_spellings_and_from_both_kinds_of_column(table: Path) -> None:
    mapped = {"parquet_file": str(table), "parquet_column": "image", "parquet_row": 5}
    for source, number in ((f"{table}::image::5", 5), (mapped, 5), (f"{table}::hf::3", 3), (f"{table}::image::0", 0)):
        assert number_in(np.asarray(load_image(source))) == number


def test_a_video_in_a_parquet_cell_is_read_and_indexed(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "v.mkv", frames=30)
    parquet.write_table(pa.table({"video": [b"no video", clip.read_bytes()]}), tmp_path / "t.parquet")
    cell = f"{tmp_path / 't.parquet'}::video::1"
    with open_video(clip) as alone, open_video(cell) as inside:
        assert inside.metadata == alone.metadata
        assert [number_in(picture) for picture in inside.frames_at([29, 0])] == [29, 0]
        assert inside.index is not None
        with MediaIndexWriter(tmp_path) as writer:
            writer.add(cell, inside.index)
    with PreparedMedia(tmp_path).open_video(cell, start=0.4) as prepared:
        assert number_in(prepared.frames_at([0]).pixels[0]) == 10
    assert "stream: video h264, 96 x 64, yuv420p" in list(describe(cell))
    with pytest.raises(MediaError, match="video::0"):
        open_video(f"{tmp_path / 't.parquet'}::video::0")


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ("none::0", "Use one of image, hf, n"),
        ("image::6", "the file has 6 rows"),
        ("image::-1", "names no cell"),
        ("image", "names no cell"),
        ("n::2", "holds a int"),
        ("hf::5", "the cell is empty"),
    ],
)
def test_a_cell_that_is_not_there_or_holds_no_bytes_is_named(table: Path, inner: str, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        load_image(f"{table}::{inner}")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("a.arrow::images::0", "is a list. Name one of its items, .*::images::0::0"),
        ("a.arrow::images::0::2", "the list has 2 items"),
        ("a.arrow::images::1::0", "the list has 0 items"),
        ("a.arrow::images::9::0", "the file has 2 rows"),
        ("a.arrow::image::0", "Use one of images"),
        ("torn.arrow::images::0::0", "is not a readable Arrow stream"),
        ("none.arrow::images::0::0", "no such file"),
        ("a.parquet::images::0::2", "the list has 2 items"),
    ],
)
def test_an_item_of_a_list_is_read_and_one_that_is_not_there_is_named(tmp_path: Path, reference: str, words: str) -> None:
    rows = pa.table({"images": [[png(1), png(2)], None]})
    parquet.write_table(rows, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    (tmp_path / "torn.arrow").write_bytes(b"torn")
    for name in ("a.arrow", "a.parquet"):
        assert load_image(f"{tmp_path / name}::images::0::1").tobytes() == load_image(png(2)).tobytes()
    with pytest.raises(MediaError, match=words):
        load_image(str(tmp_path / reference))


def test_a_cell_that_names_a_file_does_not_open_it(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    rows = pa.array(
        [{"bytes": None, "path": str(tmp_path / "secret.png")}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    parquet.write_table(pa.table({"image": rows, "path": [str(tmp_path / "secret.png")]}), tmp_path / "p.parquet")
    for column in ("image", "path"):
        with pytest.raises(MediaError, match="not encoded bytes"):
            load_image(f"{tmp_path / 'p.parquet'}::{column}::0")


def test_files_that_are_no_archive_or_table_say_so(tmp_path: Path) -> None:
    for name in ("a.tar::x", "a.parquet::x::0"):
        (tmp_path / name.split("::")[0]).write_bytes(b"not what the name says" * 40)
        with pytest.raises(MediaError, match="is not a readable"):
            load_image(str(tmp_path / name))
    with pytest.raises(MissingMediaError):
        load_image("none.parquet::x::0")


def test_a_changed_archive_is_read_anew(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "c.tar", {"a.png": png(1)})
    assert number_in(np.asarray(load_image(f"{path}::a.png"))) == 1
    write_tar(path, {"first.png": png(9), "a.png": png(4)})
    assert number_in(np.asarray(load_image(f"{path}::a.png"))) == 4


def size_in_child(source: str, results: multiprocessing.SimpleQueue) -> None:
    results.put(number_in(np.asarray(load_image(source))))


def test_forked_workers_read_what_their_parent_has_read(archive: Path, table: Path) -> None:
    context = multiprocessing.get_context("fork")
    for mine, theirs, number in (
        (f"{archive}::d/2.png", f"{archive}::d/7.png", 7),
        (f"{table}::image::1", f"{table}::image::5", 5),
    ):
        load_image(mine)
        results = context.SimpleQueue()
        child = context.Process(target=size_in_child, args=(theirs, results))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert results.get() == number


def test_references_travel_through_samples(archive: Path) -> None:
    from eagle_data.encode import ImageUnit

    pixels = load_unit(ImageUnit(f"{archive}::d/2.png", None, (2, 1), 3), tile_size=32)
    assert pixels.shape == (3, 3, 32, 32)


def pdf(pages: int = 2) -> bytes:
    """A PDF of black squares on empty pages, the second page broad."""
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {pages}/Kids[{' '.join(f'{3 + 2 * i} 0 R' for i in range(pages))}]>>",
    ]
    for i in range(pages):
        width, height = (200, 100) if i == 1 else (72, 144)
        content = f"0 0 0 rg 0 {height - 36} 36 36 re f"
        objects.append(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 {width} {height}]/Contents {4 + 2 * i} 0 R>>")
        objects.append(f"<</Length {len(content)}>>stream\n{content}\nendstream")
    body, places = "%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj{text}endobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    start = len(body)
    body += f"xref\n0 {size}\n0000000000 65535 f \n{table}"
    return f"{body}trailer<</Size {size}/Root 1 0 R>>\nstartxref\n{start}\n%%EOF".encode()


def test_without_pypdfium2_a_pdf_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pypdfium2", None)
    (tmp_path / "p.pdf").write_bytes(pdf())
    with pytest.raises(MediaError, match=r"eagle-data\[pdf\]"):
        load_image(f"{tmp_path / 'p.pdf'}::1")
    with pytest.raises(MediaError, match="is a PDF of pages"):
        load_image(tmp_path / "p.pdf")


def test_pages_of_a_pdf_are_pictures_and_frames(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2", reason="the extra pdf is not installed")
    path = tmp_path / "p.pdf"
    path.write_bytes(pdf())
    page = load_image(f"{path}::1")
    assert page.size == image_size(f"{path}::1") == (144, 288)
    assert (page.getpixel((20, 20)), page.getpixel((100, 200))) == ((0, 0, 0), (255, 255, 255))
    assert load_image(f"{path}::2").size == (400, 200)
    for source in (str(path), pdf()):
        with open_video(source) as video:
            frames = list(video.frames_at([0, 1]))
        assert [frame.shape for frame in frames] == [(288, 144, 3)] * 2
        assert (frames[0][20, 20, 0], frames[1][144 - 20, 10, 0], frames[1][10, 10, 0]) == (0, 0, 255)
    with pytest.raises(MissingMediaError, match="Ask for 1 to 2"):
        load_image(f"{path}::3")
    with pytest.raises(MediaError, match="names no page"):
        load_image(f"{path}::last")
    (tmp_path / "bad.pdf").write_bytes(pdf()[:60])
    with pytest.raises(MediaError, match="not a readable PDF"):
        load_image(f"{tmp_path / 'bad.pdf'}::1")
