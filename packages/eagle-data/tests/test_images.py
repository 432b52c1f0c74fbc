"""Still images from every source and in every mode: upright 8-bit RGB, or an error that names the file."""

from __future__ import annotations

import base64
import http.server
import io
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from eagle_data.errors import MediaError, SampleError
from eagle_data.fetch import Fetch
from eagle_data.images import image_size, load_image
from eagle_data.lmdb_store import write_lmdb
from PIL import Image

COLOUR = (200, 100, 50)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))


@pytest.fixture
def server(picture: Image.Image) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/escape":
                self.send_response(302)
                self.send_header("Location", "file:///etc/hostname")
                self.end_headers()
                return
            if self.path == "/drip":
                self.send_response(200)
                self.end_headers()
                with suppress(OSError):
                    for _ in range(100):
                        self.wfile.write(b"x")
                        time.sleep(0.1)
                return
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "http://elsewhere.invalid/a.png")
                self.end_headers()
                return
            self.send_response(200 if self.path in ("/a.png", "/short") else 404)
            if self.path == "/short":
                self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(encoded(picture))

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test output quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_every_kind_of_source_gives_the_same_picture(picture: Image.Image, tmp_path: Path) -> None:
    data = encoded(picture)
    file = tmp_path / "a picture é.png"
    file.write_bytes(data)
    write_lmdb(tmp_path / "store", [("one", data)])
    sources = [
        file,
        str(file),
        file.as_uri(),
        data,
        {"lmdb_file": str(tmp_path / "store"), "lmdb_key": "one"},
        "data:image/png;base64," + base64.b64encode(data).decode(),
        picture,
    ]
    for source in sources:
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert np.array_equal(np.asarray(loaded), np.asarray(picture))
        assert image_size(source) == (20, 12)


def test_a_picture_is_fetched_over_http(server: str, picture: Image.Image) -> None:
    assert np.array_equal(np.asarray(load_image(f"{server}/a.png", fetch=Fetch())), np.asarray(picture))


def test_a_failed_fetch_and_a_redirect_to_a_local_file_are_refused(server: str) -> None:
    with pytest.raises(MediaError, match="404"):
        load_image(f"{server}/missing.png", fetch=Fetch())
    with pytest.raises(MediaError, match="could not be fetched"):
        load_image(f"{server}/escape", fetch=Fetch())


def test_an_address_is_refused_without_leave_and_with_leave_only_on_allowed_hosts(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MediaError, match=r"fetching is off.*fetch=Fetch\(\)"):
        load_image(f"{server}/a.png")
    with pytest.raises(MediaError, match=r"host 127\.0\.0\.1, which is not allowed"):
        image_size(f"{server}/a.png", fetch=Fetch(hosts=("example.org",)))
    with pytest.raises(MediaError, match=r"host elsewhere\.invalid, which is not allowed"):
        load_image(f"{server}/away", fetch=Fetch(hosts=("127.0.0.1",)))
    monkeypatch.setenv("EAGLE_DATA_FETCH", "1")
    assert load_image(f"{server}/a.png").size == (20, 12)


def test_a_fetch_is_bounded_in_bytes_and_in_seconds_and_a_short_body_is_noticed(server: str) -> None:
    with pytest.raises(MediaError, match="larger than 100 bytes"):
        load_image(f"{server}/a.png", fetch=Fetch(max_bytes=100))
    started = time.monotonic()
    with pytest.raises(MediaError, match=r"took longer than 0\.5 s"):
        load_image(f"{server}/drip", fetch=Fetch(seconds=0.5))
    assert time.monotonic() - started < 3
    with pytest.raises(MediaError, match=r"could not be fetched|broke off"):
        load_image(f"{server}/short", fetch=Fetch())


def natural(width: int, height: int) -> Image.Image:
    """A picture whose spectrum falls like a photograph's (amplitude 1/f), with hard edges on it."""
    generator = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    spectrum = 1 / np.maximum(np.hypot(rows, columns), 1 / width)
    channels = []
    for _ in range(3):
        field = np.fft.ifft2(spectrum * np.exp(2j * np.pi * generator.random((height, width)))).real
        channels.append(128 + 45 * field / field.std())
    picture = np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)
    picture[height // 3 : height // 2, width // 4 : width // 2] = 255
    return Image.fromarray(picture)


def test_a_draft_is_smaller_yet_large_enough_and_stays_within_the_stated_difference() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(natural(2016, 1512), "JPEG", quality=90, exif=exif)
    assert image_size(data) == (1512, 2016)
    for wanted, expected in (((378, 400), (756, 1008)), ((150, 200), (378, 504)), ((756, 90), (1512, 2016))):
        draft = load_image(data, at_least=wanted)
        assert draft.size == expected
        whole, small = (
            np.asarray(picture.resize(wanted, Image.Resampling.BICUBIC), float) for picture in (load_image(data), draft)
        )
        assert np.abs(whole - small).mean() <= 1.5
        assert np.abs(whole - small).max() < 16


def test_a_draft_changes_nothing_where_a_format_has_none(picture: Image.Image) -> None:
    assert np.array_equal(np.asarray(load_image(encoded(picture), at_least=(2, 2))), np.asarray(picture))


def test_a_file_that_would_start_a_program_is_no_image() -> None:
    with pytest.raises(MediaError, match="is not an image"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO"])
def test_common_formats_are_read(kind: str) -> None:
    flat = Image.new("RGB", (32, 32), COLOUR)
    assert np.abs(np.asarray(load_image(encoded(flat, kind)), int) - COLOUR).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_to_picture_and_size(orientation: int) -> None:
    upright = Image.new("RGB", (40, 24), "white")
    upright.paste((255, 0, 0), (0, 0, 16, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, exif=exif)
    assert image_size(data) == (40, 24)
    assert np.array_equal(np.asarray(load_image(data)), np.asarray(upright))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 51), (204, 204, 204)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 32896, (128, 128, 128)),
    ],
)
def test_every_mode_becomes_eight_bit_rgb(mode: str, value: object, expected: tuple[int, int, int]) -> None:
    image = Image.new(mode, (9, 7), value)  # type: ignore[arg-type]
    for source in (image, encoded(image)):
        assert load_image(source).getpixel((4, 4)) == expected


