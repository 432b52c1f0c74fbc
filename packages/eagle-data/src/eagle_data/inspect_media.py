"""What a media file holds and what the model would see of it, as plain lines and, on request, as a contact sheet.

Images, videos, animations, PDFs, folders and archives of frames, LMDB stores. The frames listed are those of the released
inference policy (upstream section 2.4) unless another is given, the tiles those of Image Area Preservation; a training plan may
take fewer of either.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagle_data.contact_sheet import SheetFrame, draw_sheet, draw_tiles, layout_for
from eagle_data.errors import EagleDataError, MediaError
from eagle_data.fetch import Fetch, allowed, is_address
from eagle_data.frame_files import chosen_frames
from eagle_data.images import image_size, load_image
from eagle_data.lmdb_store import LmdbStore
from eagle_data.policies import Policy, Rate, choose
from eagle_data.references import parse_reference
from eagle_data.table_cells import byte_columns
from eagle_data.tar_members import member_names
from eagle_data.tiling import choose_grid, tiles_for
from eagle_data.video import Video, open_video
from eagle_data.video_report import damage_lines, keyframe_seconds, structure_lines

_SHOWN = 8
_MOST_ON_A_SHEET = 100


def describe(
    path: str | Path,
    *,
    tile_size: int = 448,
    tokens_per_tile: int = 256,
    max_tiles: int = 12,
    policy: Policy | None = None,
    check: bool = False,
    sheet: str | Path | None = None,
    fetch: Fetch | None = None,
) -> Iterator[str]:
    """Lines about a file, a folder or something inside a file.

    Args:
        path: as `load_image` and `open_video` take it.
        tile_size: side of a tile in pixels.
        tokens_per_tile: context tokens of a tile.
        max_tiles: most tiles of an image, thumbnail not counted.
        policy: which frames of a video; the released policy when None.
        check: decode every frame and say which are damaged.
        sheet: a picture file to draw the chosen frames (or the tiles of an image) on.
        fetch: leave to fetch an http(s) address, and its bounds; without it one is refused.

    Raises:
        MediaError: what cannot be read, or a sheet asked of a store.
    """
    text = str(path)
    path = Path(text)
    if path.suffix == ".mdb" or (path / "data.mdb").is_file():
        if sheet is not None:
            raise MediaError(text, "is a store, of which no sheet is drawn", "Inspect one picture: export it with from-lmdb")
        yield from _store(path, tile_size, tokens_per_tile, max_tiles)
        return
    if path.suffix.lower() == ".tar" and not is_address(text):
        names = member_names(text)
        yield f"archive: {text}"
        yield f"members: {len(names)}" + (f", of which the first {_SHOWN}:" if len(names) > _SHOWN else "")
        yield from (f"  {text}::{name}" for name in names[:_SHOWN])
    elif path.suffix.lower() == ".parquet" and path.is_file():
        yield from _table(text)
    elif not path.is_dir() and not _moves(text, fetch):
        yield from _image(text, tile_size, tokens_per_tile, max_tiles, sheet, fetch)
    else:
        yield from _video(text, tokens_per_tile, policy, check, sheet, fetch)


def _moves(text: str, fetch: Fetch | None) -> bool:
    """Whether a file is no picture, or a picture of several frames."""
    if is_address(text):
        return _moves_there(text, fetch)
    reference = parse_reference(text)
    if reference.kind != "file":
        try:
            image_size(text)
        except MediaError:
            return reference.kind in ("tar", "cell")
        return False
    return _shows_several(reference.file)


def _moves_there(url: str, fetch: Fetch | None) -> bool:
    """As `_moves`, of an address, by the few bytes that tell. A server that gives no ranges cannot give a video."""
    from eagle_data.media.byte_source import SourceReader
    from eagle_data.media.web_source import WebSource

    allowed(url, fetch)
    try:
        source = WebSource(url, fetch)
    except MediaError:
        return False
    try:
        return _shows_several(SourceReader(source))
    finally:
        source.close()


def _shows_several(file: Any) -> bool:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            # A JPEG with a second picture in it (a phone's depth map, say) is one photograph.
            return image.format not in ("JPEG", "MPO", "TIFF") and getattr(image, "n_frames", 1) > 1
    except UnidentifiedImageError:
        return True
    except (OSError, SyntaxError, ValueError):
        return False


def _image(
    text: str, tile_size: int, tokens_per_tile: int, max_tiles: int, sheet: str | Path | None, fetch: Fetch | None
) -> Iterator[str]:
    picture = load_image(text, fetch=fetch)
    yield f"image: {text}"
    yield from _picture(picture.size, tile_size, tokens_per_tile, max_tiles)
    if sheet is not None:
        grid = choose_grid(*picture.size, tile_size=tile_size, max_tiles=max_tiles)
        subtitle = f"{picture.width} x {picture.height} px, {grid[0]} x {grid[1]} tiles of {tile_size} px"
        subtitle += " and a thumbnail" if tiles_for(grid) > 1 else ""
        yield from _save(draw_tiles(picture, grid, title=Path(text).name, subtitle=subtitle), sheet)


def _picture(size: tuple[int, int], tile_size: int, tokens_per_tile: int, max_tiles: int) -> Iterator[str]:
    grid = choose_grid(*size, tile_size=tile_size, max_tiles=max_tiles)
    tiles = tiles_for(grid)
    yield f"size: {size[0]} x {size[1]} px"
    total = f"{tiles} with thumbnail" if tiles > 1 else "1"
    cuts = f"{_count(grid[0], 'column')} x {_count(grid[1], 'row')}"
    yield f"tiles: {cuts} of {tile_size} px, {total}, {tiles * tokens_per_tile} context tokens"


def _video(
    text: str, tokens_per_tile: int, policy: Policy | None, check: bool, sheet: str | Path | None, fetch: Fetch | None
) -> Iterator[str]:
    with open_video(text, fetch=fetch) as video:
        data = video.metadata
        yield f"video: {text}"
        yield f"size: {data.width} x {data.height} px, rotated by {data.rotation} degrees"
        one_a_second = " (one a second)" if Path(text).is_dir() else ""
        yield f"frames: {data.frames} at {data.fps:.3f} fps, {data.duration:.3f} s{one_a_second}"
        yield from structure_lines(text, video, fetch)
        name = "released policy" if policy is None else f"policy {policy}"
        policy = policy or Rate()
        try:
            choice = choose(video, policy)
        except EagleDataError as error:
            yield f"{name}: {error}"
        else:
            taken, tokens = _count(len(choice), "frame"), len(choice) * tokens_per_tile
            yield f"{name}: {taken} at {choice.fps:.2f} fps, {tokens} context tokens"
            shown = [f"{i} ({float(video.timestamps[i]):.2f} s)" for i in choice.indices]
            yield "frames taken: " + ", ".join(shown if len(shown) <= _SHOWN else [*shown[: _SHOWN - 1], "…", shown[-1]])
            if sheet is not None:
                yield from _sheet(text, video, policy, len(choice), sheet)
        if check:
            yield from damage_lines(video)


def _sheet(text: str, video: Video, policy: Policy, count: int, sheet: str | Path) -> Iterator[str]:
    if count > _MOST_ON_A_SHEET:
        raise MediaError(
            text, f"{count} frames are too many for a sheet", f"Choose at most {_MOST_ON_A_SHEET}: --policy uniform:16"
        )
    data = video.metadata
    layout = layout_for(data.width, data.height, count)
    chosen = list(chosen_frames(video, policy, layout.size))
    frames = [SheetFrame(frame.picture, frame.index, frame.second, frame.corrupt) for frame in chosen]
    start, frames_there = float(video.timestamps[0]), _count(data.frames, "frame")
    picture = draw_sheet(
        frames,
        layout,
        title=Path(text).name,
        subtitle=f"{data.width} x {data.height} px, {frames_there} at {data.fps:.2f} fps; {count} shown, {policy}",
        start=start,
        end=start + data.duration,
        keyframes=() if video.index is None else keyframe_seconds(video.index),
    )
    yield from _save(picture, sheet)


def _save(picture: Any, sheet: str | Path) -> Iterator[str]:
    try:
        picture.save(sheet)
    except (OSError, ValueError) as error:
        raise MediaError(str(sheet), f"cannot be written ({error})", "Give a .png or .jpg file in an existing folder") from error
    yield f"sheet: {sheet}"


def _table(text: str) -> Iterator[str]:
    rows, columns = byte_columns(text)
    yield f"table: {text}"
    yield f"rows: {rows}"
    yield f"columns that may hold media: {', '.join(columns) or 'none'}"
    yield from (f"  {text}::{column}::0" for column in columns[:_SHOWN] if rows)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _store(path: Path, tile_size: int, tokens_per_tile: int, max_tiles: int) -> Iterator[str]:
    store = LmdbStore(path)
    keys = store.keys()
    yield f"LMDB store: {path}"
    yield f"entries: {len(keys)}" + (f", of which the first {_SHOWN}:" if len(keys) > _SHOWN else "")
    for key in keys[:_SHOWN]:
        try:
            size = image_size({"lmdb_file": str(path), "lmdb_key": key})
            grid = choose_grid(*size, tile_size=tile_size, max_tiles=max_tiles)
            tokens = tiles_for(grid) * tokens_per_tile
            yield f"  {key}: {size[0]} x {size[1]} px, {grid[0]} x {grid[1]} tiles, {tokens} context tokens"
        except MediaError as error:
            yield f"  {key}: {error.reason}"
