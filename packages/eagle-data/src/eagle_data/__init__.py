"""From recipes of images and videos to packed token batches: media readers, tiling, degradation sampling, prompts, packing.

`import eagle_data` is light: a name loads its module on first use. Three steps are called as their modules are and are
imported from there: `eagle_data.prepare.prepare`, `eagle_data.encode.encode`, `eagle_data.collate.collate`. Tensors are
`eagle_data.torch`; everything else is numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eagle_data.ads import DocumentPlan, ImagePlan, Planner, VideoPlan, VisualPlan, VisualRules, plan
    from eagle_data.ads_bound import optimum
    from eagle_data.annotations import Reject, parse_record, read_annotations
    from eagle_data.checkpoint_rules import rules_of_checkpoint
    from eagle_data.collate import Batch, LoadedSample
    from eagle_data.dealing import PackCost, deal
    from eagle_data.dialect import RELEASED, TRAINING, Dialect, get_dialect
    from eagle_data.encode import IGNORE, Encoded, ImageUnit, VideoUnit
    from eagle_data.errors import EagleDataError, MediaError, MissingMediaError, SampleError
    from eagle_data.fetch import Fetch
    from eagle_data.images import image_bytes, image_size, load_image
    from eagle_data.isolated import read_frames_isolated
    from eagle_data.lmdb_convert import Conversion, to_lmdb
    from eagle_data.lmdb_exports import from_lmdb
    from eagle_data.lmdb_store import LmdbStore, write_lmdb
    from eagle_data.load_report import LoadReport
    from eagle_data.loader import StatefulLoader, by_weight
    from eagle_data.media.frame_index import FrameIndex
    from eagle_data.pack_loading import Pack, Source
    from eagle_data.pack_stream import PackStream, StreamPlan
    from eagle_data.packing import pack
    from eagle_data.pixels import cut_tiles, frame_pixels, image_pixels
    from eagle_data.policies import Clip, Policy, Rate, Seconds, Segments, Timeline, Training, Uniform, parse_policy, take
    from eagle_data.prepare import DatasetReport
    from eagle_data.prepared import PreparedDataset
    from eagle_data.recipe import DatasetEntry, load_data_recipe
    from eagle_data.samples import DocumentRef, ImageRef, Message, Sample, VideoRef
    from eagle_data.sampling import FrameChoice, released_policy, training_policy, uniform
    from eagle_data.tiling import candidate_grids, choose_grid, tiles_for
    from eagle_data.tokens import PromptTokenizer
    from eagle_data.units import load_unit, load_units
    from eagle_data.video import Frames, Video, VideoMetadata, open_video, probe_video, read_frames

__version__ = "0.1.0"

_MODULES = {
    "ads": ("DocumentPlan", "ImagePlan", "Planner", "VideoPlan", "VisualPlan", "VisualRules", "plan"),
    "ads_bound": ("optimum",),
    "annotations": ("Reject", "parse_record", "read_annotations"),
    "checkpoint_rules": ("rules_of_checkpoint",),
    "collate": ("Batch", "LoadedSample"),
    "dealing": ("PackCost", "deal"),
    "dialect": ("RELEASED", "TRAINING", "Dialect", "get_dialect"),
    "encode": ("IGNORE", "Encoded", "ImageUnit", "VideoUnit"),
    "errors": ("EagleDataError", "MediaError", "MissingMediaError", "SampleError"),
    "fetch": ("Fetch",),
    "images": ("image_bytes", "image_size", "load_image"),
    "isolated": ("read_frames_isolated",),
    "lmdb_convert": ("Conversion", "to_lmdb"),
    "lmdb_exports": ("from_lmdb",),
    "media.frame_index": ("FrameIndex",),
    "lmdb_store": ("LmdbStore", "write_lmdb"),
    "load_report": ("LoadReport",),
    "loader": ("StatefulLoader", "by_weight"),
    "pack_loading": ("Pack", "Source"),
    "pack_stream": ("PackStream", "StreamPlan"),
    "packing": ("pack",),
    "pixels": ("cut_tiles", "frame_pixels", "image_pixels"),
    "policies": ("Clip", "Policy", "Rate", "Seconds", "Segments", "Timeline", "Training", "Uniform", "parse_policy", "take"),
    "prepare": ("DatasetReport",),
    "prepared": ("PreparedDataset",),
    "recipe": ("DatasetEntry", "load_data_recipe"),
    "samples": ("DocumentRef", "ImageRef", "Message", "Sample", "VideoRef"),
    "sampling": ("FrameChoice", "released_policy", "training_policy", "uniform"),
    "tiling": ("candidate_grids", "choose_grid", "tiles_for"),
    "tokens": ("PromptTokenizer",),
    "units": ("load_unit", "load_units"),
    "video": ("Frames", "Video", "VideoMetadata", "open_video", "probe_video", "read_frames"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "IGNORE",
    "RELEASED",
    "TRAINING",
    "Batch",
    "Clip",
    "Conversion",
    "DatasetEntry",
    "DatasetReport",
    "Dialect",
    "DocumentPlan",
    "DocumentRef",
    "EagleDataError",
    "Encoded",
    "Fetch",
    "FrameChoice",
    "FrameIndex",
    "Frames",
    "ImagePlan",
    "ImageRef",
    "ImageUnit",
    "LmdbStore",
    "LoadReport",
    "LoadedSample",
    "MediaError",
    "Message",
    "MissingMediaError",
    "Pack",
    "PackCost",
    "PackStream",
    "Planner",
    "Policy",
    "PreparedDataset",
    "PromptTokenizer",
    "Rate",
    "Reject",
    "Sample",
    "SampleError",
    "Seconds",
    "Segments",
    "Source",
    "StatefulLoader",
    "StreamPlan",
    "Timeline",
    "Training",
    "Uniform",
    "Video",
    "VideoMetadata",
    "VideoPlan",
    "VideoRef",
    "VideoUnit",
    "VisualPlan",
    "VisualRules",
    "by_weight",
    "candidate_grids",
    "choose_grid",
    "cut_tiles",
    "deal",
    "frame_pixels",
    "from_lmdb",
    "get_dialect",
    "image_bytes",
    "image_pixels",
    "image_size",
    "load_data_recipe",
    "load_image",
    "load_unit",
    "load_units",
    "open_video",
    "optimum",
    "pack",
    "parse_policy",
    "parse_record",
    "plan",
    "probe_video",
    "read_annotations",
    "read_frames",
    "read_frames_isolated",
    "released_policy",
    "rules_of_checkpoint",
    "take",
    "tiles_for",
    "to_lmdb",
    "training_policy",
    "uniform",
    "write_lmdb",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
