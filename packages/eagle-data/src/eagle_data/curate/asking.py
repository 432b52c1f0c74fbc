"""A request to a validated answer, through failures: asking again with growing waits, and telling the model what was wrong.

Promises that an answer is in the journal before it is returned, that a finished one is never asked for again, and that a
server which fails for good, a refused key or a spent budget stops the run without losing anything. Not for: what to ask
(`annotate`).
"""

from __future__ import annotations

import base64
import json
import random
import re
import threading
from typing import Any

from pydantic import BaseModel, ValidationError

from eagle_data.curate.clips import fitted, frames_of, jpeg
from eagle_data.curate.endpoint import Endpoint, EndpointError, Reply
from eagle_data.curate.journal import Journal, Usage
from eagle_data.curate.prompts import Pictures, Request
from eagle_data.curate.recipe import EndpointSettings
from eagle_data.errors import EagleDataError
from eagle_data.strict import explain
from eagle_data.video import open_video

__all__ = ["Asker", "SpoiledAnswer", "Stopped", "cost", "parse_answer"]

_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)


class Stopped(EagleDataError):
    """The run asks nothing more; the message says why."""


class SpoiledAnswer(EagleDataError):
    """An answer that is not what was asked for."""


def cost(usage: Usage, settings: EndpointSettings) -> float:
    """What tokens cost by the recipe's prices."""
    return (usage.input * settings.price_in + usage.output * settings.price_out) / 1e6


def parse_answer(reply: Reply, form: type[BaseModel]) -> BaseModel:
    """The answer in a reply: JSON that fits `form`, alone, in a code fence or behind a `<think>` block. Raises
    SpoiledAnswer."""
    if reply.finish == "length":
        raise SpoiledAnswer("the answer was cut off at endpoint.max_tokens; raise it")
    text = _THOUGHT.sub("", reply.text).strip()
    fenced = _FENCE.match(text)
    try:
        return form.model_validate(json.loads(fenced[1] if fenced else text))
    except ValidationError as error:
        raise SpoiledAnswer(f"the JSON has not the form asked for: {explain(error)}") from error
    except (ValueError, RecursionError) as error:
        raise SpoiledAnswer(f"the answer is not one JSON object ({error})") from error


class Asker:
    """Asks one endpoint and keeps a journal; shared by the threads of a run. `seed` fixes the chance in waits."""

    def __init__(self, endpoint: Endpoint, journal: Journal, settings: EndpointSettings, seed: int = 0) -> None:
        self.journal = journal
        self.settings = settings
        self.retries = 0
        self._endpoint = endpoint
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._why = ""
        self._failed = 0

    @property
    def stopped(self) -> str:
        """Why nothing more is asked; empty while it is."""
        return self._why

    def stop(self, why: str) -> None:
        """Ask nothing more; waits end at once. The first reason stays."""
        with self._lock:
            self._why = self._why or why
        self._stop.set()

    def finished(self, request: Request) -> BaseModel | None:
        """The answer that the journal has for a request; None where it has none."""
        stored = self.journal.answer(request.key(self.settings))
        return None if stored is None else request.answer.model_validate(stored)

    def ask(self, request: Request) -> BaseModel:
        """The answer to a request, from the journal or the endpoint.

        Raises Stopped; EndpointError or SpoiledAnswer when every attempt failed; MediaError for frames that cannot be read.
        """
        done = self.finished(request)
        if done is not None:
            return done
        self._check()
        plain = _messages(request, self.settings)
        messages = plain
        for left in reversed(range(self.settings.attempts)):
            self._check()
            try:
                reply = self._endpoint.send(messages, request.schema())
            except EndpointError as error:
                self._failure(error, left)
                self._wait(self.settings.attempts - left, error.wait)
                continue
            self._failed = 0
            try:
                return self._store(request, reply)
            except SpoiledAnswer as error:
                if not left:
                    raise
                messages = _corrected(plain, reply, error)
                self._count_retry()
        raise AssertionError("the last attempt returns or raises")

    def _store(self, request: Request, reply: Reply) -> BaseModel:
        key = request.key(self.settings)
        try:
            answer = parse_answer(reply, request.answer)
        except SpoiledAnswer as error:
            self.journal.spoil(key, request.kind, request.unit, reply.text, str(error), reply.usage)
            raise
        self.journal.finish(key, request.kind, request.unit, answer.model_dump(), reply.usage)
        return answer

    def _check(self) -> None:
        budget = self.settings.budget
        if budget is not None and cost(self.journal.spent, self.settings) >= budget:
            self.stop(f"the budget of {budget:g} is spent; raise endpoint.budget to go on")
        if self._stop.is_set():
            raise Stopped(self._why)

    def _failure(self, error: EndpointError, left: int) -> None:
        """Raise unless asking again may help; stop the run where nothing else would succeed either."""
        if error.stop:
            self.stop(str(error))
            raise error
        if error.again and left:
            self._count_retry()
            return
        with self._lock:
            self._failed += 1
            too_many = self._failed >= self.settings.stop_after
        if too_many:
            self.stop(f"{self.settings.stop_after} requests in a row failed for good; the last: {error}")
        raise error

    def _wait(self, attempt: int, asked: float | None) -> None:
        settings = self.settings
        seconds = settings.backoff * 2 ** min(attempt - 1, 30)
        with self._lock:
            seconds *= 0.5 + self._random.random() / 2
        self._stop.wait(min(max(seconds, asked or 0.0), settings.longest_wait))

    def _count_retry(self) -> None:
        with self._lock:
            self.retries += 1


def _messages(request: Request, settings: EndpointSettings) -> list[dict[str, Any]]:
    content: str | list[dict[str, Any]] = request.text
    if request.pictures is not None:
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in _data_urls(request.pictures, settings)]
        content = [*shown, {"type": "text", "text": request.text}]
    return [{"role": "system", "content": request.system}, {"role": "user", "content": content}]


def _data_urls(pictures: Pictures, settings: EndpointSettings) -> list[str]:
    with open_video(pictures.path, threads=1) as video:
        size = fitted(video.metadata.width, video.metadata.height, settings.picture)
        frames = frames_of(video, pictures.seconds, size)
    coded = (base64.b64encode(jpeg(frame, settings.quality)).decode("ascii") for frame in frames)
    return [f"data:image/jpeg;base64,{text}" for text in coded]


def _corrected(plain: list[dict[str, Any]], reply: Reply, error: SpoiledAnswer) -> list[dict[str, Any]]:
    """The request once more, with the spoiled answer and what was wrong with it; an empty or cut one is not shown."""
    if not reply.text or reply.finish == "length":
        return plain
    complaint = f"That cannot be used: {error}. Answer again with the JSON object that was asked for, and nothing else."
    return [*plain, {"role": "assistant", "content": reply.text}, {"role": "user", "content": complaint}]
