"""The commands on media: `inspect`, `frames`, `bench`, `to-lmdb` and `from-lmdb`, added to the command line of `cli`.

Results go to stdout, progress and errors to stderr; exit code 2 means that what was asked cannot be. Nothing but typer is
imported before the arguments have been checked.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from eagle_data.fetch import Fetch
    from eagle_data.lmdb_convert import Conversion

__all__ = ["FetchFrom", "FetchLimit", "FetchThem", "add_to", "fail", "leave"]

_POLICY = "uniform:N, fps:RATE[,MIN,MAX], training:RATE,MIN,MAX, seconds:T,… or segment:N; @START-END behind it takes a clip."
_BAR = 30

FetchThem = Annotated[bool, typer.Option("--fetch", help="Fetch media at http(s) addresses; without it they are refused.")]
FetchFrom = Annotated[
    list[str] | None,
    typer.Option("--fetch-host", help="Fetch them from this host and from no other; repeat it.", show_default=False),
]
FetchLimit = Annotated[int, typer.Option("--fetch-mib", min=1, help="Most MiB to fetch of one address.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(inspect)
    app.command()(frames)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)
    app.command()(to_lmdb)
    app.command()(from_lmdb)


def fail(error: Exception) -> NoReturn:
    """One line on stderr and exit code 2."""
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(2)


def leave(fetch: bool, hosts: list[str] | None, mebibytes: int) -> Fetch | None:
    """What the options `FetchThem`, `FetchFrom` and `FetchLimit` allow; None is no leave."""
    from eagle_data.fetch import Fetch

    return Fetch(max_bytes=mebibytes << 20, hosts=tuple(hosts) if hosts else None) if fetch or hosts else None


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            help="Image, video, PDF, folder or archive of frames, LMDB store, or the address of a file.", show_default=False
        ),
    ],
    policy: Annotated[str, typer.Option(help=f"Which frames: {_POLICY} The released policy when not given.")] = "",
    sheet: Annotated[
        Path | None, typer.Option(help="Draw the chosen frames, or an image's tiles, on this picture file.", show_default=False)
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Decode every frame and say which are damaged.")] = False,
    tile_size: Annotated[int, typer.Option(min=1, help="Side of a tile in pixels.")] = 448,
    tokens_per_tile: Annotated[int, typer.Option(min=1, help="Context tokens of a tile.")] = 256,
    max_tiles: Annotated[int, typer.Option(min=1, help="Most tiles of an image, thumbnail not counted.")] = 12,
    fps: Annotated[float, typer.Option(min=0.001, help="Frames a second of the released policy.")] = 2.0,
    fetch: FetchThem = False,
    fetch_host: FetchFrom = None,
    fetch_mib: FetchLimit = 256,
) -> None:
    """Say what a media file holds and what a model would be shown of it."""
    from eagle_data.errors import EagleDataError
    from eagle_data.inspect_media import describe
    from eagle_data.policies import Rate, parse_policy

    try:
        chosen = parse_policy(policy) if policy else None if fps == 2.0 else Rate(fps)
        sizes = {"tile_size": tile_size, "tokens_per_tile": tokens_per_tile, "max_tiles": max_tiles}
        given = leave(fetch, fetch_host, fetch_mib)
        for line in describe(file, **sizes, policy=chosen, check=check, sheet=sheet, fetch=given):
            typer.echo(line)
    except EagleDataError as error:
        fail(error)


def frames(
    file: Annotated[str, typer.Argument(help="Video, animation, PDF, folder or archive of frames.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and frames.jsonl.", show_default=False)],
    policy: Annotated[str, typer.Option(help=f"Which frames: {_POLICY}")] = "fps:2,4,256",
    kind: Annotated[str, typer.Option(help="png, jpg or webp.")] = "png",
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the pictures; the video's own when not given.")] = "",
    backend: Annotated[str, typer.Option(help="eagle, decord or torchcodec.")] = "eagle",
    fetch: FetchThem = False,
    fetch_host: FetchFrom = None,
    fetch_mib: FetchLimit = 256,
) -> None:
    """Write chosen frames as picture files."""
    from eagle_data.errors import EagleDataError
    from eagle_data.frame_files import write_frames
    from eagle_data.policies import parse_policy
    from eagle_data.video import open_video

    options: dict[str, Any] = {} if backend == "eagle" else {"backend": backend}
    try:
        chosen, wanted = parse_policy(policy), _size(size)
        with open_video(file, fetch=leave(fetch, fetch_host, fetch_mib), **options) as video:
            written, damaged = write_frames(video, chosen, out, kind=kind, size=wanted)
    except (EagleDataError, OSError) as error:
        fail(error)
    typer.echo(f"{written} frames in {out}" + (f", {damaged} of them damaged: see frames.jsonl" if damaged else ""))


def bench(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="Video to time the reader on; without it the package's benchmark runs.")] = "",
    backend: Annotated[
        list[str] | None, typer.Option(help="eagle, decord or torchcodec; repeat it to compare.", show_default="eagle")
    ] = None,
    count: Annotated[
        list[int] | None, typer.Option(min=1, help="Uniform frames to read; repeat it.", show_default="32, 128")
    ] = None,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT to read at.")] = "448x252",
    runs: Annotated[int, typer.Option(min=1, help="Runs of each case; the median counts.")] = 3,
) -> None:
    """Time the reader on a video, or run the package's benchmark (in a checkout) with the options that follow."""
    from eagle_data.errors import EagleDataError

    if not file:
        script = Path(__file__).parents[2] / "benchmarks" / "run.py"
        if not script.is_file():
            fail(ValueError("no video is given, and the benchmark lies in a checkout only: eagle-data bench FILE"))
        raise typer.Exit(subprocess.run([sys.executable, str(script), *context.args], check=False).returncode)
    if context.args:
        fail(ValueError(f"unknown options {' '.join(context.args)}: see eagle-data bench --help"))
    from eagle_data.reader_timing import timing_lines

    try:
        for line in timing_lines(file, backends=backend or ["eagle"], counts=count or [32, 128], size=_size(size), runs=runs):
            typer.echo(line)
    except EagleDataError as error:
        fail(error)


