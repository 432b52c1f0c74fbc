"""Tables and plots of measured figures, made from the committed result files of the packages' benchmarks.

    python docs/_bench_tables.py [--check]      the READMEs' tables and the made pages; --check fails when one is out of step

Promises: `<!-- bench: PACKAGE -->` in a page of the site becomes the package's tables and plots when the site is built, and the
lines between `<!-- measured:begin -->` and `<!-- measured:end -->` of its README are the short table. A case is shown from the
newest file that holds it, beside files that were made with other `settings`; no figure is typed. Result files:
`packages/<name>/benchmarks/results/*.json`. A package whose figures are of another kind brings a `tables.py` in its benchmarks,
whose `page` and `readme` then make the tables. A `*_tables.py` in a package's benchmarks makes a whole page: `page()` is the text
of the file `PAGE`, made from the files in `RESULTS`.
Not for: measuring, or deciding what suffices (`targets.py` of a package's benchmarks does).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
PACKAGES = HERE.parent / "packages"
PAGE_MARK = re.compile(r"<!-- bench: ([\w-]+) -->")
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
NOTHING = "No result file is committed yet."
VARIANTS = ("_positions", "_backward", "_unweighted")
INEXACT = "_inexact"
FAMILIES = (
    ("Element-wise operators", "TB/s", "counting the fewest bytes; more is better, the dashed line is the copy rate"),
    (
        "Linear + cross-entropy",
        "ms",
        "forward + backward, memory beyond the inputs; less is better, the dashed line is the floor",
    ),
    ("Whole steps", "s", "forward + backward, peak memory in all; less is better"),
)
DECIMALS = {"TB/s": 2, "ms": 1, "s": 2}
WHOLE_RUN = ("settings", "squares")
"""What a file says of its whole run; it goes along with each of its rows."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """The rows of one case, variant and shape: a line of a table."""

    case: str
    variant: str
    shape: dict[str, int]
    rows: dict[str, Row]

    @property
    def name(self) -> str:
        return f"{self.case} ({self.variant.strip('_')})" if self.variant else self.case

    def best_peer(self) -> str | None:
        """The fastest implementation that is not ours and whose answers are exact."""
        peers = [impl for impl, row in self.rows.items() if not impl.startswith("eagle") and not row["case"].endswith(INEXACT)]
        sign = 1 if self.rows and next(iter(self.rows.values()))["unit"] == "TB/s" else -1
        return max(peers, key=lambda impl: sign * self.rows[impl]["value"], default=None)


@dataclass(frozen=True)
class Measured:
    """What a package's result files hold: the files that are shown, their rows in order, and the recorded test runs."""

    files: list[dict[str, Any]]
    rows: list[Row]
    test_runs: list[dict[str, Any]]


def load_beside(path: Path, name: str) -> ModuleType:
    """A module from a file that is on no import path."""
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def base(row: Row) -> str:
    """The case's name without the mark of an inexact answer."""
    return row["case"].removesuffix(INEXACT)


def read(folder: Path) -> Measured:
    """The newest rows of every case and settings in a package's folder of result files."""
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    contents.sort(key=lambda content: content["date"], reverse=True)
    taken: dict[tuple[str, str], dict[str, Any]] = {}

    def key(row: Row, content: dict[str, Any]) -> tuple[str, str]:
        return base(row), json.dumps(content.get("settings"), sort_keys=True)

    for content in contents:
        for row in content.get("rows", ()):
            taken.setdefault(key(row, content), content)
    rows = [
        {**row, **{word: content[word] for word in WHOLE_RUN if word in content}}
        for content in contents
        for row in content.get("rows", ())
        if taken[key(row, content)] is content
    ]
    files = [content for content in contents if any(content is used for used in taken.values())]
    return Measured(files, rows, [content for content in contents if "tests" in content])


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """Rows joined into table lines, in order of appearance."""
    found: dict[tuple[str, str, str], Line] = {}
    for row in rows:
        variant = next((word for word in VARIANTS if row["impl"].endswith(word)), "")
        line = Line(base(row), variant, row["shape"], {})
        line = found.setdefault((line.case, variant, str(line.shape)), line)
        line.rows[row["impl"].removesuffix(variant)] = row
    return list(found.values())


