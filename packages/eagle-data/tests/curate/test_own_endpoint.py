"""The whole of `curate` against a server of yours: EAGLE_CURATE_URL and EAGLE_CURATE_MODEL say which.

It asks for about a dozen short answers. EAGLE_CURATE_KEY, when set, is sent as key; EAGLE_CURATE_FORMAT is `response_format`
(schema unless set). What the model writes is its own; checked is that everything asked was answered or listed with a reason.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from eagle_data.annotations import read_annotations
from eagle_data.curate.pipeline import curate
from eagle_data.curate.question_types import QUESTION_TYPES
from eagle_data.curate.recipe import CurateRecipe
from eagle_data.samples import Sample

from .scene_files import copy_real

URL, MODEL = os.environ.get("EAGLE_CURATE_URL", ""), os.environ.get("EAGLE_CURATE_MODEL", "")


@pytest.mark.skipif(not (URL and MODEL), reason="set EAGLE_CURATE_URL and EAGLE_CURATE_MODEL to a server that takes pictures")
def test_a_server_of_yours_captions_and_questions_real_clips(tmp_path: Path):
    copy_real(tmp_path / "films")
    halves = [{"start": 0, "end": 5, "title": "The beginning"}, {"start": 5, "end": 10, "title": "The end"}]
    (tmp_path / "chapters.jsonl").write_text(json.dumps({"video": "bikes.mp4", "chapters": halves}))
    endpoint = {
        "url": URL,
        "model": MODEL,
        "key_env": "EAGLE_CURATE_KEY" if os.environ.get("EAGLE_CURATE_KEY") else None,
        "response_format": os.environ.get("EAGLE_CURATE_FORMAT", "schema"),
        "concurrency": 2,
        "max_tokens": 768,
    }
    recipe = CurateRecipe.model_validate(
        {
            "videos": [str(tmp_path / "films")],
            "root": str(tmp_path / "films"),
            "clips": {"seconds": 5, "shortest": 3, "fps": 2},
            "diversity": {"within": 0.9},
            "endpoint": endpoint,
            "clip_level": {"questions": 2, "max_frames": 4},
            "story_level": {"chapters": str(tmp_path / "chapters.jsonl"), "questions": 2, "max_frames": 4},
        }
    )
    out = tmp_path / "out"
    report = curate(recipe, out)
    assert (report.stopped, report.missing) == ("", 0)
    assert report.output_tokens > 0
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = [json.loads(line) for line in (out / "selection.jsonl").read_text(encoding="utf-8").splitlines()]
    left_out = {reject["where"] for reject in rejects}
    assert report.captioned >= 1, rejects
    assert report.captioned + sum(f"{c['video']}@{c['start']:.3f}-{c['end']:.3f}" in left_out for c in chosen) == report.kept
    assert report.stories == 1 or "bikes.mp4" in left_out
    assert sum(report.questions.values()) > 0
    for name in ("clips", "videos", "stories"):
        samples = list(read_annotations(out / f"{name}.jsonl", dataset=name, root=tmp_path / "films"))
        assert all(isinstance(sample, Sample) for sample in samples)
        for line in (out / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            assert set(json.loads(line)["curated"]["types"]) <= set(QUESTION_TYPES)
    if not rejects:
        again = curate(recipe, out)
        assert (again.requests, again.output_tokens) == (report.requests, report.output_tokens)
