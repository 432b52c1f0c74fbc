"""Sampling policies as values: which frames of a video to take, said once and stored, compared, printed or parsed.

`Uniform`, `Rate` (the released tables, even counts), `Training`, `Seconds` and `Segments`, any of them inside a `Clip`. A policy
chooses from a `Timeline` (frame times alone) and opens nothing; `take` asks an open video for what a policy chose. The arithmetic
is `sampling`; which frame of a segment is the cheapest is known to the video's index only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .errors import EagleDataError
from .sampling import FrameChoice, released_policy, training_policy, uniform

if TYPE_CHECKING:
    from .video import Frames, Video

__all__ = ["Clip", "Policy", "Rate", "Seconds", "Segments", "Timeline", "Training", "Uniform", "choose", "parse_policy", "take"]

# The same instant reached by two routes differs by less; two frames never lie this close.
_SAME_INSTANT = 1e-6
_FORMS = (
    "uniform:N, fps:RATE[,MIN,MAX], training:RATE,MIN,MAX, seconds:T,T,… or segment:N, each with @START-END in seconds for a clip"
)


@dataclass(frozen=True, eq=False)
class Timeline:
    """When the frames of a video are on display.

    Attributes:
        seconds: float64 ``[frames]``, ascending, on the file's clock (a clip keeps it).
        end: seconds at which the last frame ends.
        fps: frames per second; for a variable rate the mean.
    """

    seconds: np.ndarray
    end: float
    fps: float

    @staticmethod
    def of(video: Video) -> Timeline:
        """The timeline of an open video or clip."""
        seconds = np.asarray(video.timestamps, np.float64)
        return Timeline(seconds, float(seconds[0]) + video.metadata.duration, video.metadata.fps)

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def start(self) -> float:
        """Seconds at which the first frame appears."""
        return float(self.seconds[0])

    def between(self, start: float, end: float) -> tuple[int, int]:
        """The frames ``first <= i < stop`` that appear at `start` or later and before `end`."""
        first, stop = np.searchsorted(self.seconds, [start - _SAME_INSTANT, end - _SAME_INSTANT], side="left")
        return int(first), int(stop)

    def shown_at(self, second: float) -> int:
        """The frame on display at `second`. Raises EagleDataError outside the video."""
        if not self.start - _SAME_INSTANT <= second < self.end:
            raise EagleDataError(
                f"nothing is shown at {second:g} s: ask for {self.start:g} s up to, not including, {self.end:g} s."
            )
        return max(int(np.searchsorted(self.seconds, second + _SAME_INSTANT, side="right")) - 1, 0)


@dataclass(frozen=True)
class Uniform:
    """`n` frames spread evenly from the first to the last; all of them where the video has fewer."""

    n: int

    def choose(self, timeline: Timeline) -> FrameChoice:
        """Frame numbers, the seconds printed with them and the rate printed in the prompt. Raises EagleDataError."""
        return uniform(len(timeline), timeline.fps, min(self.n, len(timeline)), start=timeline.start)

    def __str__(self) -> str:
        return f"uniform:{self.n}"


@dataclass(frozen=True)
class Rate:
    """`fps` frames a second, an even number from `min_frames` to `max_frames`: the released processor's policy."""

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 256

    def choose(self, timeline: Timeline) -> FrameChoice:
        """As `Uniform.choose`; needs a video of two frames or more."""
        bounds: dict[str, Any] = {"fps": self.fps, "min_frames": self.min_frames, "max_frames": self.max_frames}
        return released_policy(len(timeline), timeline.fps, start=timeline.start, **bounds)

    def __str__(self) -> str:
        return f"fps:{self.fps:g},{self.min_frames},{self.max_frames}"


@dataclass(frozen=True)
class Training:
    """`fps` frames a second, at least `min_frames` where there are so many and at most `max_frames`: the public data script's."""

    fps: float
    min_frames: int
    max_frames: int

    def choose(self, timeline: Timeline) -> FrameChoice:
        """As `Uniform.choose`; a clip's seconds stand on the file's clock."""
        bounds: dict[str, Any] = {"fps": self.fps, "min_frames": self.min_frames, "max_frames": self.max_frames}
        choice = training_policy(len(timeline), timeline.fps, **bounds)
        return FrameChoice(choice.indices, tuple(timeline.start + t for t in choice.timestamps), choice.fps)

    def __str__(self) -> str:
        return f"training:{self.fps:g},{self.min_frames},{self.max_frames}"


@dataclass(frozen=True)
class Seconds:
    """The frame on display at each of these seconds, in the order given; equal frames may come twice."""

    seconds: tuple[float, ...]

    def choose(self, timeline: Timeline) -> FrameChoice:
        """As `Uniform.choose`, with the true times of the frames. Raises EagleDataError for a second outside the video."""
        if not self.seconds:
            raise EagleDataError("no second is given: name at least one.")
        indices = tuple(timeline.shown_at(second) for second in self.seconds)
        rate = len(indices) / (timeline.end - timeline.start)
        return FrameChoice(indices, tuple(float(timeline.seconds[i]) for i in indices), rate)

    def __str__(self) -> str:
        return "seconds:" + ",".join(f"{second:g}" for second in self.seconds)