def figure(row: Row | None) -> str:
    """A cell: the value, with its peak where there is one; a star where the answer is not exact."""
    if row is None:
        return "-"
    star = "*" if row["case"].endswith(INEXACT) else ""
    plus = "+" if row["unit"] == "ms" else ""
    peak = f", {plus}{row['peak_gib']:.1f} GiB" if row.get("peak_gib") else ""
    return f"{row['value']:.{DECIMALS[row['unit']]}f}{star}{peak}"


def size(shape: dict[str, int]) -> str:
    """The size that differs between the lines of a case: the first, as "65536 rows"."""
    key, value = next(iter(shape.items()))
    return f"{value} {key}"


def other_sizes(lines: Sequence[Line]) -> str:
    """The sizes that `size` leaves out, each once."""
    said = dict.fromkeys(f"{key} {value}" for line in lines for key, value in list(line.shape.items())[1:])
    return f" Other sizes: {', '.join(said)}." if said else ""


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def own_tables(package: str) -> ModuleType | None:
    """The package's own `tables.py`, if it has one."""
    found = sorted((PACKAGES / package / "benchmarks").glob("*/tables.py"))
    return load_beside(found[0], f"{package}-tables") if found else None


def own_verdicts(package: str, rows: Sequence[Row]) -> list[Any]:
    """The package's verdicts as its `targets.py` gives them; empty without one."""
    found = sorted((PACKAGES / package / "benchmarks").glob("*/targets.py"))
    return load_beside(found[0], f"{package}-targets").judge(rows) if found else []


def targets_of(package: str, rows: Sequence[Row]) -> dict[str, str]:
    """The targets of every case, each with whether it is reached, from the package's own `targets.py`; empty without one."""
    verdicts = own_verdicts(package, rows)
    signs = {True: "reached", False: "**not reached**", None: "not measured"}
    cells: dict[str, list[str]] = {}
    for verdict in verdicts:
        measured = f" ({verdict.measured})" if verdict.reached is not None else ""
        cells.setdefault(verdict.case, []).append(f"{verdict.text}: {signs[verdict.reached]}{measured}")
    return {case: "<br>".join(words) for case, words in cells.items()}


def last_of_case(line: Line, lines: Sequence[Line]) -> bool:
    """True for the line that carries the case's targets: its plain variant at the last shape."""
    return not line.variant and drawn(line, lines)


def page(package: str, measured: Measured) -> str:
    """The tables and plots of the site: a section a family, then what the files were measured on and what they lack."""
    if own := own_tables(package):
        return "\n".join([*own.page(measured.rows, own_verdicts(package, measured.rows)), *provenance(measured)])
    plot = load_beside(HERE / "_bench_plot.py", "bench-plot")
    verdicts = targets_of(package, measured.rows)
    parts: list[str] = []
    for title, unit, meaning in FAMILIES:
        lines = lines_of([row for row in measured.rows if row["unit"] == unit])
        if not lines:
            continue
        peers = list(dict.fromkeys(impl for line in lines for impl in line.rows if impl != "eagle"))
        bound = any(limit(line) for line in lines)
        body = [
            [
                line.name,
                size(line.shape),
                figure(line.rows.get("eagle")),
                line.best_peer() or "-",
                *(figure(line.rows.get(peer)) for peer in peers),
                *((limit_cell(line),) if bound else ()),
                verdicts.get(line.case, "-") if last_of_case(line, lines) else "",
            ]
            for line in lines
        ]
        limits = ["ceiling" if unit == "TB/s" else "floor"] if bound else []
        head = ["case", "shape", "ours", "best peer", *peers, *limits, "target: reached?"]
        groups = [plot.Group(line.name, values(line), limit(line)) for line in lines if drawn(line, lines)]
        parts += [f"## {title}", "", f"{unit}, {meaning}.{other_sizes(lines)}", "", *table(head, body), ""]
        parts += [plot.bars(title, unit, groups, DECIMALS[unit]), ""] if groups else []
    if any(row["case"].endswith(INEXACT) for row in measured.rows):
        parts += ["\\* The error of this answer is more than 1.05 times that of the eager implementation.", ""]
    return "\n".join([*parts, *provenance(measured)])


def values(line: Line) -> dict[str, float]:
    """Figures to draw, ours first."""
    ordered = sorted(line.rows.items(), key=lambda item: item[0] != "eagle")
    return {impl + ("*" if row["case"].endswith(INEXACT) else ""): row["value"] for impl, row in ordered}


def limit(line: Line) -> float | None:
    """The measured ceiling or floor of a line."""
    return next((row["floor"] for row in line.rows.values() if row.get("floor")), None)


