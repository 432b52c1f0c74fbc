"""A local server that speaks `/v1/chat/completions`, for the tests: it checks each request, looks at the pictures, and
answers in the form that the request's schema asks for; it fails in the ways that a plan names.

It is not a language model: captions name the colour that prevails in the frames it was sent, so a test can tell whether they
arrived. Each answer holds the digest of the request's body, by which journal and server log can be compared.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Plan = Callable[[int, str], str]
"""From a request's number (from 0) and the digest of its body to a mischief, or "" for an honest answer."""


class ChatServer:
    """What the server saw, and what it shall do."""

    def __init__(self, plan: Plan = lambda number, digest: "", delay: float = 0.0, key: str | None = None) -> None:
        self.plan, self.delay, self.key = plan, delay, key
        self.url = ""
        self.asked: list[str] = []
        self.pictures: list[tuple[int, int]] = []
        self.texts: list[str] = []
        self.wrong: list[str] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    @property
    def counts(self) -> Counter[str]:
        """How often each body was asked."""
        return Counter(self.asked)

    def enter(self, digest: str) -> int:
        """Note a request that begins; returns its number."""
        with self._lock:
            self.asked.append(digest)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            return len(self.asked) - 1

    def leave(self) -> None:
        """Note a request that ends."""
        with self._lock:
            self._now -= 1


@contextmanager
def chat_server(plan: Plan = lambda number, digest: "", *, delay: float = 0.0, key: str | None = None) -> Iterator[ChatServer]:
    """A running server; requests without the bearer token `key` get 401."""
    state = ChatServer(plan, delay, key)

    class Handler(_Chat):
        server_state = state

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield state
        server.shutdown()


def colour_of(pictures: list[np.ndarray]) -> str:
    """The channel that prevails in pictures, uint8 ``[height, width, 3]`` each."""
    means = np.mean([picture.reshape(-1, 3).mean(axis=0) for picture in pictures], axis=0)
    return ("red", "green", "blue")[int(means.argmax())]


class _Chat(BaseHTTPRequestHandler):
    server_state: ChatServer

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # its client was killed while it sent: nothing was asked
            self.close_connection = True
            return
        digest = hashlib.sha256(body).hexdigest()[:12]
        state = self.server_state
        number = state.enter(digest)
        try:
            with suppress(OSError):  # a client that was killed, or has given up
                self._answer(number, digest, body)
        finally:
            state.leave()

    def _answer(self, number: int, digest: str, body: bytes) -> None:
        state = self.server_state
        time.sleep(state.delay)
        if state.key is not None and self.headers.get("Authorization") != f"Bearer {state.key}":
            self._send(401, {"error": {"message": "no such key"}})
            return
        mischief = state.plan(number, digest)
        if mischief == "hang":
            time.sleep(3)
        elif mischief == "drop":
            self.close_connection = True
        elif mischief == "redirect":
            self.send_response(307)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif mischief == "half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif mischief == "429":
            self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"})
        elif mischief.isdigit():
            self._send(int(mischief), {"error": {"message": "as planned"}})
        elif mischief == "page":
            self._send(200, "<html>busy</html>")
        else:
            self._chat(json.loads(body), digest, mischief)

    def _chat(self, request: dict[str, Any], digest: str, mischief: str) -> None:
        state = self.server_state
        try:
            text, pictures = self._read(request)
            schema = request["response_format"]["json_schema"]["schema"]
            content = json.dumps(_fill(schema, text, pictures, digest))
        except (KeyError, ValueError, TypeError, OSError) as error:
            state.wrong.append(repr(error))
            self._send(400, {"error": {"message": repr(error)}})
            return
        spoiled = {
            "words": "Here is what you want: a caption.",
            "list": "[1, 2]",
            "key": json.dumps({"brief": "A short one."}),
            "empty": "",
            "null": None,
            "fence": f"```json\n{content}\n```",
            "think": f"<think>{{hm}}</think>\n{content}",
            "placeholder": content.replace("mostly", "<video> mostly").replace("What about", "<video> What about"),
        }
        finish = "length" if mischief == "cut" else "stop"
        message = {"role": "assistant", "content": content[:10] if mischief == "cut" else spoiled.get(mischief, content)}
        usage = {"prompt_tokens": len(text) // 4 + 256 * len(pictures), "completion_tokens": len(content) // 4}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        self._send(200, {"id": digest, "object": "chat.completion", "choices": [choice], "usage": usage})

    def _read(self, request: dict[str, Any]) -> tuple[str, list[np.ndarray]]:
        """The words and pictures of a request. ValueError, KeyError or TypeError where it is not what the protocol says."""
        state = self.server_state
        if self.path != "/v1/chat/completions" or request["model"] != "small" or request["max_tokens"] < 1:
            raise ValueError("wrong path, model or limit")
        roles = [message["role"] for message in request["messages"]]
        if roles not in (["system", "user"], ["system", "user", "assistant", "user"]):
            raise ValueError(f"roles {roles}")
        content = request["messages"][1]["content"]
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        pictures = []
        for part in parts:
            if part["type"] == "image_url":
                head, _, data = part["image_url"]["url"].partition(",")
                if head != "data:image/jpeg;base64":
                    raise ValueError(head)
                picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
                state.pictures.append(picture.size)
                pictures.append(np.asarray(picture.convert("RGB")))
        [text] = [part["text"] for part in parts if part["type"] == "text"]
        state.texts.append(text)
        return text, pictures

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


def _fill(schema: dict[str, Any], text: str, pictures: list[np.ndarray], digest: str) -> dict[str, Any]:
    """An answer to a schema: captions from pictures, or a pair for every type but those that speak of a domain."""
    if schema["additionalProperties"] is not False or sorted(schema["required"]) != sorted(schema["properties"]):
        raise ValueError("the schema is not strict")
    if set(schema["properties"]) == {"brief", "detailed"}:
        brief = f"The film shows a place that is mostly {colour_of(pictures)}."
        return {"brief": brief, "detailed": f"{len(pictures)} pictures <b>&</b> no people; seal {digest}."}
    unfit = {name for name in schema["properties"] if name.startswith("domain_")}
    pairs = {name: {"question": f"What about {name}?", "answer": f"Nothing new, seal {digest}."} for name in schema["properties"]}
    return {name: None if name in unfit else pair for name, pair in pairs.items()}
