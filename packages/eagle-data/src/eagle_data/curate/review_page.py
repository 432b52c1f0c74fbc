"""The review page: every clip with pictures, caption and questions, beside what the diversity rule said, in plain HTML files.

`review.html` and, from 60 clips on, `review-2.html` and so forth; pictures in `review/`, made once. The pages open from disk,
load nothing from anywhere and run no script; what models wrote is text there, whatever it looks like.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from eagle_data.contact_sheet import clock
from eagle_data.curate.annotate import AnnotatedClip, AnnotatedStory, Annotations
from eagle_data.curate.clips import Clip, fingerprint, fitted, frames_of, jpeg, moments
from eagle_data.curate.collect import Chosen, Rejected, Selection
from eagle_data.curate.sample_files import write_text
from eagle_data.errors import MediaError
from eagle_data.video import open_video

__all__ = ["write_review"]

_CLIPS_A_PAGE = 60
_PICTURES, _WIDTH = 4, 224

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Curated clips{% if pages > 1 %}, page {{ page }} of {{ pages }}{% endif %}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --faint: #646a73; --accent: #0068b5; }
@media (prefers-color-scheme: dark) { :root { --faint: #a0a5ad; --accent: #5fb0f0; } }
a { color: var(--accent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; overflow-wrap: anywhere; }
article { border-top: 1px solid var(--line); padding: 1rem 0; } article.dropped { opacity: .65; }
h3 { font-size: 1rem; margin: 0 0 .5rem; } h3 small, .faint { color: var(--faint); font-weight: normal; }
img { width: 100%; height: auto; border-radius: 4px; display: block; }
dl { margin: .5rem 0 0; } dt { font-weight: 600; margin-top: .5rem; }
dd { margin: 0; white-space: pre-line; overflow-wrap: anywhere; }
code { font-size: .8rem; color: var(--accent); } table { border-collapse: collapse; }
td { padding: .1rem 1rem .1rem 0; vertical-align: top; }
nav a { margin-right: .75rem; }
</style></head><body>
<h1>Curated clips</h1>
<table>{% for name, value in totals %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
{% if pages > 1 %}<nav>{% for number in range(1, pages + 1) %}{% if number == page %}<b>{{ number }}</b> {% else
%}<a href="review{{ "" if number == 1 else "-%d" % number }}.html">{{ number }}</a>{% endif %}{% endfor %}</nav>{% endif %}
{% for group in groups %}
<h2>{{ group.video }}</h2>
{% with story = group.story %}{% if story %}<article><h3>Whole video</h3>
<dl>{% for chapter, caption in story.chapters %}
<dt>{{ clock(chapter.start) }} to {{ clock(chapter.end) }}: {{ chapter.title }}</dt>
<dd>{{ caption.detailed }}</dd>{% endfor %}</dl>
<dl>{% for type, pair in story.pairs %}
<dt>{{ pair.question }} <code>{{ type }}</code></dt><dd>{{ pair.answer }}</dd>{% endfor %}</dl>
</article>{% endif %}{% endwith %}
{% for shown in group.clips %}
<article{% if not shown.chosen.kept %} class="dropped"{% endif %}>
<h3><a href="{{ shown.href }}">{{ clock(shown.chosen.clip.start) }} to {{ clock(shown.chosen.clip.end) }}</a>
<small>{{ "kept" if shown.chosen.kept else "dropped" }}{% if shown.chosen.nearest
%}; nearest {{ shown.chosen.nearest }}, cosine {{ "%.3f" % shown.chosen.largest }}{% endif %}</small></h3>
{% if shown.picture %}<img loading="lazy" src="{{ shown.picture }}" alt="Frames of the clip in order of time">{% endif %}
{% if shown.annotated %}<dl><dt>{{ shown.annotated.caption.brief }}</dt><dd>{{ shown.annotated.caption.detailed }}</dd></dl>
<dl>{% for type, pair in shown.annotated.pairs %}
<dt>{{ pair.question }} <code>{{ type }}</code></dt><dd>{{ pair.answer }}</dd>{% else %}
<dd class="faint">No question of the types drawn fits.</dd>{% endfor %}</dl>
{% elif shown.chosen.kept %}<p class="faint">No caption and no questions yet.</p>{% endif %}
</article>{% endfor %}{% endfor %}
{% if rejects %}<h2>Left out</h2><dl>{% for reject in rejects %}
<dt>{{ reject.where }}</dt><dd>{{ reject.reason }}</dd>{% endfor %}</dl>{% endif %}
</body></html>
"""


@dataclass(frozen=True)
class _Shown:
    chosen: Chosen
    href: str
    picture: str
    annotated: AnnotatedClip | None


@dataclass
class _Group:
    video: str
    story: AnnotatedStory | None
    clips: list[_Shown]


def write_review(
    selection: Selection,
    annotations: Annotations,
    root: Path,
    out: Path,
    *,
    totals: Sequence[tuple[str, str]],
    rejects: Sequence[Rejected],
) -> Path:
    """Write the pages and the pictures they need to `out`; returns the first page. `totals` stand at the top of each."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    pictures = _pictures([chosen.clip for chosen in selection.clips], root, out / "review")
    by_clip = {annotated.clip: annotated for annotated in annotations.clips}
    stories = {story.video: story for story in annotations.stories}
    chunks = [selection.clips[i : i + _CLIPS_A_PAGE] for i in range(0, len(selection.clips), _CLIPS_A_PAGE)]
    for old in out.glob("review-*.html"):
        old.unlink()
    for page, chunk in enumerate(chunks, 1):
        groups: list[_Group] = []
        for chosen in chunk:
            clip = chosen.clip
            if not groups or groups[-1].video != clip.video:
                groups.append(_Group(clip.video, stories.pop(clip.video, None), []))
            shown = _Shown(chosen, _href(clip, root, out), pictures.get(clip, ""), by_clip.get(clip))
            groups[-1].clips.append(shown)
        values: dict[str, Any] = {"page": page, "pages": len(chunks), "groups": groups, "totals": totals, "clock": clock}
        text = template.render(**values, rejects=rejects if page == len(chunks) else ())
        write_text(out / _page_name(page), text)
    return out / _page_name(1)


def _page_name(page: int) -> str:
    return "review.html" if page == 1 else f"review-{page}.html"


def _href(clip: Clip, root: Path, out: Path) -> str:
    """The video beside the page, with the stretch to be played."""
    path = Path(os.path.relpath((root / clip.video).resolve(), out.resolve())).as_posix()
    return f"{quote(path)}#t={clip.start:g},{clip.end:g}"


def _pictures(clips: Sequence[Clip], root: Path, folder: Path) -> dict[Clip, str]:
    """A strip of frames for each clip, relative to the page; those that cannot be made are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[Clip, str] = {}
    for clip in clips:
        try:
            facts = f"{clip.id} {fingerprint(root / clip.video)}"
            path = folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.jpg"
            if not path.is_file():
                part = path.with_suffix(".part")
                part.write_bytes(jpeg(_strip(root / clip.video, clip), 80))
                os.replace(part, path)
        except (MediaError, OSError):
            continue
        made[clip] = f"{folder.name}/{path.name}"
    return made


def _strip(path: Path, clip: Clip) -> np.ndarray:
    """Frames side by side, uint8 ``[height, width, 3]``."""
    with open_video(path) as video:
        size = fitted(video.metadata.width, video.metadata.height, _WIDTH)
        length = (clip.end - clip.start) or 1.0
        seconds = moments(clip.start, clip.end, _PICTURES / length, _PICTURES)
        return np.concatenate(list(frames_of(video, seconds, size)), axis=1)