def limit_cell(line: Line) -> str:
    bound = limit(line)
    return "-" if bound is None else f"{bound:.{DECIMALS[next(iter(line.rows.values()))['unit']]}f}"


def drawn(line: Line, lines: Sequence[Line]) -> bool:
    """Each case and variant is drawn once, at its last shape."""
    return line is [other for other in lines if other.name == line.name][-1]


def provenance(measured: Measured) -> list[str]:
    """On what, with what and by which command; then what was absent and what failed."""
    parts = ["## Measured on", ""]
    for content in measured.files:
        parts += [f"- {said_by(content)}. `{content['command']}`. Spread: {content.get('spread', 'not stated')}."]
    for content in measured.test_runs[:1]:
        counts = ", ".join(f"{content[word]} {word}" for word in ("passed", "failed", "skipped"))
        parts += [f"- Tests on {said_by(content)}: {counts}."]
    missing = [
        f"- {line['impl']}{' in ' + line['case'] if line.get('case') else ''}: {line.get('reason') or line.get('error')}"
        for content in measured.files
        for line in (*content.get("absent", ()), *content.get("failures", ()))
        if not str(line.get("reason")).startswith("has no ")  # a dash in the tables says that
    ]
    return [*parts, *(["", "Not measured:", "", *missing] if missing else []), ""]


def said_by(content: dict[str, Any]) -> str:
    """Hardware, versions, commit and day in one phrase."""
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    driver = f", driver {content['driver']}" if content.get("driver") else ""
    return f"{content['hardware']}{driver}, {content['date']}, commit {content['commit'][:12]} ({versions})"


def readme(package: str, measured: Measured) -> str:
    """The short table: ours and the best peer at each case's last shape, and the targets."""
    if not measured.rows:
        return NOTHING
    said = dict.fromkeys(f"{said_by(content)}." for content in measured.files)
    if own := own_tables(package):
        return "\n".join([*own.readme(measured.rows, own_verdicts(package, measured.rows)), "", *said])
    verdicts = targets_of(package, measured.rows)
    lines = lines_of(measured.rows)
    body = []
    for line in (line for line in lines if last_of_case(line, lines)):
        peer = line.best_peer()
        unit = next(iter(line.rows.values()))["unit"]
        best = f"{figure(line.rows[peer])} ({peer})" if peer else "-"
        body.append([line.case, unit, figure(line.rows.get("eagle")), best, verdicts.get(line.case, "-")])
    return "\n".join([*table(["case", "unit", "ours", "best peer", "target: reached?"], body), "", *said])


def results_folder(package: str) -> Path:
    return PACKAGES / package / "benchmarks" / "results"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this for every page: fill its marks."""

    def fill(mark: re.Match[str]) -> str:
        measured = read(results_folder(mark[1]))
        return page(mark[1], measured) if measured.rows else NOTHING

    return PAGE_MARK.sub(fill, markdown)


def between_marks(content: str, filling: str) -> str:
    """A README with its measured part replaced; as it is when it has no marks."""
    if BEGIN not in content or END not in content:
        return content
    before, after = content.split(BEGIN)[0], content.split(END)[1]
    return f"{before}{BEGIN}\n{filling}\n{END}{after}"


def wanted_texts() -> Iterator[tuple[Path, str]]:
    """Every file that holds measured figures, and what it should say."""
    for path in sorted(PACKAGES.glob("*/README.md")):
        yield (
            path,
            between_marks(path.read_text(encoding="utf-8"), readme(path.parent.name, read(results_folder(path.parent.name)))),
        )
    for script in sorted(PACKAGES.glob("*/benchmarks/*_tables.py")):
        maker = load_beside(script, script.stem)
        if maker.RESULTS.is_dir():
            yield maker.PAGE, maker.page()


def stale(write: bool, say: Callable[[str], None] = print) -> list[Path]:
    """READMEs and pages that do not say what the result files say; with `write` they are brought into step."""
    found = []
    for path, wanted in wanted_texts():
        if not path.is_file() or wanted != path.read_text(encoding="utf-8"):
            found.append(path)
            say(f"{path.relative_to(PACKAGES.parent)}: {'rewritten' if write else 'out of step; run `nox -s bench_tables`'}")
            if write:
                path.write_text(wanted, encoding="utf-8")
    return found


if __name__ == "__main__":
    checking = "--check" in sys.argv[1:]
    sys.exit(1 if stale(write=not checking) and checking else 0)
