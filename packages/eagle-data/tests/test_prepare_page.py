"""The page of a preparation says what the counts say and shows the samples; the progress line ends at the number of lines."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from eagle_data.ads import VisualRules
from eagle_data.prepare import DatasetReport, prepare
from eagle_data.prepare_counts import Tally, summary
from eagle_data.prepare_page import write_page
from eagle_data.prepare_progress import ProgressLine
from eagle_data.recipe import DatasetEntry
from eagle_data.tokens import PromptTokenizer
from PIL import Image

from .corpus_files import write_annotations, write_media

RULES = VisualRules(tile_size=32, tokens_per_tile=4, max_tiles=6, min_frames=4)
LENGTHS = (160, 512)


class Reader(HTMLParser):
    """Open tags and text of a page; raises where tags are not closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def out(tmp_path: Path, tokenizer: PromptTokenizer) -> Path:
    write_media(tmp_path / "media")
    write_annotations(tmp_path / "a.jsonl")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(json.dumps({"image": "<b>.png", "conversations": []}) + "\n")
    entry = DatasetEntry(annotation=tmp_path / "a.jsonl", root=tmp_path / "media")
    prepare({"d": entry}, tmp_path / "out", context_lengths={"d": LENGTHS}, rules=RULES, tokenizer=tokenizer)
    return tmp_path / "out"


def test_the_page_holds_counts_charts_rejects_and_pictures(out: Path):
    page = Reader()
    page.feed(write_page(out, ["d"]).read_text(encoding="utf-8"))
    assert page.open == []
    text = "\n".join(page.text)
    done = json.loads((out / "d" / "done.json").read_text())
    report = done["report"]
    assert f"{report['read']} read, {report['prepared']} prepared, {report['rejected']} rejected" in text
    for title in ("Tokens of a sample", "Frames and pages", "Tiles of a sample", "Image tiles kept", "Some samples"):
        assert title in text
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert all(entry["reason"] in text for entry in rejects[:20])
    assert {example["where"] for example in done["examples"]} <= set(re.findall(r"\S+a\.jsonl:\d+", text))
    assert page.pictures
    for source in page.pictures:
        Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))).load()


def test_charts_count_every_sample_once(out: Path):
    done = json.loads((out / "d" / "done.json").read_text())
    report = DatasetReport(**done["report"])
    for n in map(str, LENGTHS):
        taken = report.prepared - report.too_long[n] + report.reasons.get("too long", 0)
        charts = done["charts"][n]
        assert [sum(charts[name].values()) for name in ("length", "frames", "tiles")] == [taken] * 3
        assert sum(charts["tiles_kept"].values()) == report.shown[n]["fewer_tiles"]
        assert sum(charts["frames_kept"].values()) == report.shown[n]["fewer_frames"]


def test_a_page_is_made_although_the_media_are_gone(out: Path):
    (out.parent / "media").rename(out.parent / "elsewhere")
    page = write_page(out, ["d"]).read_text(encoding="utf-8")
    assert "no such file" in page


def test_the_summary_says_what_was_given_up(out: Path):
    report = DatasetReport(**json.loads((out / "d" / "done.json").read_text())["report"])
    shown = report.shown["160"]
    line = summary(report, 160)
    assert line.startswith(f"context 160: {report.degraded['160']} degraded, {report.too_long['160']} too long")
    assert f"{shown['fewer_tiles']} with fewer tiles: {shown['image_tiles']} of {shown['wished_image_tiles']} image tiles" in line
    plain = DatasetReport(1, 1, 0, {"8": 0}, {"8": 0}, {}, {"8": {}})
    assert summary(plain, 8) == "context 8: 0 degraded, 0 too long"


def test_a_tally_survives_json_and_adds_up(out: Path):
    done = json.loads((out / "d" / "done.json").read_text())
    values = {**done["report"], "charts": done["charts"]}
    tally = Tally.from_json(values)
    again = Tally.from_json(json.loads(json.dumps(tally.to_json())))
    assert again == tally
    again.add(tally)
    assert again.read == 2 * tally.read
    assert again.shown["160"]["tokens"] == 2 * tally.shown["160"]["tokens"]
    assert again.charts["160"]["length"] == tally.charts["160"]["length"] + tally.charts["160"]["length"]


def test_the_progress_line_shows_a_bar_the_rate_and_the_end():
    stream, now = io.StringIO(), [0.0]
    line = ProgressLine(stream, {"d": 200, "e": None}, clock=lambda: now[0])
    for done in range(0, 201, 10):
        line("d", done)
        now[0] += 0.05
    line("e", 64)
    line.close()
    first, second, _ = stream.getvalue().split("\n")
    shown = first.split("\r")[1:]
    assert len(shown) < 21
    assert shown[-1].startswith("d [########################] 100 %  200 of 200 lines, 200/s, 0 s left")
    assert second.startswith("\re  64 lines")
