"""Prompt dialects: the exact text that surrounds image tiles and video frames.

A dialect is a named, versioned value shared by training, evaluation and serving, because a model only understands
the wording it was trained on. `RELEASED` is the wording of the released processor, byte for byte (upstream section
2.0, column [P]); `TRAINING` is the wording of the public training code. Chat markup is `eagle_data.chat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eagle_data.special_tokens import IMG_CONTEXT, IMG_END, IMG_START

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def visual_block(tokens: int) -> str:
    """The text of one picture: `<img>`, `tokens` context tokens, `</img>`."""
    return f"{IMG_START}{IMG_CONTEXT * tokens}{IMG_END}"


def ordinal(k: int) -> str:
    """`first` .. `tenth`, then `11th`, `12th` …: the release fails with KeyError from the 11th on (section 2.4)."""
    if k <= len(_ORDINALS):
        return _ORDINALS[k - 1]
    suffix = "th" if 10 <= k % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(k % 10, "th")
    return f"{k}{suffix}"


@dataclass(frozen=True)
class Dialect:
    """How pictures are introduced in a prompt.

    `image(k, tokens, count)` is the text of image number `k` (1-based) of `count` in the sample; `video(...)` is the
    text of a whole video with one block of context tokens per frame.
    """

    name: str
    default_system: str
    tag_single_image: bool
    after_image: str
    after_video: str
    times_frames: bool
    states_duration: bool

    def image(self, k: int, tokens: int, count: int) -> str:
        """Text of image `k` (1-based) out of `count` images, with `tokens` context tokens.

        Of `count` it matters only whether it is 1, and what follows the context tokens is the same for every `k`:
        `eagle_data.ads_pages` counts by this.
        """
        tag = f"<image {k}>" if count > 1 or self.tag_single_image else ""
        return f"{tag}{visual_block(tokens)}{self.after_image}"

    def video(
        self,
        k: int,
        fps: float | None,
        timestamps: Sequence[float] | None,
        tokens_per_frame: Sequence[int],
        duration: float | None = None,
    ) -> str:
        """Text of video `k` (1-based).

        `fps` is the sampling rate in frames per second or None where it is not known; `timestamps` are seconds, one
        per frame, or None; `tokens_per_frame` has one count per frame; `duration` in seconds is read by dialects
        that state it. Raises ValueError where the number of timestamps and of frames differ.
        """
        if timestamps is not None and len(timestamps) != len(tokens_per_frame):
            raise ValueError(
                f"video {k} has {len(tokens_per_frame)} frames but {len(timestamps)} timestamps; give one timestamp per frame"
            )
        frames = (
            self.frame(i, timestamps[i - 1] if timestamps is not None else None, tokens)
            for i, tokens in enumerate(tokens_per_frame, 1)
        )
        return self.video_header(k, fps, len(tokens_per_frame), duration) + "".join(frames) + self.after_video

    def video_header(self, k: int, fps: float | None, frames: int, duration: float | None = None) -> str:
        """What stands before the first frame of video `k`; the arguments are those of `video`, `frames` its number of frames."""
        name = f"The {ordinal(k)} video"
        if fps is None:
            return f"{name}: "
        if self.states_duration:
            return f"{name} of {duration if duration is not None else frames / fps:.2f} seconds at {fps:.2f} fps: "
        return f"{name} sampled with {fps:.2f} fps: "

    def frame(self, i: int, seconds: float | None, tokens: int) -> str:
        """One frame (`i` from 1) with its wrapper; depends on no other frame and ends in a special token."""
        time = f" sample at {seconds:.2f}s" if seconds is not None and self.times_frames else ""
        return f"Frame {i}{time}: {visual_block(tokens)}"


RELEASED = Dialect(
    name="released",
    default_system="You are a helpful assistant.",
    tag_single_image=True,
    after_image="",
    after_video="",
    times_frames=True,
    states_duration=False,
)
TRAINING = Dialect(
    name="training",
    default_system="You are an AI assistant whose name is Eagle-Next.",
    tag_single_image=False,
    after_image="\n",
    after_video="\n",
    times_frames=False,
    states_duration=True,
)

DIALECTS = {dialect.name: dialect for dialect in (RELEASED, TRAINING)}


def get_dialect(name: str) -> Dialect:
    """The dialect of that name; ValueError lists the known ones."""
    try:
        return DIALECTS[name]
    except KeyError:
        raise ValueError(f"unknown prompt dialect {name!r}; choose one of {', '.join(DIALECTS)}") from None
