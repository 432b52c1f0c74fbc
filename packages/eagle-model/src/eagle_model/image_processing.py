"""The image processor: pictures in, normalised tiles out, under the released names and keys.

It promises the released tiling and pixels (upstream sections 2.2 and 2.3) by calling eagle_data, which owns both. It
reads `preprocessor_config.json` of the released checkpoint and needs no torchvision. Prompts are `processing.py`. A faster way to
almost the same pixels is chosen with `resize_with="torch"` (`fast_pixels.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eagle_data.pixels import frame_pixels, image_pixels
from eagle_data.tiling import choose_grid, tiles_for
from PIL import Image
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from eagle_model.fast_pixels import fast_frame_pixels, fast_image_pixels

_FIXED = {
    "do_convert_rgb": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_resize": False,
    "do_center_crop": False,
    "do_pad": False,
    "pad_during_tiling": False,
    "resample": 3,
}
"""Keys of the released file that describe what the pixels are; another value would mean another model."""

IMAGE_OPTIONS = ("min_dynamic_tiles", "max_dynamic_tiles", "use_thumbnail", "resize_with")
"""Settings that a call may override."""

_RESIZERS = ("pillow", "torch")


class Eagle2_5_VLImagesKwargs(ImagesKwargs, total=False):
    """Keyword arguments of the image processor beyond those of transformers."""

    min_dynamic_tiles: int
    max_dynamic_tiles: int
    use_thumbnail: bool
    resize_with: str
    pad_during_tiling: bool


class Eagle2_5_VLImageProcessor(BaseImageProcessor):
    """Image Area Preservation tiling and SigLIP normalisation.

    Args:
        size: `{"height": side, "width": side}` of a tile in pixels, or the side.
        min_dynamic_tiles, max_dynamic_tiles: bounds on the tiles of one image, thumbnail not counted.
        use_thumbnail: append the whole image as a last tile where it was cut.
        image_mean, image_std: per channel, on pixels scaled to 0..1.
        resize_with: `pillow` (default), bit for bit as trained and released; or `torch`, within one grey level of it and faster.
        kwargs: further keys of a released file. Those that would change pixels raise ValueError unless they have the
            released value; unknown ones are kept and saved.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012
    valid_kwargs = Eagle2_5_VLImagesKwargs

    def __init__(
        self,
        size: Mapping[str, int] | int | None = None,
        min_dynamic_tiles: int = 1,
        max_dynamic_tiles: int = 12,
        use_thumbnail: bool = True,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        rescale_factor: float = 1 / 255,
        resize_with: str = "pillow",
        **kwargs: Any,
    ):
        for key, released in _FIXED.items():
            if kwargs.get(key, released) not in (released, None):
                raise ValueError(f"{key}={kwargs[key]!r} is not supported by the Eagle 2.5 image processor, only {released!r}")
            kwargs[key] = released
        if abs(rescale_factor * 255 - 1) > 1e-6:
            raise ValueError(f"rescale_factor {rescale_factor} is not supported, only 1/255")
        kwargs.pop("image_processor_type", None)
        super().__init__(**kwargs)
        self.size = _square(size)
        self.min_dynamic_tiles = min_dynamic_tiles
        self.max_dynamic_tiles = max_dynamic_tiles
        self.use_thumbnail = use_thumbnail
        self.image_mean = [float(value) for value in image_mean]
        self.image_std = [float(value) for value in image_std]
        self.rescale_factor = rescale_factor
        self.resize_with = _resizer(resize_with)

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self.size["height"]

    def tiling(self, **overrides: Any) -> dict[str, Any]:
        """The settings of one call: this processor's, replaced by those of `overrides` that are not None.

        Raises ValueError for a key that is none of `IMAGE_OPTIONS` or for an unknown `resize_with`.
        """
        unknown = [key for key in overrides if key not in IMAGE_OPTIONS]
        if unknown:
            raise ValueError(f"unknown image option {unknown[0]!r}; choose among {', '.join(IMAGE_OPTIONS)}")
        settings = {key: getattr(self, key) for key in IMAGE_OPTIONS}
        settings.update({key: value for key, value in overrides.items() if value is not None})
        _resizer(settings["resize_with"])
        # A call that lowers the maximum below the configured minimum asks for fewer tiles, not for an error.
        if "min_dynamic_tiles" not in overrides:
            settings["min_dynamic_tiles"] = min(settings["min_dynamic_tiles"], settings["max_dynamic_tiles"])
        return settings

    def tiles_of(self, width: int, height: int, **overrides: Any) -> int:
        """How many tiles an image of that size becomes, thumbnail included."""
        settings = self.tiling(**overrides)
        return tiles_for(self._grid(width, height, settings), settings["use_thumbnail"])

    def image_tiles(self, image: Any, **overrides: Any) -> np.ndarray:
        """Tiles of one image: float32 [tiles, 3, side, side], row-major, thumbnail last."""
        settings = self.tiling(**overrides)
        picture = to_picture(image)
        cut = fast_image_pixels if settings["resize_with"] == "torch" else image_pixels
        return cut(
            picture,
            tile_size=self.tile_size,
            grid=self._grid(picture.width, picture.height, settings),
            use_thumbnail=settings["use_thumbnail"],
            mean=_three(self.image_mean),
            std=_three(self.image_std),
        )

    def frame_tiles(self, frames: Any, **overrides: Any) -> list[np.ndarray]:
        """Tiles of each frame of a video: a list of float32 [tiles, 3, side, side], one tile each unless asked otherwise.

        `frames` is uint8 [n, height, width, 3], a torch tensor [n, 3, height, width], or a list of pictures.
        """
        settings = self.tiling(**{"max_dynamic_tiles": 1, **overrides})
        frames = to_frames(frames)
        fast = settings["resize_with"] == "torch" and isinstance(frames, np.ndarray)
        if settings["max_dynamic_tiles"] == 1 and (fast or settings["resize_with"] == "pillow"):
            cut = fast_frame_pixels if fast else frame_pixels
            pixels = cut(frames, tile_size=self.tile_size, mean=_three(self.image_mean), std=_three(self.image_std))
            return [pixels[i : i + 1] for i in range(len(pixels))]
        return [self.image_tiles(frame, **settings) for frame in frames]

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]  # the released processor also takes videos
        self, images: Any = None, videos: Any = None, *, return_tensors: Any = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Tiles of images, or of videos, all in one batch.

        Args:
            images: one picture or a list: PIL, array [height, width, 3], tensor [3, height, width], path, URL or bytes.
            videos: list of videos as `frame_tiles` takes them.
            return_tensors: `pt` or `np`.
            **kwargs: those of `IMAGE_OPTIONS`.

        Returns:
            `pixel_values` float32 [tiles, 3, side, side] and `image_sizes` int64 [images or frames, 2] as (height, width).
        """
        tiles: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []
        for image in as_list(images):
            picture = to_picture(image)
            tiles.append(self.image_tiles(picture, **kwargs))
            sizes.append((picture.height, picture.width))
        for video in videos if videos is not None else []:
            tiles.extend(self.frame_tiles(video, **kwargs))
            sizes.extend(frame_sizes(video))
        if not tiles:
            raise ValueError("the image processor was given neither images nor videos")
        data = {"pixel_values": np.concatenate(tiles), "image_sizes": np.array(sizes, dtype=np.int64)}
        return BatchFeature(data, tensor_type=return_tensors)

    def __call__(self, images: Any = None, *args: Any, **kwargs: Any) -> BatchFeature:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.preprocess(images, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """What `preprocessor_config.json` holds: `resize_with` only where it is not the released way."""
        output = super().to_dict()
        if output.get("resize_with") == "pillow":
            del output["resize_with"]
        return output

    def _grid(self, width: int, height: int, settings: Mapping[str, Any]) -> tuple[int, int]:
        return choose_grid(
            width,
            height,
            tile_size=self.tile_size,
            min_tiles=settings["min_dynamic_tiles"],
            max_tiles=settings["max_dynamic_tiles"],
        )


Eagle2_5_VLImageProcessorFast = Eagle2_5_VLImageProcessor
"""The class name in the released `preprocessor_config.json`."""


def to_picture(image: Any) -> Image.Image:
    """Any accepted form of an image as RGB: PIL, numpy [h, w, 3] or [3, h, w], torch [3, h, w], path, URL, bytes."""
    from eagle_data.fetch import Fetch
    from eagle_data.images import load_image

    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[0] in (1, 3, 4) and image.shape[-1] not in (1, 3, 4):
            image = image.transpose(1, 2, 0)
        if image.dtype != np.uint8:
            raise ValueError(f"image arrays must be uint8 in 0..255, but one is {image.dtype}; scale it before")
        image = Image.fromarray(np.ascontiguousarray(image.squeeze(-1) if image.shape[-1] == 1 else image))
    if isinstance(image, Image.Image) and image.mode == "RGB" and not image.getexif():
        return image
    if isinstance(image, (str, Path, bytes, Mapping, Image.Image)):
        # Whoever writes an address into a message asks for it to be fetched; data files are not trusted so far.
        return load_image(image, fetch=Fetch())
    raise ValueError(f"an image cannot be made from {type(image).__name__}; give PIL, an array, a path, a URL or bytes")


def to_frames(frames: Any) -> np.ndarray | list[Image.Image]:
    """Frames of a video as uint8 [n, h, w, 3], or as a list of pictures where they came as a list."""
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu().numpy()
        frames = frames.transpose(0, 2, 3, 1) if frames.ndim == 4 and frames.shape[1] == 3 else frames
    if isinstance(frames, np.ndarray):
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"video frames must be uint8 [n, height, width, 3], but are {frames.dtype} {list(frames.shape)}")
        return frames
    if not isinstance(frames, (list, tuple)):
        raise ValueError(f"a video must be an array of frames or a list of pictures, but is {type(frames).__name__}")
    return [to_picture(frame) for frame in frames]


def frame_sizes(frames: Any) -> list[tuple[int, int]]:
    """(height, width) of every frame."""
    frames = to_frames(frames)
    if isinstance(frames, np.ndarray):
        return [(frames.shape[1], frames.shape[2])] * len(frames)
    return [(frame.height, frame.width) for frame in frames]


def as_list(images: Any) -> list[Any]:
    """One image, a list of them, or lists per prompt, as a flat list."""
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in (item if isinstance(item, (list, tuple)) else [item])]
    return [images]


def _square(size: Mapping[str, int] | int | None) -> dict[str, int]:
    if size is None:
        size = 448
    if isinstance(size, int):
        return {"height": size, "width": size}
    height = size.get("height") or size.get("shortest_edge")
    width = size.get("width") or height
    if not height or not width or height != width:
        raise ValueError(f"size {dict(size)} is not a square tile; give equal height and width")
    return {"height": int(height), "width": int(width)}


def _resizer(name: str) -> str:
    if name not in _RESIZERS:
        raise ValueError(f"resize_with is {name!r}; choose among {', '.join(_RESIZERS)}")
    return name


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return (first, second, third)