@dataclass(frozen=True)
class Segments:
    """One frame of each of `n` equal stretches of time, the cheapest to decode: fast, and lossy in time by up to a stretch."""

    n: int

    def bounds(self, timeline: Timeline) -> tuple[tuple[int, int], ...]:
        """The frames ``first <= i < stop`` that appear in each stretch (none where they are equal), together every frame."""
        if self.n < 1:
            raise EagleDataError(f"{self.n} segments: ask for at least one.")
        edges = timeline.start + (timeline.end - timeline.start) * np.arange(1, self.n) / self.n
        inner = np.searchsorted(timeline.seconds, edges - _SAME_INSTANT, side="left").tolist()
        return tuple(pairwise([0, *inner, len(timeline)]))

    def choose(self, timeline: Timeline) -> FrameChoice:
        """As `Uniform.choose`, with true times: the first frame of each stretch, as if all cost the same; see `choose`."""
        indices = tuple(first if first < stop else max(first - 1, 0) for first, stop in self.bounds(timeline))
        rate = self.n / (timeline.end - timeline.start)
        return FrameChoice(indices, tuple(float(timeline.seconds[i]) for i in indices), rate)

    def __str__(self) -> str:
        return f"segment:{self.n}"


@dataclass(frozen=True)
class Clip:
    """Another policy on the frames that appear from `start` (inclusive) to `end` (exclusive), None for the video's own ends.

    The clip's own length and rate decide how many frames are taken and what the prompt prints, not the whole file's (upstream
    2.4 takes the file's); indices and seconds stay the whole video's.
    """

    inner: Uniform | Rate | Training | Seconds | Segments
    start: float | None = None
    end: float | None = None

    def choose(self, timeline: Timeline) -> FrameChoice:
        """As `Uniform.choose`. Raises EagleDataError for an empty clip."""
        first, own = self.part_of(timeline)
        choice = self.inner.choose(own)
        return FrameChoice(tuple(first + i for i in choice.indices), choice.timestamps, choice.fps)

    def part_of(self, timeline: Timeline) -> tuple[int, Timeline]:
        """The clip's first frame and its own timeline. Raises EagleDataError for an empty clip."""
        first, stop = timeline.between(
            timeline.start if self.start is None else self.start, np.inf if self.end is None else self.end
        )
        if first >= stop:
            raise EagleDataError(f"no frame appears from {self.start} s to {self.end} s: the video ends at {timeline.end:g} s.")
        seconds = timeline.seconds[first:stop]
        end = float(timeline.seconds[stop]) if stop < len(timeline) else timeline.end
        fps = (stop - first) / (end - float(seconds[0]))
        # The nominal rate is exact where a container rounds times: believe it to 1 %, as the reader does.
        return first, Timeline(seconds, end, timeline.fps if abs(timeline.fps / fps - 1) < 0.01 else fps)

    def __str__(self) -> str:
        return f"{self.inner}@{'' if self.start is None else f'{self.start:g}'}-{'' if self.end is None else f'{self.end:g}'}"


Policy: TypeAlias = "Uniform | Rate | Training | Seconds | Segments | Clip"


def parse_policy(text: str) -> Policy:
    """The policy that `str(policy)` writes.

    ``uniform:8``, ``fps:2,4,256``, ``training:4,8,24``, ``seconds:1,2.5`` or ``segment:16``; ``@10-70`` behind it makes a clip.
    Raises EagleDataError that lists the forms.
    """
    body, at, clip = text.strip().partition("@")
    kind, _, values = body.partition(":")
    try:
        inner = _parse_inner(kind, [value for value in values.split(",") if value])
        if not at:
            return inner
        ends = re.fullmatch(r"([0-9.]*)-([0-9.]*)", clip)
        if ends is None:
            raise ValueError(clip)
        start, end = (float(value) if value else None for value in ends.groups())
    except (ValueError, TypeError) as error:
        raise EagleDataError(f"{text!r} is no sampling policy: write {_FORMS}.") from error
    return Clip(inner, start, end)


def choose(video: Video, policy: Policy) -> FrameChoice:
    """What `policy` chooses of an open video (not itself a clip); `Segments` by the index's costs. Raises EagleDataError."""
    timeline = Timeline.of(video)
    first, own, inner = 0, timeline, policy
    if isinstance(policy, Clip):
        (first, own), inner = policy.part_of(timeline), policy.inner
    if not isinstance(inner, Segments) or video.index is None:
        return policy.choose(timeline)
    from .media.decode_plan import cheapest_of_segments

    inner.bounds(own)  # raises where there is no such choice
    indices = cheapest_of_segments(video.index, first, first + len(own), inner.n)
    return FrameChoice(tuple(indices.tolist()), tuple(timeline.seconds[indices].tolist()), inner.n / (own.end - own.start))


def take(video: Video, policy: Policy, size: tuple[int, int] | None = None) -> Frames:
    """The frames that `policy` chooses of an open video (not itself a clip). Raises EagleDataError."""
    return video.frames_at(choose(video, policy).indices, size=size)


def _parse_inner(kind: str, values: list[str]) -> Uniform | Rate | Training | Seconds | Segments:
    if kind == "uniform" and len(values) == 1:
        return Uniform(int(values[0]))
    if kind == "fps" and len(values) in (1, 3):
        return Rate(float(values[0]), *(int(value) for value in values[1:]))
    if kind == "training" and len(values) == 3:
        return Training(float(values[0]), int(values[1]), int(values[2]))
    if kind == "seconds" and values:
        return Seconds(tuple(float(value) for value in values))
    if kind == "segment" and len(values) == 1:
        return Segments(int(values[0]))
    raise ValueError(kind)
