"""`curate`: from a recipe to annotations, files and a review page, gone on with where an earlier run of the folder ended.

Steps: embed and choose clips (`collect`), say what asking will cost (`estimate`), ask (`annotate`), write samples
(`sample_files`), the report and the page (`review_page`). What the endpoint fails at is listed, kept out of the samples, and
asked for by the next run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from eagle_data.curate.annotate import Annotations, annotate, read_chapters
from eagle_data.curate.asking import Asker, cost
from eagle_data.curate.collect import Rejected, Selection, collect, write_kept
from eagle_data.curate.endpoint import Endpoint
from eagle_data.curate.estimate import Estimate, estimate
from eagle_data.curate.journal import Journal
from eagle_data.curate.prompts import Chapter
from eagle_data.curate.recipe import CurateRecipe, EndpointSettings
from eagle_data.curate.review_page import write_review
from eagle_data.curate.sample_files import write_lines, write_samples, write_text
from eagle_data.errors import EagleDataError

__all__ = ["CurateReport", "curate"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CurateReport:
    """What a run found and made; `report.json` holds the same.

    Attributes:
        clips: that could be looked at, `kept` of them new; `existing` clips they were compared with.
        captioned: clips with captions and questions; `stories`: videos with questions.
        questions: in each file of samples.
        rejected: videos, clips and questions that were left out, listed in `rejects.jsonl`.
        missing: clips, chapters and stories not asked for because the run stopped, and `stopped`: why (empty: it did not).
        requests: answers that the journal holds, spoiled ones too; `retries`: attempts of this run that had to be repeated.
        input_tokens, output_tokens, cost: of all runs of this folder.
    """

    clips: int
    kept: int
    existing: int
    captioned: int = 0
    stories: int = 0
    questions: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    missing: int = 0
    stopped: str = ""
    requests: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


def curate(
    recipe: CurateRecipe,
    out: str | Path,
    *,
    ask: bool = True,
    progress: Progress | None = None,
    announce: Callable[[Selection, Estimate | None], None] | None = None,
) -> CurateReport:
    """Run a recipe, in the folder `out`; called again it goes on, and pays for no finished answer twice.

    Args:
        recipe: what to do.
        out: made when missing; see the table in the documentation for what lies there.
        ask: False ends after the estimate, and writes what earlier runs have.
        progress: called with a step, how much of it is done, and of how much.
        announce: called before anything is asked, with the selection and the estimate (None without an endpoint). Raise in it
            to stop.

    Raises:
        EagleDataError: no videos, a wrong embedder, a missing key or chapters file, an estimate over the budget, or a folder
        in use.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with Journal(out / "journal.jsonl") as journal:
        selection = collect(recipe, out, progress)
        _write_selection(selection, out)
        stories, rejects = _stories(recipe, selection)
        annotations, stopped, retries = Annotations((), (), (), 0), "", 0
        if recipe.endpoint is None:
            if announce is not None:
                announce(selection, None)
        else:
            # The key is only looked for when something will be asked: an estimate needs none.
            key = _key(recipe.endpoint) if ask else None
            asker = Asker(Endpoint(recipe.endpoint, key), journal, recipe.endpoint, recipe.seed)
            planned = estimate(recipe, asker, selection.kept, stories)
            write_text(out / "estimate.json", json.dumps(asdict(planned), indent=2) + "\n")
            if announce is not None:
                announce(selection, planned)
            if not ask:
                asker.stop("only an estimate was asked for")
            else:
                _check_budget(planned, recipe.endpoint)
            annotations = annotate(recipe, asker, selection.kept, stories, progress)
            stopped, retries = asker.stopped, asker.retries
        rejects = [*selection.rejects, *rejects, *annotations.rejects]
        report = CurateReport(
            clips=len(selection.clips),
            kept=len(selection.kept),
            existing=selection.existing,
            captioned=len(annotations.clips),
            stories=len(annotations.stories),
            questions=write_samples(annotations, recipe, selection.durations, out),
            rejected=len(rejects),
            missing=annotations.missing,
            stopped=stopped,
            requests=journal.requests,
            retries=retries,
            input_tokens=journal.spent.input,
            output_tokens=journal.spent.output,
            cost=cost(journal.spent, recipe.endpoint) if recipe.endpoint else 0.0,
        )
        write_lines(out / "rejects.jsonl", (asdict(reject) for reject in rejects))
        write_review(selection, annotations, recipe.root, out, totals=_totals(report), rejects=rejects)
        write_text(out / "report.json", json.dumps(asdict(report), indent=2) + "\n")
    return report


def _write_selection(selection: Selection, out: Path) -> None:
    write_kept(selection, out)
    lines = (
        {**asdict(chosen.clip), "kept": chosen.kept, "cosine": chosen.largest, "nearest": chosen.nearest}
        for chosen in selection.clips
    )
    write_lines(out / "selection.jsonl", lines)


def _stories(recipe: CurateRecipe, selection: Selection) -> tuple[dict[str, tuple[Chapter, ...]], list[Rejected]]:
    """The chapters of the videos of which a clip was kept."""
    if recipe.story_level is None:
        return {}, []
    videos = {clip.video for clip in selection.kept}
    durations = {video: seconds for video, seconds in selection.durations.items() if video in videos}
    return read_chapters(recipe.story_level.chapters, durations, recipe.story_level.min_chapters)


def _key(settings: EndpointSettings) -> str | None:
    if settings.key_env is None:
        return None
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise EagleDataError(f"the variable {settings.key_env} (endpoint.key_env) is empty; put the server's key there.")
    return key


def _check_budget(planned: Estimate, settings: EndpointSettings) -> None:
    if settings.budget is not None and planned.spent + planned.cost > settings.budget:
        raise EagleDataError(
            f"the run would cost about {planned.cost:.2f} more, {planned.spent:.2f} is spent, and the budget is "
            f"{settings.budget:g}; raise endpoint.budget, or take fewer videos or questions."
        )


def _totals(report: CurateReport) -> list[tuple[str, str]]:
    rows = [
        ("Clips", f"{report.kept} kept of {report.clips}, compared with {report.existing}"),
        ("Captioned", f"{report.captioned} clips, {report.stories} whole videos"),
        ("Questions", ", ".join(f"{count} in {name}.jsonl" for name, count in report.questions.items())),
        ("Tokens", f"{report.input_tokens:,} in, {report.output_tokens:,} out, cost {report.cost:.2f}"),
        ("Left out", str(report.rejected)),
    ]
    if report.missing:
        rows.append(("Not asked yet", f"{report.missing}: {report.stopped}"))
    return rows