def to_lmdb(
    source: Annotated[
        Path,
        typer.Argument(
            help=".tar (also compressed), .parquet or a folder of them, .jsonl with its files, or a folder.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new store.", show_default=False)],
    root: Annotated[
        Path | None,
        typer.Option(help="What media paths of a .jsonl are relative to; its own folder when not given.", show_default=False),
    ] = None,
    column: Annotated[str, typer.Option(help="Parquet column with the bytes; found when there is only one.")] = "",
    key_column: Annotated[str, typer.Option(help="Parquet column with the keys; `key`, else file name and row.")] = "",
) -> None:
    """Copy pictures into an LMDB store; run it again after an interruption and it goes on."""
    from eagle_data.errors import EagleDataError
    from eagle_data.lmdb_convert import to_lmdb as convert

    bar = _Bar()
    try:
        report = convert(
            source,
            out,
            root=root,
            column=column or None,
            key_column=key_column or None,
            progress=bar.show if bar.wanted else None,
        )
    except (EagleDataError, OSError) as error:
        bar.end()
        fail(error)
    bar.end()
    _tell(report, out)
    if report.rejected:
        typer.echo(f"{out / 'rejects.jsonl'} says which and why", err=True)
    if source.suffix in (".jsonl", ".json"):
        typer.echo(f"annotations: {out.with_name(out.name + '.jsonl')}")


def from_lmdb(
    store: Annotated[Path, typer.Argument(help="LMDB store.", show_default=False)],
    out: Annotated[Path, typer.Option(help="X.tar, X.parquet (a folder of files) or a folder of files.", show_default=False)],
    annotations: Annotated[
        Path | None, typer.Option(help="JSONL that names the store: OUT.jsonl then names the files.", show_default=False)
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="What its media paths are relative to; its own folder when not given.", show_default=False)
    ] = None,
) -> None:
    """Copy an LMDB store to tar, parquet or files; run it again after an interruption and it goes on."""
    from eagle_data.errors import EagleDataError
    from eagle_data.lmdb_exports import from_lmdb as export

    bar = _Bar()
    try:
        report = export(store, out, annotations=annotations, root=root, progress=bar.show if bar.wanted else None)
    except (EagleDataError, OSError) as error:
        bar.end()
        fail(error)
    bar.end()
    _tell(report, out)
    if annotations is not None:
        typer.echo(f"annotations: {out.with_name(out.name + '.jsonl')}")


class _Bar:
    """A progress bar on stderr, for people only."""

    def __init__(self) -> None:
        self.wanted = sys.stderr.isatty()
        self._shown = False

    def show(self, step: str, done: int, total: int | None) -> None:
        """Draw the state anew; without a total only the count."""
        if total:
            full = min(done * _BAR // total, _BAR)
            text = f"{step:<5} [{'#' * full}{'.' * (_BAR - full)}] {done} of {total}"
        else:
            text = f"{step:<5} {done}"
        typer.echo(f"\r{text}\x1b[K", nl=False, err=True)
        self._shown = True

    def end(self) -> None:
        """Leave the bar's line."""
        if self._shown:
            typer.echo(err=True)
            self._shown = False


def _tell(report: Conversion, out: Path) -> None:
    resumed = f", {report.resumed} of them by an earlier run" if report.resumed else ""
    rejected = f", {report.rejected} rejected" if report.rejected else ""
    typer.echo(f"{report.entries} entries{resumed}: {report.stored} stored and checked ({report.bytes:,} bytes){rejected}: {out}")


def _size(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit() and int(width) and int(height)):
        from eagle_data.errors import EagleDataError

        raise EagleDataError(f"size {text!r} must be WIDTHxHEIGHT in pixels, such as 448x252")
    return int(width), int(height)
