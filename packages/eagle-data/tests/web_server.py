"""Small web servers for the tests: one that answers ranges (and misbehaves when asked to) and one that does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Ranges(BaseHTTPRequestHandler):
    """Serves one folder by ranges, with the mischief that a query names."""

    def __init__(self, folder: Path, asked: list[str], *arguments: Any) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*arguments)

    def do_GET(self) -> None:
        name, _, query = self.path[1:].partition("?")
        self.asked.append(self.path)
        if query == "away":
            self.send_response(302)
            self.send_header("Location", "http://elsewhere.invalid/clip.mp4")
            self.end_headers()
            return
        data = (self.folder / name).read_bytes()
        first, last = (int(value) for value in self.headers.get("Range", "bytes=0-999999999").removeprefix("bytes=").split("-"))
        last = min(last, len(data) - 1)
        if query == "other":
            first += 1
        total = len(data) + (len(self.asked) if query == "grows" else 0)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        with suppress(OSError):
            for byte in data[first : last + 1][:100] if query == "drip" else []:
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
            self.wfile.write(data[first : last + 1])

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


class Whole(SimpleHTTPRequestHandler):
    """The standard library's file server, which answers no ranges."""

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


def served(handler: Any) -> Iterator[str]:
    """The address of a server of these requests, for as long as the generator is held."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
