"""Contact sheets: every frame has its place, and a damaged one cannot be overlooked."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from eagle_data.contact_sheet import SheetFrame, draw_sheet, layout_for
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageDraw


def sheet_of(count: int, width: int, height: int, damaged: int | None = None) -> np.ndarray:
    layout = layout_for(width, height, count)
    green = np.full((layout.size[1], layout.size[0], 3), (0, 255, 0), np.uint8)
    frames = [SheetFrame(green, number, float(number), number == damaged) for number in range(count)]
    return np.asarray(draw_sheet(frames, layout, title="t" * 300, subtitle="s", start=0.0, end=float(count), keyframes=[0.0]))


@given(count=st.integers(1, 40), width=st.integers(40, 4000), height=st.integers(40, 4000))
@settings(deadline=None, max_examples=20)
def test_every_frame_is_on_the_sheet_whole_whatever_its_shape(count: int, width: int, height: int) -> None:
    small_width, small_height = layout_for(width, height, count).size
    sheet = sheet_of(count, width, height)
    assert sheet.shape[1] == 1600
    assert ((sheet == (0, 255, 0)).all(-1)).sum() == count * small_width * small_height


@pytest.mark.parametrize("damaged", [None, 2])
def test_a_damaged_frame_is_framed_in_red(damaged: int | None) -> None:
    sheet = sheet_of(4, 160, 90, damaged)
    red = (sheet == (196, 32, 38)).all(-1).sum()
    assert (red > 2000) if damaged is not None else (red == 0)


@pytest.mark.parametrize("count", [4, 100])
def test_labels_of_neighbours_do_not_run_into_each_other(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a frame's time and its number, and between frames, some paper is left, however narrow and late the frames are."""
    texts: list[tuple[float, float, float]] = []
    real = ImageDraw.ImageDraw.text

    def note(self: ImageDraw.ImageDraw, place: tuple[float, float], text: str, *rest: Any, anchor: str, **options: Any) -> None:
        length = ImageDraw.ImageDraw.textlength(self, text, rest[1])
        if text:
            texts.append((place[1], place[0] - (length if anchor == "rs" else 0), place[0] + (0 if anchor == "rs" else length)))
        real(self, place, text, *rest, anchor=anchor, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    layout = layout_for(90, 160, count)
    picture = np.zeros((layout.size[1], layout.size[0], 3), np.uint8)
    frames = [SheetFrame(picture, 100_000 + number, 3600.0 + number, bool(number % 2)) for number in range(count)]
    draw_sheet(frames, layout, title="t", subtitle="s", start=0.0, end=7200.0, keyframes=[0.0, 60.0])
    texts.sort()
    assert len(texts) > count
    for (line, _, right), (next_line, left, _) in itertools.pairwise(texts):
        assert line != next_line or right < left
