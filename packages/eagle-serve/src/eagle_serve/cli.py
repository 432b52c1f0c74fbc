"""The command line: `eagle-serve chat` answers in the terminal, `eagle-serve demo` opens the page.

Answers go to stdout and nothing else does; reports and errors go to stderr. Exit code 2 means that what was asked cannot be
(a missing file, broken media, no checkpoint, a prompt too long). torch is imported only after the arguments have been checked.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from eagle_serve.errors import CheckpointError, ServeError

if TYPE_CHECKING:
    from eagle_serve.conversation import Media
    from eagle_serve.session import Session

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Model = Annotated[str, typer.Option("--model", "-m", help="Checkpoint folder or hub id.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …; auto is cuda where there is one.")]

_HELP = """/image PATH   attach an image to the next question (a path may contain spaces)
/video PATH   attach a video to the next question
/clear        start a new conversation
/quit         leave (or end the input)"""


@app.callback()
def commands() -> None:
    """Talk to an Eagle 2.5 checkpoint."""


@app.command()
def chat(
    model: Model,
    question: Annotated[str | None, typer.Argument(help="Without it: a conversation, one question a line.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="An image to show; repeatable.")] = None,
    video: Annotated[
        list[Path] | None, typer.Option("--video", "-v", help="A video to show, after the images; repeatable.")
    ] = None,
    system: Annotated[str, typer.Option(help="System prompt; empty means the checkpoint's own.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token, above 0 samples.")] = 0.0,
    max_tiles: Annotated[int | None, typer.Option(min=1, help="Most tiles of an image, thumbnail not counted.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.01, help="Frames sampled per second of video.  [default: 2]")] = None,
    max_frames: Annotated[int | None, typer.Option(min=2, help="Most frames of a video.  [default: 256]")] = None,
    show_seen: Annotated[bool, typer.Option("--show-seen", help="Report tiles, frames and token counts on stderr.")] = False,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: all cores]", show_default=False)] = None,
) -> None:
    """Ask about images and videos; the answer streams to stdout."""
    from eagle_data.errors import EagleDataError

    from eagle_serve.conversation import media_from_file
    from eagle_serve.folder import find_checkpoint

    try:
        find_checkpoint(model)
        media = [media_from_file(path, "image") for path in image or ()]
        media += [media_from_file(path, "video") for path in video or ()]
    except (ServeError, EagleDataError) as error:
        _fail(error)

    from eagle_serve.quiet import quiet

    with quiet():
        import torch

        from eagle_serve.prompt import VisualSettings
        from eagle_serve.session import Session

        if threads is not None:
            torch.set_num_threads(threads)
        checkpoint = _load(model, device)
        session = Session(checkpoint, system=system, visual=VisualSettings(max_tiles, fps, max_frames))
        generation = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        if question is None:
            _converse(session, media, generation, show_seen)
        else:
            try:
                _ask(session, question, media, generation, show_seen)
            except (ServeError, EagleDataError, ValueError) as error:
                _fail(error)
            except KeyboardInterrupt:
                typer.echo()
                raise typer.Exit(130) from None


@app.command()
def demo(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on; the page has no log-in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8501,
    device: Device = "auto",
) -> None:
    """Serve the page: upload images and videos, chat, see what the model saw."""
    from eagle_serve.demo_server import demo_command, demo_environment, port_is_free
    from eagle_serve.folder import find_checkpoint

    try:
        find_checkpoint(model)
    except CheckpointError as error:
        _fail(error)
    if not port_is_free(host, port):
        _fail(f"port {port} of {host} cannot be used; choose another with --port")
    command = demo_command(host, port)
    # In place of this process, so that Ctrl-C and signals reach the server itself.
    os.execve(command[0], command, {**os.environ, **demo_environment(model, device)})


def _load(model: str, device: str) -> Any:
    from eagle_serve.loading import load_checkpoint

    try:
        return load_checkpoint(model, device=device)
    except ServeError as error:
        _fail(error)


def _ask(session: Session, question: str, media: list[Media], generation: dict[str, Any], show_seen: bool) -> None:
    """Stream one answer to stdout. Raises what `Session.add` and `Session.answer` raise."""
    from eagle_serve.seen_text import seen_lines

    session.add(question, media)
    reported = not show_seen
    with closing(session.answer(**generation)) as answer:
        for piece in answer:
            if not reported and session.seen is not None:
                typer.echo("\n".join(seen_lines(session.seen)), err=True)
                reported = True
            typer.echo(piece, nl=False)
    if not reported and session.seen is not None:
        typer.echo("\n".join(seen_lines(session.seen)), err=True)
    typer.echo()


def _converse(session: Session, media: list[Media], generation: dict[str, Any], show_seen: bool) -> None:
    """Questions from stdin until it ends or says /quit; errors are reported and the conversation goes on."""
    import sys

    terminal = sys.stdin.isatty()
    if terminal:
        typer.echo(f"{_HELP}\n", err=True)
    pending = list(media)
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            if terminal:
                typer.echo()
            return
        if line == "/quit":
            return
        try:
            if line.startswith("/"):
                pending = _command(session, line, pending)
            elif line or pending:
                _ask(session, line, pending, generation, show_seen)
                pending = []
        except KeyboardInterrupt:
            pending = []
            typer.echo("\n(stopped)", err=True)
        except (ServeError, ValueError, OSError) as error:
            typer.echo(f"Error: {error}", err=True)


def _command(session: Session, line: str, pending: list[Media]) -> list[Media]:
    """Carry out a line that starts with a slash; returns the media waiting for the next question."""
    from eagle_serve.conversation import media_from_file

    name, _, rest = line.partition(" ")
    rest = rest.strip().strip("'\"")
    if name in ("/image", "/video") and rest:
        media = media_from_file(rest, "image" if name == "/image" else "video")
        typer.echo(f"attached {media.name}", err=True)
        return [*pending, media]
    if name == "/clear":
        session.clear()
        return []
    if name != "/help":
        typer.echo(f"Error: {line!r} is not a command:", err=True)
    typer.echo(_HELP, err=True)
    return pending


def _fail(error: object) -> NoReturn:
    typer.echo(f"Error: {error}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """The console script."""
    app()