def test_cmyk_palette_and_transparent_palette_keep_their_colours() -> None:
    cmyk = load_image(encoded(Image.new("RGB", (16, 16), COLOUR).convert("CMYK"), "JPEG", quality=100))
    assert cmyk.mode == "RGB"
    assert np.abs(np.asarray(cmyk, int) - COLOUR).max() <= 4
    palette = Image.new("RGB", (16, 16), COLOUR).quantize(4)
    assert load_image(encoded(palette)).getpixel((3, 3)) == COLOUR
    assert load_image(encoded(palette, transparency=palette.getpixel((3, 3)))).getpixel((3, 3)) == (255, 255, 255)


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    loaded = np.asarray(load_image(encoded(Image.fromarray(ramp))))[..., 0]
    assert np.array_equal(loaded, np.rint(ramp / 257).astype(np.uint8))


def test_wide_greys_are_scaled_where_white_is_defined_and_refused_elsewhere() -> None:
    assert load_image(Image.new("I", (9, 7), 65535)).getpixel((4, 4)) == (255, 255, 255)
    assert load_image(Image.new("F", (9, 7), 0.2)).getpixel((4, 4)) == (51, 51, 51)
    with pytest.raises(MediaError, match="white is not defined"):
        load_image(Image.fromarray(np.array([[-5.0, 1e6]], np.float32)))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), (255 * i, 0, 0)) for i in range(2)]
    assert load_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((1, 1)) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_truncated_file_is_an_error_that_names_it_while_its_header_still_gives_the_size(kind: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8))
    file = tmp_path / f"cut.{kind.lower()}"
    data = encoded(noise, kind)
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut\..*(truncated|cannot be opened|not an image)"):
        load_image(file)
    if kind in ("JPEG", "PNG", "BMP"):
        assert image_size(file) == (60, 80)


def test_a_corrupt_png_is_an_error(tmp_path: Path) -> None:
    data = bytearray(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(MediaError, match="truncated or corrupt"):
        load_image(bytes(data))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere/a.png", r"nowhere/a\.png: no such file"),
        (b"", "not an image"),
        (b"<html>not found</html>", "<22 bytes>: is not an image"),
        ("data:image/png,abc", "base64 data URL"),
        ("data:image/png;base64,***", "broken base64"),
        ({"lmdb_file": "x"}, "lmdb_file and lmdb_key"),
        ({"lmdb_file": "nowhere", "lmdb_key": "k"}, "no LMDB store here"),
        (7, "int is not an image source"),
    ],
)
def test_what_cannot_be_read_says_why(source: object, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        load_image(source)  # type: ignore[arg-type]


def test_oversized_pictures_are_refused_before_decoding(tmp_path: Path) -> None:
    file = tmp_path / "big.png"
    file.write_bytes(encoded(Image.new("1", (5000, 5000))))
    with pytest.raises(MediaError, match=r"big\.png: has 5000 x 5000 pixels, more than 1000000"):
        load_image(file, max_pixels=1_000_000)
    assert image_size(file) == (5000, 5000)


def test_a_decompression_bomb_is_an_error_and_not_a_crash() -> None:
    header = bytearray(encoded(Image.new("1", (8, 8))))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(MediaError, match="pixels"):
        load_image(bytes(header))


def test_loading_does_not_keep_files_open(tmp_path: Path, picture: Image.Image) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(picture))
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    kept = [load_image(file) for _ in range(20)]
    assert len(list(descriptors.iterdir())) == before
    assert len(kept) == 20


@pytest.mark.parametrize("error", [MediaError("a.png", "is gone", "Bring it back"), SampleError("a.jsonl:3", "no text")])
def test_errors_survive_the_way_out_of_a_worker(error: MediaError | SampleError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_importing_the_media_modules_needs_neither_pyav_nor_lmdb_nor_torch() -> None:
    modules = (
        "images lmdb_store pixels sampling stills tiling video media.reader media.decode media.mp4_index media.matroska_index"
    )
    load = f"[importlib.import_module('eagle_data.' + name) for name in '{modules}'.split()]"
    code = f"import importlib, sys; {load}; print({{'av', 'lmdb', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
