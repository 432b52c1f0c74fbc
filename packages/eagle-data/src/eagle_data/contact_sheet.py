"""A contact sheet: the frames that a policy chose, each with its time, above the whole video's time line.

Pure drawing on arrays with Pillow's own font; opens no file. Damaged frames are framed in red and say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Layout", "SheetFrame", "clock", "draw_sheet", "draw_tiles", "layout_for"]

_WIDTH = 1600
_MARGIN, _GAP = 48, 20
_LABEL = 34
_PAPER, _INK, _FAINT, _LINE = (250, 250, 248), (28, 30, 34), (120, 124, 130), (214, 215, 212)
_ACCENT, _RED = (0, 104, 181), (196, 32, 38)


@dataclass(frozen=True, eq=False)
class SheetFrame:
    """One frame to be shown: uint8 ``[height, width, 3]``, its number, its second, and whether it is damaged."""

    picture: np.ndarray
    index: int
    second: float
    corrupt: bool = False


@dataclass(frozen=True)
class Layout:
    """How frames are laid out: how many side by side, and the ``(width, height)`` at which each is drawn."""

    columns: int
    size: tuple[int, int]

    @property
    def cell(self) -> int:
        """Width of a column without the gap beside it."""
        return (_WIDTH - 2 * _MARGIN - (self.columns - 1) * _GAP) // self.columns


def layout_for(width: int, height: int, count: int) -> Layout:
    """The layout of `count` frames of this size; frames may be decoded straight to its `size`."""
    columns = _columns(width, height, count)
    cell = Layout(columns, (1, 1)).cell
    scale = min(cell / width, 560 / height)
    return Layout(columns, (max(round(width * scale), 1), max(round(height * scale), 1)))


def draw_sheet(
    frames: Sequence[SheetFrame],
    layout: Layout,
    *,
    title: str,
    subtitle: str,
    start: float,
    end: float,
    keyframes: Sequence[float] = (),
) -> Image.Image:
    """The sheet as an RGB picture 1600 pixels wide.

    Args:
        frames: at least one, all of the layout's size.
        layout: from `layout_for`.
        title: the file.
        subtitle: what it holds and how frames were chosen.
        start: second at which the time line begins.
        end: second at which it ends.
        keyframes: seconds marked on the time line as keyframes.
    """
    (width, height), columns, cell = layout.size, layout.columns, layout.cell
    rows = math.ceil(len(frames) / columns)
    top = _MARGIN + 92
    below = top + rows * (height + _LABEL) + (rows - 1) * _GAP
    sheet = Image.new("RGB", (_WIDTH, below + 118), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _heading(pen, title, subtitle)
    for number, frame in enumerate(frames):
        row, column = divmod(number, columns)
        left = _MARGIN + column * (cell + _GAP) + (cell - width) // 2
        upper = top + row * (height + _LABEL + _GAP)
        sheet.paste(Image.fromarray(frame.picture), (left, upper))
        colour = _RED if frame.corrupt else _LINE
        thick = 4 if frame.corrupt else 1
        pen.rectangle(
            (left - thick, upper - thick, left + width + thick - 1, upper + height + thick - 1), outline=colour, width=thick
        )
        base = upper + height + _LABEL - 8
        pen.text((left, base), clock(frame.second), _INK, _font(19), anchor="ls")
        room = width - _font(19).getlength(clock(frame.second)) - 8
        labels = (f"damaged  #{frame.index}", "damaged", "") if frame.corrupt else (f"#{frame.index}", "")
        label = next(text for text in labels if not text or _font(16).getlength(text) <= room)
        pen.text((left + width, base), label, _RED if frame.corrupt else _FAINT, _font(16), anchor="rs")
    _time_line(pen, frames, below + 52, start, end, keyframes)
    return sheet


def draw_tiles(picture: Image.Image, grid: tuple[int, int], *, title: str, subtitle: str) -> Image.Image:
    """An image with the cuts of its tile grid ``(columns, rows)`` drawn on it."""
    scale = min((_WIDTH - 2 * _MARGIN) / picture.width, 1200 / picture.height)
    shown = picture.resize(
        (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)), Image.Resampling.LANCZOS
    )
    top = _MARGIN + 92
    sheet = Image.new("RGB", (_WIDTH, top + shown.height + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _heading(pen, title, subtitle)
    left = (_WIDTH - shown.width) // 2
    sheet.paste(shown, (left, top))
    for axis, count in enumerate(grid):
        for cut in range(count + 1):
            at = round(cut * shown.size[axis] / count)
            ends = (
                (left + at, top, left + at, top + shown.height) if axis == 0 else (left, top + at, left + shown.width, top + at)
            )
            pen.line(ends, _PAPER, 5)
            pen.line(ends, _ACCENT, 2)
    return sheet


def clock(second: float) -> str:
    """A second as ``m:ss.cc``, or ``h:mm:ss.cc`` from one hour on."""
    total = round(abs(second) * 100)
    minutes, hundredths = divmod(total, 6000)
    hours, minutes = divmod(minutes, 60)
    sign = "-" if second < 0 and total else ""
    seconds = f"{hundredths // 100:02d}.{hundredths % 100:02d}"
    return f"{sign}{hours}:{minutes:02d}:{seconds}" if hours else f"{sign}{minutes}:{seconds}"


def _columns(width: int, height: int, count: int) -> int:
    """Columns that make a sheet of about 4:3, three at least where there are so many frames, and no last row of a single one."""
    best = round(math.sqrt(count * (height + _LABEL) / width * 4 / 3))
    columns = min(max(best, 3), count, 10)
    return columns + 1 if count % columns == 1 and 1 < columns < 10 and columns + 1 < count else columns


def _heading(pen: ImageDraw.ImageDraw, title: str, subtitle: str) -> None:
    room = _WIDTH - 2 * _MARGIN
    pen.text((_MARGIN, _MARGIN + 26), _cut(title, _font(32), room), _INK, _font(32), anchor="ls")
    pen.text((_MARGIN, _MARGIN + 60), _cut(subtitle, _font(19), room), _FAINT, _font(19), anchor="ls")


def _time_line(
    pen: ImageDraw.ImageDraw, frames: Sequence[SheetFrame], y: int, start: float, end: float, keyframes: Sequence[float]
) -> None:
    left, right = _MARGIN, _WIDTH - _MARGIN
    length = max(end - start, 1e-9)

    def at(second: float) -> float:
        return left + (min(max(second, start), end) - start) / length * (right - left)

    pen.rounded_rectangle((left, y - 3, right, y + 3), 3, fill=_LINE)
    for second in keyframes:
        x = at(second)
        pen.line((x, y + 7, x, y + 13), _FAINT, 1)
    for frame in frames:
        x = at(frame.second)
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=_RED if frame.corrupt else _ACCENT, outline=_PAPER, width=2)
    pen.text((left, y + 40), clock(start), _FAINT, _font(16), anchor="ls")
    pen.text((right, y + 40), clock(end), _FAINT, _font(16), anchor="rs")
    _legend(pen, (left + right) // 2, y + 40, sum(frame.corrupt for frame in frames), len(keyframes))


def _legend(pen: ImageDraw.ImageDraw, middle: int, base: int, damaged: int, keyframes: int) -> None:
    """What the marks on the time line mean, where there is more than one kind of them, centred on `middle`."""
    marks = [(_ACCENT, "shown")]
    if damaged:
        marks.append((_RED, f"{damaged} damaged"))
    if keyframes:
        marks.append((_FAINT, f"{keyframes} keyframes" if keyframes > 1 else "1 keyframe"))
    if len(marks) == 1:
        return
    font, sign, gap = _font(16), 18, 28
    widths = [sign + round(font.getlength(text)) for _, text in marks]
    x = middle - (sum(widths) + gap * (len(marks) - 1)) // 2
    for (colour, text), width in zip(marks, widths, strict=True):
        if colour == _FAINT:
            pen.line((x + 8, base - 10, x + 8, base - 2), _FAINT, 1)
        else:
            pen.ellipse((x, base - 11, x + 10, base - 1), fill=colour)
        pen.text((x + sign, base), text, _FAINT, font, anchor="ls")
        x += width + gap


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
