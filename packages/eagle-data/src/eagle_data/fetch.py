"""Fetching a body, or a range of one, over http(s), only where the caller allowed it, and never without bounds.

Promises an end in bytes and in seconds for every exchange, and that a redirect leads to no local file and to no host that was not
allowed. Not a download manager: nothing is kept, resumed or tried again.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib import request
from urllib.parse import urlsplit

from .errors import MediaError

__all__ = ["Fetch", "allowed", "fetch_bytes", "fetch_range", "is_address"]

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Fetch:
    """Leave to fetch pictures and videos, and its bounds.

    Attributes:
        max_bytes: longest body; of a video, which is fetched by ranges as they are needed, all bytes fetched while it is open.
        seconds: for the whole exchange (of a video, for each range), name lookup and TLS handshake apart, which have as long
            again.
        hosts: the only hosts that may be asked, redirects included; None allows every host.
    """

    max_bytes: int = 256 << 20
    seconds: float = 30.0
    hosts: tuple[str, ...] | None = None


def is_address(text: str) -> bool:
    """Whether `text` is an http or https address."""
    return text[:8].lower().startswith(("http://", "https://"))


def allowed(url: str, fetch: Fetch | None) -> Fetch:
    """The bounds under which `url` may be fetched.

    Args:
        url: an http or https address.
        fetch: leave and bounds; None refuses, unless the environment variable ``EAGLE_DATA_FETCH`` is 1 (then the defaults hold).

    Raises:
        MediaError: no leave, no address, or a host that is not allowed.
    """
    if fetch is None:
        if os.environ.get("EAGLE_DATA_FETCH") != "1":
            mend = "Pass fetch=Fetch() or set EAGLE_DATA_FETCH=1, or fetch it first and give the file"
            raise MediaError(url, "is an address and fetching is off", mend)
        fetch = Fetch()
    _check_host(url, fetch)
    return fetch


def fetch_bytes(url: str, fetch: Fetch | None) -> bytes:
    """The body behind `url`; arguments as `allowed`. Raises MediaError: no leave, any failure of the exchange, too long a body or
    too long a time."""
    fetch = allowed(url, fetch)
    with _exchange(url, fetch, {}) as response:
        body = _body(response, fetch.max_bytes)
        if len(body) > fetch.max_bytes:
            mend = "Fetch it first and give the file, or raise max_bytes"
            raise MediaError(url, f"is larger than {fetch.max_bytes} bytes", mend)
        left = response.length
    if left:
        raise MediaError(url, f"broke off {left} bytes before its end", "Fetch it again")
    return body


def fetch_range(url: str, fetch: Fetch, first: int, length: int, *, spent: int = 0) -> tuple[bytes, int]:
    """Bytes `first` to ``first + length`` of the body behind `url` (fewer at its end), and how long the whole body is.

    Args:
        url: an http or https address.
        fetch: bounds, as `allowed` gave them.
        first: the first byte.
        length: bytes, at least 1.
        spent: bytes fetched before that count towards ``fetch.max_bytes``.

    Raises:
        MediaError: any failure of the exchange, a server that does not answer ranges or sends another, or a bound is reached.
    """
    with _exchange(url, fetch, {"Range": f"bytes={first}-{first + length - 1}"}) as response:
        span, _, total = str(response.headers.get("Content-Range", "")).partition("/")
        if response.status != 206 or not (total.isascii() and total.isdigit()):
            raise MediaError(url, "its server does not answer range requests", "Fetch it first and give the file")
        expected = min(length, int(total) - first)
        if span != f"bytes {first}-{first + expected - 1}":
            raise MediaError(url, "its server sent another range than asked", "Fetch it first and give the file")
        if spent + expected > fetch.max_bytes:
            mend = "Fetch it first and give the file, or raise max_bytes"
            raise MediaError(url, f"took more than {fetch.max_bytes} bytes", mend)
        body = _body(response, expected)
    if len(body) != expected:
        raise MediaError(url, "its server sent another range than asked", "Fetch it first and give the file")
    return body, int(total)


@contextmanager
def _exchange(url: str, fetch: Fetch, headers: dict[str, str]) -> Iterator[Any]:
    """A response to be read within the time allowed. Failures, also of reading it, become MediaErrors."""
    _check_host(url, fetch)
    sockets: list[socket.socket] = []
    # Only these handlers: a redirect must not be able to turn an address on the web into a local file.
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        _Http(sockets),
        _Https(sockets),
        request.HTTPDefaultErrorHandler(),
        _Redirects(fetch),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    ended = threading.Event()
    # A socket's own timeout starts anew with every byte, so a server that drips would hold us for ever.
    timer = threading.Timer(fetch.seconds, _end, (sockets, ended))
    timer.daemon = True
    timer.start()
    try:
        asked = request.Request(url, headers={"User-Agent": "eagle-data", **headers})
        with opener.open(asked, timeout=fetch.seconds) as response:
            yield response
    except MediaError:
        raise
    except (OSError, HTTPException, ValueError, AttributeError) as error:  # AttributeError: a TLS socket that the timer closed
        reason = f"took longer than {fetch.seconds:g} s" if ended.is_set() else f"could not be fetched ({error})"
        raise MediaError(url, reason, "Check the address, or fetch it first and give the file") from error
    finally:
        timer.cancel()
    if ended.is_set():
        raise MediaError(url, f"took longer than {fetch.seconds:g} s", "Fetch it first and give the file, or raise seconds")


def _body(response: Any, longest: int) -> bytes:
    """The body, or its first bytes, more than `longest`, when it is longer."""
    body = bytearray()
    while len(body) <= longest and (chunk := response.read(_CHUNK)):
        body += chunk
    return bytes(body)


class _Http(request.HTTPHandler):
    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self._sockets = sockets

    def http_open(self, req: request.Request) -> Any:
        return self.do_open(lambda host, **options: _watched(HTTPConnection(host, **options), self._sockets), req)


class _Https(request.HTTPSHandler):
    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self._sockets = sockets

    def https_open(self, req: request.Request) -> Any:
        return self.do_open(lambda host, **options: _watched(HTTPSConnection(host, **options), self._sockets), req)


class _Redirects(request.HTTPRedirectHandler):
    max_redirections = 5

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> request.Request | None:
        _check_host(newurl, self._fetch)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _watched(connection: HTTPConnection, sockets: list[socket.socket]) -> HTTPConnection:
    connect = connection.connect

    def connect_and_tell() -> None:
        connect()
        sockets.append(connection.sock)

    connection.connect = connect_and_tell
    return connection


def _end(sockets: list[socket.socket], ended: threading.Event) -> None:
    ended.set()
    for opened in sockets:
        with suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)


def _check_host(url: str, fetch: Fetch) -> None:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        host = ""
    if not is_address(url) or not host:
        raise MediaError(url, "could not be fetched (it is no http or https address)", "Check the address")
    if fetch.hosts is not None and host not in fetch.hosts:
        raise MediaError(url, f"lies on the host {host}, which is not allowed", "Add the host to Fetch.hosts")
