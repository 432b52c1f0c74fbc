"""Asking a real HTTP server that fails in every way: what can be mended is, the rest is said, and nothing is lost or paid for
twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eagle_data.curate.asking import Asker, SpoiledAnswer, Stopped, parse_answer
from eagle_data.curate.clips import fingerprint
from eagle_data.curate.endpoint import Endpoint, EndpointError, Reply
from eagle_data.curate.journal import Journal, Usage
from eagle_data.curate.prompts import Caption, Pictures, Request, caption_request, clip_questions_request
from eagle_data.curate.recipe import EndpointSettings
from eagle_data.errors import MediaError

from .chat_server import ChatServer, chat_server
from .scene_files import write_scenes

CAPTION = Caption(brief="A place.", detailed="A place, seen from afar.")


def question(unit: str = "clip", types: tuple[str, ...] = ("object_count", "domain_arts")) -> Request:
    return clip_questions_request(unit, CAPTION.model_copy(update={"detailed": unit}), types)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.jsonl") as opened:
        yield opened


def asker(server: ChatServer, journal: Journal, key: str | None = None, **changes: Any) -> Asker:
    quick = {"attempts": 4, "backoff": 0.01, "timeout": 1.0, **changes}
    settings = EndpointSettings(url=server.url, model="small", **quick)
    return Asker(Endpoint(settings, key), journal, settings)


def fails_first(mischief: str, times: int = 1):
    return lambda number, digest: mischief if number < times else ""


MENDED = [
    "500",
    "503",
    "429",
    "408",
    "drop",
    "half",
    "page",
    "hang",
    "words",
    "list",
    "key",
    "empty",
    "null",
    "cut",
    "placeholder",
]


@pytest.mark.parametrize("mischief", MENDED)
def test_a_failure_that_passes_is_mended(mischief: str, journal: Journal):
    with chat_server(fails_first(mischief, 2)) as server:
        asked = asker(server, journal, timeout=0.3)
        answer = asked.ask(question())
        assert server.wrong == []
        assert len(server.asked) == 3
        assert asked.retries == 2
    values = answer.model_dump()
    assert values["object_count"]["question"] == "What about object_count?"
    assert values["domain_arts"] is None
    paid = 3 if mischief in ("words", "list", "key", "empty", "null", "cut", "placeholder") else 1
    assert journal.requests == paid


@pytest.mark.parametrize("mischief", ["fence", "think"])
def test_json_in_a_fence_or_behind_a_thought_is_taken_at_once(mischief: str, journal: Journal):
    with chat_server(fails_first(mischief, 9)) as server:
        asker(server, journal).ask(question())
        assert len(server.asked) == 1


def test_a_spoiled_answer_is_shown_to_the_model_with_what_was_wrong(journal: Journal):
    bodies = []
    with chat_server(fails_first("words")) as server:
        asked = asker(server, journal)
        send = asked._endpoint.send
        asked._endpoint.send = lambda messages, schema: bodies.append(messages) or send(messages, schema)
        asked.ask(question())
    assert len(bodies[0]) == 2
    assert bodies[1][:2] == bodies[0]
    assert bodies[1][2] == {"role": "assistant", "content": "Here is what you want: a caption."}
    assert "not one JSON object" in bodies[1][3]["content"]


def test_waits_grow_and_follow_the_server(journal: Journal):
    with chat_server(fails_first("500", 3)) as server:
        started = time.monotonic()
        asker(server, journal, backoff=0.1).ask(question())
        assert 0.35 <= time.monotonic() - started < 2  # half to all of 0.1 + 0.2 + 0.4
    waits = []
    asked = asker(server, journal, longest_wait=7.0, backoff=1.0)
    asked._stop.wait = lambda seconds: waits.append(seconds) or False  # pyright: ignore[reportAttributeAccessIssue]
    asked._wait(1, 5.0)
    asked._wait(1, 500.0)
    asked._wait(60, None)
    assert waits == [5.0, 7.0, 7.0]


@pytest.mark.parametrize(
    ("mischief", "words", "asked_for"),
    [
        ("400", "set endpoint.response_format", 1),
        ("404", "check url", 1),
        ("redirect", "name the final address", 1),
        ("500", "status 500: .*as planned", 4),
        ("half", "broke off", 4),
        ("page", "no chat completion", 4),
    ],
)
def test_a_failure_that_stays_is_said_and_not_journaled(mischief: str, words: str, asked_for: int, journal: Journal):
    with chat_server(fails_first(mischief, 99)) as server:
        with pytest.raises(EndpointError, match=words):
            asker(server, journal).ask(question())
        assert len(server.asked) == asked_for
    assert journal.requests == 0


def test_a_model_that_never_gives_json_is_given_up_with_every_answer_kept(journal: Journal):
    with chat_server(fails_first("words", 99)) as server, pytest.raises(SpoiledAnswer, match="not one JSON object"):
        asker(server, journal).ask(question())
    assert journal.requests == 4
    assert journal.path.read_text().count("Here is what you want") == 4
    assert len(journal) == 0


def test_a_server_that_is_not_there_is_named(journal: Journal):
    with chat_server() as server:
        pass
    with pytest.raises(EndpointError, match="check that the server runs"):
        asker(server, journal, attempts=1).ask(question())


def test_a_finished_answer_is_never_asked_for_again(journal: Journal):
    with chat_server() as server:
        first = asker(server, journal).ask(question())
        again = asker(server, journal)
        assert again.ask(question()).model_dump() == first.model_dump()
        again.stop("enough")
        assert again.ask(question()).model_dump() == first.model_dump()
        assert len(server.asked) == 1
        with pytest.raises(Stopped, match="enough"):
            again.ask(question("another"))


def test_a_refused_key_stops_the_run_and_a_right_one_does_not(journal: Journal):
    with chat_server(key="secret-7") as server:
        wrong = asker(server, journal, key="guess")
        with pytest.raises(EndpointError, match="key_env"):
            wrong.ask(question())
        assert "401" in wrong.stopped
        with pytest.raises(Stopped):
            wrong.ask(question("b"))
        assert len(server.asked) == 1
        asker(server, journal, key="secret-7").ask(question())
    assert "secret-7" not in journal.path.read_text()


def test_so_many_failures_in_a_row_stop_the_run_and_a_success_starts_the_count_anew(journal: Journal):
    plan = iter(["500", "500", "", "500", "500", "500", ""])
    with chat_server(lambda number, digest: next(plan)) as server:
        asked = asker(server, journal, attempts=1, stop_after=3)
        for i, expected in enumerate([EndpointError, EndpointError, None, EndpointError, EndpointError, EndpointError]):
            if expected is None:
                asked.ask(question(str(i)))
            else:
                with pytest.raises(expected):
                    asked.ask(question(str(i)))
            assert bool(asked.stopped) == (i == 5)
        assert "3 requests in a row" in asked.stopped


def test_a_stop_ends_waits_at_once(journal: Journal):
    with chat_server(fails_first("500", 99)) as server:
        asked = asker(server, journal, backoff=60.0)
        threading.Timer(0.3, lambda: asked.stop("enough")).start()
        started = time.monotonic()
        with pytest.raises(Stopped, match="enough"):
            asked.ask(question())
        assert time.monotonic() - started < 5


def test_a_spent_budget_stops_before_the_next_request(journal: Journal):
    with chat_server() as server:
        asked = asker(server, journal, price_in=1000.0, price_out=2000.0, budget=0.1)
        asked.ask(question("a"))
        spent = journal.spent
        assert spent.input > 100
        with pytest.raises(Stopped, match=r"budget of 0\.1 is spent"):
            asked.ask(question("b"))
        assert len(server.asked) == 1


def test_pictures_travel_and_belong_to_the_key(tmp_path: Path, journal: Journal):
    path = write_scenes(tmp_path / "v.mp4", [1], size=(320, 160))
    shown = Pictures(path, "v.mp4", fingerprint(path), (0.5, 1.0, 1.5))
    request = caption_request("caption", "v", shown, start=0, end=2)
    settings = EndpointSettings(url="http://h/v1", model="small", picture=96)
    with chat_server() as server:
        answer = asker(server, journal, picture=96).ask(request)
        assert server.pictures == [(96, 48)] * 3
    assert "3 pictures" in answer.model_dump()["detailed"]
    keys = {
        request.key(settings),
        request.key(settings.model_copy(update={"picture": 95})),
        request.key(settings.model_copy(update={"model": "other"})),
        request.key(settings.model_copy(update={"options": {"temperature": 1}})),
        caption_request("caption", "v", shown, start=0, end=2, title="T").key(settings),
        caption_request("caption", "v", Pictures(path, "v.mp4", "other", (0.5, 1.0, 1.5)), start=0, end=2).key(settings),
        caption_request("caption", "v", Pictures(path, "v.mp4", shown.fingerprint, (0.5, 1.0)), start=0, end=2).key(settings),
    }
    assert len(keys) == 7
    assert request.key(settings.model_copy(update={"url": "http://other/v1", "concurrency": 9})) == request.key(settings)


def test_frames_that_cannot_be_read_are_no_request(tmp_path: Path, journal: Journal):
    (tmp_path / "v.mp4").write_bytes(b"nothing")
    shown = Pictures(tmp_path / "v.mp4", "v.mp4", "x", (0.5,))
    with chat_server() as server:
        with pytest.raises(MediaError, match=r"v\.mp4"):
            asker(server, journal).ask(caption_request("caption", "v", shown, start=0, end=2))
        assert server.asked == []


@pytest.mark.parametrize(
    "text",
    ['{"brief": "", "detailed": "x"}', '{"brief": 1, "detailed": "x"}', '{"brief": "a", "detailed": "\\ud800"}', "[" * 100000],
)
def test_answers_of_the_wrong_form_are_refused(text: str):
    with pytest.raises(SpoiledAnswer):
        parse_answer(Reply(text, Usage(), "stop"), Caption)
