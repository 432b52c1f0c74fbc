"""Videos of a message that lie at an address: fetched like pictures, and the same frames as from the file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from eagle_model.vision_info import load_video_item


class Ranges(BaseHTTPRequestHandler):
    """Serves one folder by ranges, or whole where the query is `whole`."""

    def __init__(self, folder: Path, *arguments: Any) -> None:
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self) -> None:
        name, _, query = self.path[1:].partition("?")
        if not (self.folder / name).is_file():
            self.send_error(404)
            return
        data = (self.folder / name).read_bytes()
        first, last = 0, len(data) - 1
        if query != "whole":
            first, last = (int(value) for value in self.headers["Range"].removeprefix("bytes=").split("-"))
            last = min(last, len(data) - 1)
        self.send_response(200 if query == "whole" else 206)
        if query != "whole":
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Three seconds, a little brighter from frame to frame."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            picture = np.full((48, 64, 3), number * 8, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def address(clip: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, clip.parent)) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("options", [{}, {"nframes": 6}, {"fps": 4.0, "video_start": 1.0, "video_end": 2.0}])
def test_a_video_at_an_address_gives_the_frames_of_its_file(clip: Path, address: str, options: dict[str, Any]):
    frames, fps, seconds = load_video_item({"type": "video", "video": str(clip), **options})
    fetched, fetched_fps, fetched_seconds = load_video_item({"type": "video", "video": f"{address}/clip.mp4", **options})
    assert np.array_equal(frames, fetched)
    assert (fps, seconds) == (fetched_fps, fetched_seconds)


@pytest.mark.parametrize(
    ("name", "words"),
    [("gone.mp4", "could not be fetched"), ("clip.mp4?whole", "does not answer range requests")],
)
def test_an_address_that_gives_no_video_is_a_value_error_that_names_it(address: str, name: str, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        load_video_item({"type": "video", "video": f"{address}/{name}"})
    assert f"{address}/{name}" in str(caught.value)
