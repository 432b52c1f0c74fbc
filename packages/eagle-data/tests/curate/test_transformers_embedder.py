"""The rule with a real vision model: a small CLIP tower, trained here in seconds on frames of real films, finds planted
copies of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eagle_data.curate.clips import cut, moments
from eagle_data.curate.collect import collect
from eagle_data.curate.embedding import load_embedder
from eagle_data.curate.recipe import ClipCutting, CurateRecipe, Diversity
from eagle_data.errors import EagleDataError
from eagle_data.video import open_video

from .scene_files import copy_real

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SIDE, SECONDS = 32, 2.5


def clip_frames(path: Path) -> list[np.ndarray]:
    """For each clip of a film, uint8 ``[frames, 32, 32, 3]``."""
    with open_video(path) as video:
        spans = cut(video.metadata.duration, SECONDS, 1)
        return [video.frames_at(seconds=moments(a, b, 4, 99), size=(SIDE, SIDE)).pixels for a, b in spans]


def changed(pictures: Any, chance: Any) -> Any:
    """Pictures, ``[n, 3, 32, 32]`` in 0..1, each cropped, dimmed, blurred and with noise."""
    out = []
    for picture in pictures:
        side = int(torch.randint(24, SIDE + 1, (1,), generator=chance))
        top, left = (int(torch.randint(0, SIDE + 1 - side, (1,), generator=chance)) for _ in range(2))
        crop = picture[None, :, top : top + side, left : left + side]
        small = torch.nn.functional.interpolate(crop, size=16) if torch.rand(1, generator=chance) < 0.5 else crop
        full = torch.nn.functional.interpolate(small, size=SIDE, mode="bilinear")[0]
        out.append(full * (0.7 + 0.6 * torch.rand(1, generator=chance)) + 0.03 * torch.randn(full.shape, generator=chance))
    return torch.stack(out)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_real(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def tower(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model whose image side tells the clips of three films apart, saved as transformers saves it."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the shapes are tiny: threads only wait for each other
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**vision, "vocab_size": 64, "max_position_embeddings": 8, "num_hidden_layers": 1}
    sizes = {"image_size": SIDE, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config={**vision, **sizes}, projection_dim=32)
    model = transformers.CLIPModel(config)
    names = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
    clips = [torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 for name in names for frames in clip_frames(films / name)]
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    chance = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    labels = torch.arange(len(clips))
    for _ in range(250):
        picked = [clip[int(torch.randint(len(clip), (1,), generator=chance))] for clip in clips]
        views = torch.cat([changed(picked, chance), changed(picked, chance)])
        given = model.get_image_features(pixel_values=(views - mean[:, None, None]) / std[:, None, None])
        features = torch.nn.functional.normalize(given if isinstance(given, torch.Tensor) else given.pooler_output, dim=-1)
        one, other = features.chunk(2)
        loss = torch.nn.functional.cross_entropy(one @ other.T / 0.1, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    folder = tmp_path_factory.mktemp("tower")
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": SIDE, "width": SIDE},
        "do_center_crop": False,
        "image_mean": mean.tolist(),
        "image_std": std.tolist(),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_planted_copies_of_real_films_are_dropped_and_new_films_kept(films: Path, tower: Path, tmp_path: Path):
    recipe = CurateRecipe(
        videos=(str(films / "carphone_distorted.mp4"), str(films / "bikes.mp4"), str(films / "bigbuckbunny.mp4")),
        root=films,
        existing_videos=(str(films / "carphone_pristine.mp4"),),
        clips=ClipCutting(seconds=SECONDS, shortest=1, fps=4),
        # So small a tower has cosines of its own: 0.8 is between copies and strangers, where the paper has 0.5 for CLIP.
        diversity=Diversity(embedder="transformers", options={"path": str(tower)}, threshold=0.8),
    )
    selection = collect(recipe, tmp_path / "out")
    dropped = {chosen.clip.video for chosen in selection.clips if not chosen.kept}
    kept = {chosen.clip.video for chosen in selection.clips if chosen.kept}
    assert selection.embedder.startswith("transformers-")
    assert dropped == {"carphone_distorted.mp4"}
    assert kept == {"bikes.mp4", "bigbuckbunny.mp4"}
    assert all(chosen.largest > 0.8 for chosen in selection.clips if not chosen.kept)
    assert all(chosen.nearest.startswith(str(films / "carphone_pristine.mp4")) for chosen in selection.clips)


def test_other_weights_are_another_embedder(tower: Path, tmp_path: Path):
    first = load_embedder("transformers", {"path": str(tower)})
    assert load_embedder("transformers", {"path": str(tower)}).name == first.name
    model = transformers.CLIPModel.from_pretrained(tower)
    with torch.no_grad():
        model.logit_scale += 1
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((tower / "preprocessor_config.json").read_bytes())
    assert load_embedder("transformers", {"path": str(tmp_path)}).name != first.name


def test_a_folder_without_a_model_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(EagleDataError, match="no image model"):
        load_embedder("transformers", {"path": str(tmp_path)})
