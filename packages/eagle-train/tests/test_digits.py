"""The quick start's corpus: real digits, public formats, no leak into the held-out set, every second as labelled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from eagle_data.annotations import Reject, read_annotations
from eagle_data.images import load_image
from eagle_data.recipe import load_data_recipe
from eagle_data.samples import Sample
from eagle_data.video import open_video
from eagle_train.digits import CELL, TASKS, DigitsCorpus, build_corpus, draw_cell, load_digits, training_pictures
from PIL import Image

COUNTS = {name: 12 for name, field in DigitsCorpus.model_fields.items() if field.default >= 100}


def build(folder: Path, **values: Any) -> Path:
    options = {"seed": 3, "tokens_per_tile": 4, **values}
    build_corpus(folder, DigitsCorpus(**COUNTS), **options)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("digits") / "corpus")


def samples(path: Path, root: Path) -> Iterator[Sample]:
    for line in read_annotations(path, dataset=path.stem, root=root):
        assert not isinstance(line, Reject), line
        yield line


def turns(sample: Sample) -> list[tuple[str, str]]:
    """Pairs of question and answer, without media."""
    spoken = [message for message in sample.messages if message.role != "system"]
    questions = [re.sub(r"<(image|video)-\d+>\s*", "", message.text) for message in spoken[::2]]
    return list(zip(questions, (message.text for message in spoken[1::2]), strict=True))


def everything(folder: Path) -> dict[str, str]:
    """Every file by its relative path and content, but for LMDB stores, whose pages are not written in full."""
    files = {}
    for path in sorted(item for item in folder.rglob("*") if item.is_file() and ".lmdb" not in str(item)):
        files[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def test_the_same_seed_writes_the_same_files_and_another_seed_others(corpus: Path, tmp_path: Path):
    again, other = everything(build(tmp_path / "again")), everything(build(tmp_path / "other", seed=4))
    assert everything(corpus) == again
    same = {name for name in again.keys() & other.keys() if again[name] == other[name]}
    assert {Path(name).name for name in same} <= {"recipe.json"}


def test_a_corpus_that_is_there_is_not_written_again_and_one_of_another_seed_is_replaced(tmp_path: Path):
    folder = build(tmp_path / "corpus")
    mark = folder / "digit.jsonl"
    before = mark.stat().st_mtime_ns
    build(folder)
    assert mark.stat().st_mtime_ns == before
    text = mark.read_text()
    build(folder, seed=4)
    assert mark.read_text() != text


def test_an_interrupted_corpus_leaves_nothing_that_passes_for_one(tmp_path: Path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "corpus", progress=stop)
    assert not (tmp_path / "corpus").exists()
    assert everything(build(tmp_path / "corpus")) == everything(build(tmp_path / "straight"))


def test_the_media_are_real_files_in_the_public_formats(corpus: Path):
    recipe = load_data_recipe(corpus / "recipe.json")
    assert set(TASKS) <= set(recipe)
    seen: dict[str, int] = {}
    for name in TASKS:
        for sample in samples(recipe[name].annotation, recipe[name].root):
            for image in sample.images:
                kind = "LMDB" if image.key is not None else Path(image.path).read_bytes()[:4].hex()
                seen[kind] = seen.get(kind, 0) + 1
                assert load_image(image.source).mode == "RGB"
            for video in sample.videos:
                with av.open(video.path) as container:
                    codec = container.streams.video[0].codec_context.name
                    assert "mp4" in container.format.name
                seen[codec] = seen.get(codec, 0) + 1
    assert set(seen) == {"LMDB", "89504e47", "ffd8ffe0", "h264"}, "PNG, JPEG, LMDB and H.264 must all occur"


@pytest.mark.parametrize("task", TASKS)
def test_strips_and_clips_have_the_sizes_that_are_promised(corpus: Path, task: str):
    for sample in samples(corpus / "held_out" / f"{task}.jsonl", corpus / "media"):
        ((question, truth),) = turns(sample)
        assert re.fullmatch(r"\d+", truth)
        if task == "clip":
            with open_video(sample.videos[0].path) as video:
                assert 4 <= video.metadata.duration <= 8
                asked = float(re.findall(r"[\d.]+", question)[0])
                assert 0 <= asked < video.metadata.duration
            continue
        (image,) = sample.images
        width, height = load_image(image.source).size
        assert sorted((width, height)) == [CELL, CELL * len(truth)]
        assert len(truth) == 1 if task == "digit" else 2 <= len(truth) <= 5


def test_strips_lie_and_stand(corpus: Path):
    images = [image for s in samples(corpus / "strip.jsonl", corpus / "media") for image in s.images]
    wider = {size[0] > size[1] for size in (load_image(image.source).size for image in images)}
    assert wider == {True, False}


def ink(cell: np.ndarray) -> np.ndarray:
    """A cell as one 8 x 8 picture of ink, centred on its strokes, whatever its colours, place and size."""
    dark = 255.0 - cell.astype(np.float64).mean(axis=2)
    dark = np.clip(dark - np.median(dark) - 25, 0, None)
    rows, columns = np.nonzero(dark > dark.max() * 0.25)
    cut = dark[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    small = np.asarray(Image.fromarray(cut.astype(np.float32)).resize((8, 8)), dtype=np.float64)
    return small / np.linalg.norm(small)


@pytest.fixture(scope="module")
def classify() -> Any:
    """Nearest real digit, by the shape of its ink: an independent reader of what is drawn."""
    pictures, labels = load_digits()
    rng = np.random.default_rng(0)
    known = np.stack([ink(draw_cell(picture, rng)).ravel() for picture in pictures])
    return lambda cell: int(labels[int(np.argmax(known @ ink(cell).ravel()))])


def test_pictures_show_the_digits_of_their_answers(corpus: Path, classify: Any):
    right = total = 0
    for task in ("digit", "strip"):
        for sample in samples(corpus / f"{task}.jsonl", corpus / "media"):
            for image, (_, truth) in zip(sample.images, turns(sample), strict=True):
                pixels = np.asarray(load_image(image.source))
                cells = np.split(pixels, len(truth), axis=0 if pixels.shape[0] > pixels.shape[1] else 1)
                right += sum(classify(cell) == int(digit) for cell, digit in zip(cells, truth, strict=True))
                total += len(truth)
    assert right / total > 0.85  # guessing gives 0.1


def test_every_second_of_a_clip_shows_the_digit_of_its_answers(corpus: Path, classify: Any):
    right = total = 0
    for path in (corpus / "clip.jsonl", corpus / "held_out" / "clip.jsonl"):
        for sample in samples(path, corpus / "media"):
            for question, truth in turns(sample):
                second = int(float(re.findall(r"[\d.]+", question)[0]))
                with open_video(sample.videos[0].path) as video:
                    # The first and the last frame of the second: the change falls on whole seconds.
                    frames = video.frames_at(seconds=[second + 0.01, second + 0.95])
                for frame in frames:
                    right += classify(np.asarray(frame)) == int(truth)
                    total += 1
    assert right / total > 0.8


def test_times_asked_about_fall_on_every_second_of_a_clip(tmp_path: Path):
    config = DigitsCorpus(**{**COUNTS, "held_out": 60})
    build_corpus(tmp_path / "corpus", config, seed=0, tokens_per_tile=4)
    asked = []
    for sample in samples(tmp_path / "corpus" / "held_out" / "clip.jsonl", tmp_path / "corpus" / "media"):
        asked += [int(float(re.findall(r"[\d.]+", question)[0])) for question, _ in turns(sample)]
    assert set(asked) == set(range(8))
    assert all(asked.count(second) >= len(asked) / 60 * 3 for second in range(4))


def test_held_out_pictures_show_no_scan_that_training_saw(corpus: Path):
    pictures, labels = load_digits()
    training = training_pictures(3)
    shown = {picture.tobytes() for pool in training for picture in pool}
    held_out = [(picture, int(label)) for picture, label in zip(pictures, labels, strict=True) if picture.tobytes() not in shown]
    assert len(shown) + len(held_out) == len(pictures)
    assert len(held_out) / len(pictures) == pytest.approx(0.2, abs=0.01)
    assert {label for _, label in held_out} == set(range(10))

    # Which scan is in a held-out picture? Training scans, which are four times as many, must not explain it better.
    rng = np.random.default_rng(0)
    seen = np.stack([ink(draw_cell(picture, rng)).ravel() for pool in training for picture in pool])
    unseen = np.stack([ink(draw_cell(picture, rng)).ravel() for picture, _ in held_out])
    closer = []
    for sample in samples(corpus / "held_out" / "digit.jsonl", corpus / "media"):
        own = ink(np.asarray(load_image(sample.images[0].source))).ravel()
        closer.append((unseen @ own).max() > (seen @ own).max())
    trained = []
    for sample in samples(corpus / "digit.jsonl", corpus / "media"):
        for image in sample.images:
            own = ink(np.asarray(load_image(image.source))).ravel()
            trained.append((unseen @ own).max() > (seen @ own).max())
    assert np.mean(closer) > 0.6 > 0.25 > np.mean(trained)


def test_the_tower_sees_the_training_scans_of_its_seed():
    for seed in (0, 3):
        pools = training_pictures(seed)
        assert len(pools) == 10
        assert all(len(pool) > 100 for pool in pools)
    first, second = ({picture.tobytes() for pool in training_pictures(seed) for picture in pool} for seed in (0, 3))
    assert first != second


def test_text_datasets_need_no_media(corpus: Path):
    recipe = load_data_recipe(corpus / "recipe.json")
    texts = [name for name in recipe if name not in TASKS]
    assert texts
    for name in texts:
        for sample in samples(recipe[name].annotation, recipe[name].root):
            assert sample.images == sample.videos == ()
            assert all(re.fullmatch(r"\d+", answer) for _, answer in turns(sample))


def test_the_descriptions_name_every_dataset(corpus: Path):
    recipe = json.loads((corpus / "recipe.json").read_text())
    assert all(entry["description"] for entry in recipe.values())
    assert {path.name for path in corpus.glob("*.jsonl")} == {entry["annotation"] for entry in recipe.values()}
