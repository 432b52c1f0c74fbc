"""One exchange with an OpenAI-compatible `/chat/completions`, over the standard library's HTTP.

Promises an end in seconds, that a redirect never carries frames or key elsewhere, and that every failure says whether asking
again can help. Not for: asking again, and reading the answer; that is `asking`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib import error as url_error
from urllib import request as url_request

from eagle_data.curate.journal import Usage
from eagle_data.curate.recipe import EndpointSettings
from eagle_data.errors import EagleDataError

__all__ = ["Endpoint", "EndpointError", "Reply"]

_LONGEST_BODY = 16 << 20
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_REFUSED = {401, 403}


@dataclass(frozen=True)
class Reply:
    """What the model wrote (empty for nothing), what it cost, and why it ended (`length`: cut off)."""

    text: str
    usage: Usage
    finish: str


class EndpointError(EagleDataError):
    """An exchange that failed.

    Attributes:
        again: whether asking again can help.
        stop: whether every other request would fail alike (the key is refused).
        wait: seconds that the server asked for, None where it asked for none.
    """

    def __init__(self, message: str, *, again: bool, stop: bool = False, wait: float | None = None) -> None:
        super().__init__(message)
        self.again, self.stop, self.wait = again, stop, wait


class Endpoint:
    """A server and a model; may be shared between threads. `key` is sent as bearer token, None sends none."""

    def __init__(self, settings: EndpointSettings, key: str | None = None) -> None:
        self._settings = settings
        self._url = f"{settings.url}/chat/completions"
        self._headers = {"Content-Type": "application/json", "User-Agent": "eagle-data"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._opener = url_request.build_opener(_NoRedirect)

    def send(self, messages: list[dict[str, Any]], schema: dict[str, Any]) -> Reply:
        """Ask once. Raises EndpointError for whatever goes wrong on the way."""
        settings = self._settings
        body: dict[str, Any] = {"model": settings.model, "messages": messages, settings.limit_key: settings.max_tokens}
        if settings.response_format == "schema":
            form = {"name": "answer", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif settings.response_format == "object":
            body["response_format"] = {"type": "json_object"}
        data = json.dumps({**body, **settings.options}).encode()
        return self._reply(self._exchange(url_request.Request(self._url, data, self._headers, method="POST")))

    def _exchange(self, request: url_request.Request) -> bytes:
        deadline = time.monotonic() + self._settings.timeout
        try:
            with self._opener.open(request, timeout=self._settings.timeout) as response:
                return _body(response, deadline, self._url)
        except url_error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = getattr(error, "reason", None) or error
            message = f"{self._url}: the exchange failed ({reason!r}); check that the server runs."
            raise EndpointError(message, again=True) from error

    def _refusal(self, error: url_error.HTTPError) -> EndpointError:
        try:
            said = error.read(2000).decode("utf-8", "replace").strip()
        except (OSError, HTTPException):
            said = ""
        said = " ".join(said.split())[:300]
        if error.code in _REFUSED:
            mend = "check key_env and the rights of that key"
        elif 300 <= error.code < 400:
            mend = "it wants to send you elsewhere; name the final address in url"
        elif error.code == 404:
            mend = "check url (it ends before /chat/completions) and model"
        elif error.code == 400 and self._settings.response_format != "none":
            mend = "if it does not know response_format, set endpoint.response_format to object or none"
        else:
            mend = "see what it says"
        message = f"{self._url}: status {error.code}: {said or error.reason}; {mend}."
        return EndpointError(message, again=error.code in _AGAIN, stop=error.code in _REFUSED, wait=_retry_after(error))

    def _reply(self, body: bytes) -> Reply:
        try:
            content = json.loads(body)
            choice = content["choices"][0]
            message = choice["message"]
            text = message.get("content") or ""
            if not isinstance(text, str):
                raise TypeError("the content is no text")
            counted = content.get("usage") or {}
            usage = Usage(int(counted.get("prompt_tokens") or 0), int(counted.get("completion_tokens") or 0))
            return Reply(text, usage, str(choice.get("finish_reason") or ""))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            start = body[:200].decode("utf-8", "replace")
            raise EndpointError(f"{self._url}: the body is no chat completion ({error!r}): {start!r}.", again=True) from error


class _NoRedirect(url_request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: the status becomes an error."""


def _body(response: Any, deadline: float, url: str) -> bytes:
    """The body, read until a deadline however slowly it drips."""
    parts: list[bytes] = []
    length = 0
    while part := response.read1(1 << 16):
        parts.append(part)
        length += len(part)
        if length > _LONGEST_BODY:
            raise EndpointError(f"{url}: the answer is longer than {_LONGEST_BODY} bytes.", again=False)
        if time.monotonic() > deadline:
            raise EndpointError(f"{url}: the answer took longer than endpoint.timeout.", again=True)
    if response.length:
        raise EndpointError(f"{url}: the answer broke off {response.length} bytes before its end.", again=True)
    return b"".join(parts)


def _retry_after(error: url_error.HTTPError) -> float | None:
    value = (error.headers.get("Retry-After") or "").strip()
    return float(value) if value.isascii() and value.isdigit() else None
