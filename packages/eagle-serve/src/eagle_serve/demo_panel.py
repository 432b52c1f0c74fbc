"""The panel "What the model saw" as one piece of HTML: tiles laid out as they were cut, frames with their times, token counts.

Pure: `Seen` in, text out; pictures travel inside it as data URLs. Colours come from the page's own text colour, so that it
reads in light and dark. File names are escaped.
"""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from eagle_serve.seen import Seen, SeenPicture, SeenVideo
from eagle_serve.seen_text import picture_line, video_line

__all__ = ["panel_html"]

_LONGEST_SIDE = 160

_STYLE = """<style>
.seen { font-size: .875rem; line-height: 1.4; display: flex; flex-direction: column; gap: 1.25rem; }
.seen img { display: block; width: 100%; height: auto; border-radius: 3px; }
.seen .tiny { image-rendering: pixelated; }
.seen b { font-weight: 600; overflow-wrap: anywhere; }
.seen .what { opacity: .7; }
.seen .row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; margin-top: .5rem; }
.seen figure { margin: 0; }
.seen figcaption { opacity: .7; font-size: .75rem; margin-top: .2rem; font-variant-numeric: tabular-nums; }
.seen .grid { display: grid; gap: 3px; }
.seen .frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(72px, 1fr)); gap: .5rem; margin-top: .5rem; }
.seen .bar { display: flex; height: .5rem; border-radius: .25rem; overflow: hidden; margin: .25rem 0 .4rem;
  background: color-mix(in srgb, currentColor 14%, transparent); }
.seen .visual { background: #12a594; } .seen .text { background: #6e7bf2; }
.seen .key { display: inline-block; width: .6rem; height: .6rem; border-radius: 2px; margin-right: .35rem; }
.seen .keys { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-variant-numeric: tabular-nums; }
</style>"""


def panel_html(seen: Seen) -> str:
    """The whole panel, with its style."""
    parts = [_tokens(seen)]
    parts += [_picture(item) if isinstance(item, SeenPicture) else _video(item) for item in seen.media]
    return f'{_STYLE}<div class="seen">{"".join(parts)}</div>'


def _tokens(seen: Seen) -> str:
    def share(tokens: int) -> str:
        return f"{100 * tokens / seen.context_length:.2f}%"

    return (
        f"<div><b>{seen.total_tokens:,} of {seen.context_length:,} tokens</b>"
        f'<div class="bar"><div class="visual" style="width:{share(seen.visual_tokens)}"></div>'
        f'<div class="text" style="width:{share(seen.text_tokens)}"></div></div>'
        f'<div class="keys"><span><span class="key visual"></span>{seen.visual_tokens:,} visual</span>'
        f'<span><span class="key text"></span>{seen.text_tokens:,} text</span></div></div>'
    )


def _picture(picture: SeenPicture) -> str:
    columns, rows = picture.grid
    cut = picture.tiles[: columns * rows]
    # Tall strips stay as narrow as one tile of a square grid, wide ones take the line.
    width = min(columns * 110, 520) if columns >= rows else max(columns * 330 // rows, 60)
    tiles = "".join(_image(tile, f"tile {number}") for number, tile in enumerate(cut, 1))
    label = f"{columns} × {rows} tiles" if len(cut) > 1 else "1 tile"
    figures = (
        f'<figure style="width:{width}px;max-width:100%"><div class="grid" style="grid-template-columns:repeat({columns},1fr)">'
        f"{tiles}</div><figcaption>{label}</figcaption></figure>"
    )
    if picture.thumbnail:
        figures += (
            f'<figure style="width:110px">{_image(picture.tiles[-1], "thumbnail")}<figcaption>thumbnail</figcaption></figure>'
        )
    return f'<div>{_heading(picture.name, picture_line(picture))}<div class="row">{figures}</div></div>'


def _video(video: SeenVideo) -> str:
    figures = []
    for number, frame in enumerate(video.frames, 1):
        caption = f"{frame.timestamp:.2f} s" if frame.timestamp is not None else f"frame {number}"
        figures.append(f"<figure>{_image(frame.tiles[-1], caption)}<figcaption>{caption}</figcaption></figure>")
    return f'<div>{_heading(video.name, video_line(video, seconds=False))}<div class="frames">{"".join(figures)}</div></div>'


def _heading(name: str, line: str) -> str:
    return f'<b>{escape(name)}</b> <span class="what">{escape(line)}</span>'


def _image(tile: np.ndarray, label: str) -> str:
    """A tile uint8 [side, side, 3] as an `<img>`; small ones keep their pixels, large ones are scaled down for the page."""
    picture = Image.fromarray(tile)
    tiny = picture.width < _LONGEST_SIDE // 2
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG" if tiny else "JPEG")
    kind = "png" if tiny else "jpeg"
    data = base64.b64encode(file.getvalue()).decode()
    style = ' class="tiny"' if tiny else ""
    return f'<img{style} alt="{escape(label)}" title="{escape(label)}" src="data:image/{kind};base64,{data}">'
