"""A small corpus of real files, good and bad: PNG, JPEG, an LMDB store, H.264 clips and a folder of frames."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from eagle_data.lmdb_store import write_lmdb
from PIL import Image

from .media_files import numbered_picture, write_video


def talk(question: str = "What is it?", answer: str = "A cat.") -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def write_media(folder: Path) -> None:
    """Write the media; the names say what is wrong with the bad ones."""
    folder.mkdir(parents=True)
    Image.fromarray(numbered_picture(1, 100, 70)).save(folder / "good.png")
    Image.fromarray(numbered_picture(2, 200, 70)).save(folder / "good.jpg")
    Image.fromarray(numbered_picture(3, 240, 180)).save(folder / "corrupt.jpg")
    data = (folder / "corrupt.jpg").read_bytes()
    (folder / "corrupt.jpg").write_bytes(data[: len(data) * 2 // 3])
    (folder / "text.png").write_text("no picture")
    buffer = io.BytesIO()
    Image.fromarray(numbered_picture(4, 64, 64)).save(buffer, "PNG")
    write_lmdb(folder / "store", [("good", buffer.getvalue())])
    write_video(folder / "good.mp4", frames=60)
    whole = write_video(folder / "truncated.mp4", frames=60).read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "frames").mkdir()
    for number in range(10):
        Image.fromarray(numbered_picture(number)).save(folder / "frames" / f"{number}.png")


GOOD: tuple[dict[str, Any], ...] = (
    talk("Hello."),
    {"image": "good.png", **talk("<image>\nWhat?")},
    {"image": ["good.jpg", "good.png"], **talk("<image-2> or <image-1>?")},
    {"image": {"lmdb_file": "store", "lmdb_key": "good"}, **talk()},
    {"video": "good.mp4", **talk("<video>\nWhat?")},
    {"data": [{"type": "video", "video_list": [{"path": "good.mp4", "start": 0.4, "end": 2.0}]}], **talk()},
    {"data": [{"type": "image", "image_list": ["good.png"]}, {"type": "video", "video_list": ["good.mp4"]}], **talk()},
    {"video": "frames", **talk("Again?")},
    {"image": "good.png", **talk("Once more?")},
)
BAD: tuple[tuple[dict[str, Any] | str, str], ...] = (
    ("{this is not JSON", "not JSON"),
    ({"image": "missing.png", **talk()}, "missing media"),
    ({"video": "missing.mp4", **talk()}, "missing media"),
    ({"image": {"lmdb_file": "store", "lmdb_key": "none"}, **talk()}, "missing media"),
    ({"image": {"lmdb_file": "no_store", "lmdb_key": "good"}, **talk()}, "missing media"),
    ({"video": "truncated.mp4", **talk()}, "unreadable media"),
    ({"image": "text.png", **talk()}, "unreadable media"),
    ({"image": "good.png", **talk("<image><image>")}, "placeholder mismatch"),
    ({"conversations": []}, "empty conversation"),
    ({"conversations": [{"from": "robot", "value": "x"}]}, "bad turn"),
    (talk("long " * 4000), "too long"),
)
CORRUPT: dict[str, Any] = {"image": "corrupt.jpg", **talk()}


def write_annotations(path: Path) -> tuple[list[int], dict[int, str], int]:
    """Write good and bad lines mixed: the numbers of the good, of the bad with their kind, and of the corrupt JPEG."""
    lines: list[str] = []
    good: list[int] = []
    bad: dict[int, str] = {}
    for i in range(max(len(GOOD), len(BAD))):
        if i < len(BAD):
            record, kind = BAD[i]
            lines.append(record if isinstance(record, str) else json.dumps(record))
            bad[len(lines)] = kind
        if i < len(GOOD):
            lines.append(json.dumps(GOOD[i]))
            good.append(len(lines))
    lines.append(json.dumps(CORRUPT))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return good, bad, len(lines)
