"""Runs a decode plan: feeds packets to PyAV codec contexts and hands over the frames asked for, as exactly as FFmpeg would.

Promises that every frame comes from its own packet (its pts is the packet's number), that packets no target leans on are left
out only where that changes no other picture, and that a target behind any damage in its group is marked. Groups run in a bounded
number of threads with one context of one thread each. Knows nothing of files or of pixels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from .decode_plan import Group
from .frame_index import NO_TIME, FrameIndex, StreamInfo
from .nal_units import NalCodec, nal_codec
from .remux import Packets

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.codeccontext import VideoCodecContext

__all__ = ["Decoder", "Outcome", "OverBudget", "OwnDecoder", "Stream", "decode_all", "run_groups"]

# FFmpeg's own choice for AV1 depends on its build; its "av1" decodes only with a GPU's help.
_DECODERS = {"av1": ("libdav1d", "libaom-av1", "av1")}
# Codecs whose decoders leave out B-frames by `skip_frame` without touching anything else. (MPEG-4's does not: measured on Xvid.)
_SKIPPABLE = frozenset(("mpeg2video", "mpeg1video"))

Deliver = Callable[[int, "VideoFrame"], None]


class OverBudget(Exception):
    """The time allowed for a call is over."""


class Decoder(Protocol):
    """A codec context, and whatever must stay open for it."""

    context: VideoCodecContext

    def close(self) -> None:
        """Release it."""
        ...


class OwnDecoder:
    """A codec context of one thread set up from a `StreamInfo` alone. Raises what PyAV raises when there is no decoder."""

    def __init__(self, stream: StreamInfo) -> None:
        from av.codec.codec import UnknownCodecError
        from av.codec.context import CodecContext

        names = _DECODERS.get(stream.codec, (stream.codec,))
        for name in names:
            try:
                self.context: VideoCodecContext = cast("VideoCodecContext", CodecContext.create(name, "r"))
                break
            except UnknownCodecError:
                if name == names[-1]:
                    raise
        if stream.extradata:
            self.context.extradata = stream.extradata
        self.context.thread_count = 1
        colorspace, color_range, primaries, transfer = stream.colour
        self.context.colorspace, self.context.color_range = colorspace, color_range
        self.context.color_primaries, self.context.color_trc = primaries, transfer

    def close(self) -> None:
        """The context goes with its last reference."""


@dataclass(frozen=True)
class Stream:
    """What decoding must know of a stream.

    Attributes:
        index: of its packets.
        packets: its packets.
        nal: how its packets are read when they are made of NAL units.
    """

    index: FrameIndex
    packets: Packets
    nal: NalCodec | None

    @classmethod
    def of(cls, index: FrameIndex, packets: Packets) -> Stream:
        """Of an index and its packets."""
        return cls(index, packets, nal_codec(index.stream.codec, index.stream.extradata))


@dataclass
class Outcome:
    """What became of targets.

    Attributes:
        delivered: packet numbers of the targets that a decoder gave.
        damaged: packet numbers of the targets that it marked, that lean on damage, or that it did not give.
        decoded: pictures decoded.
    """

    delivered: set[int] = field(default_factory=set)
    damaged: set[int] = field(default_factory=set)
    decoded: int = 0


def run_groups(
    stream: Stream,
    groups: Sequence[Group],
    workers: Sequence[tuple[Decoder, Deliver]],
    deadline: float | None,
) -> Outcome:
    """Decode `groups`, each in one of `workers` (a decoder and the function that takes its frames), at the same time.

    A group that fails is decoded once more without leaving anything out, from the packet before it that certainly is a restart. A
    target may be delivered twice then; the last one counts.

    Raises:
        OverBudget: when ``time.monotonic()`` passes `deadline`; checked between packets.
    """
    total, lock = Outcome(), threading.Lock()
    waiting = sorted(groups, key=lambda group: group.cost)
    stopped = threading.Event()

    def work(worker: tuple[Decoder, Deliver]) -> None:
        try:
            while not stopped.is_set():
                with lock:
                    if not waiting:
                        return
                    group = waiting.pop()
                outcome = _run_until_sound(stream, group, *worker, deadline)
                with lock:
                    total.delivered |= outcome.delivered
                    total.damaged |= outcome.damaged
                    total.decoded += outcome.decoded
        except BaseException:
            stopped.set()
            raise

    if len(workers) == 1 or len(groups) < 2:
        work(workers[0])
        return total
    with ThreadPoolExecutor(len(workers), "eagle-decode") as pool:
        for task in [pool.submit(work, worker) for worker in workers]:
            task.result()
    return total


def _run_until_sound(stream: Stream, group: Group, decoder: Decoder, deliver: Deliver, deadline: float | None) -> Outcome:
    outcome, complete = _run(stream, group, decoder, deliver, deadline, prune=True)
    if not outcome.damaged:
        return outcome
    start = _certain_restart(stream, group.start)
    if complete and start == group.start:
        return outcome
    again = Group(start, tuple(sorted(outcome.damaged)))
    second, _ = _run(stream, again, decoder, deliver, deadline, prune=False)
    return Outcome(outcome.delivered | second.delivered, second.damaged, outcome.decoded + second.decoded)


def _certain_restart(stream: Stream, start: int) -> int:
    """The last keyframe at or before `start` that depends on nothing earlier.

    Containers also call pictures keyframes from which decoding only recovers (open GOPs, gradual refresh).
    """
    if stream.nal is None:
        return start
    keys = np.flatnonzero(stream.index.keyframe[: start + 1])
    for key in keys[::-1].tolist():
        if stream.nal.restarts(stream.packets.data(key)):
            return key
    return 0


def _run(
    stream: Stream, group: Group, decoder: Decoder, deliver: Deliver, deadline: float | None, *, prune: bool
) -> tuple[Outcome, bool]:
    """Decode one group; also whether every packet was decoded."""
    from av.error import FFmpegError

    context, packets, nal = decoder.context, stream.packets, stream.nal
    context.flush_buffers()
    order, rank = stream.index.order, stream.index.rank
    targets, outcome = frozenset(group.targets), Outcome()
    skips = prune and nal is None and stream.index.stream.codec in _SKIPPABLE
    # Pictures shown before the one we start from lean on pictures we skipped: their damage is not ours.
    since = min(order[group.start], *(order[target] for target in group.targets))
    untold = NO_TIME if stream.index.timed else -1
    damage: list[int] = []
    expected: set[int] = set()
    complete = True

    def take(frames: Sequence[VideoFrame]) -> None:
        for frame in frames:
            number = frame.pts
            if number is None:
                continue
            outcome.decoded += skips
            expected.discard(number)
            if frame.is_corrupt:
                damage.append(number)
            if number in targets:
                deliver(number, frame)
                outcome.delivered.add(number)

    for number, data in enumerate(packets.run(group.start, group.stop), group.start):
        if deadline is not None and time.monotonic() > deadline:
            raise OverBudget
        target = number in targets
        if prune and not target and nal is not None and nal.droppable(data):
            complete = False
            continue
        if skips:
            context.skip_frame = "DEFAULT" if target else "NONREF"
            complete = complete and target
        else:
            outcome.decoded += 1
            if rank[number] >= 0:
                expected.add(number)
        if number in packets.damaged:
            damage.append(number)
        if not data:
            damage.append(number)
            continue
        try:
            frames = context.decode(packets.packet(number, data))
        except (FFmpegError, ValueError):
            damage.append(number)
            continue
        take(frames)
    try:
        take(context.decode(None))
    except (FFmpegError, ValueError):
        damage.append(group.start)
    context.skip_frame = "DEFAULT"
    damage.extend(expected)
    first = min((number for number in damage if not untold < order[number] < since), default=group.stop)
    outcome.damaged = {target for target in targets if target >= first or target not in outcome.delivered}
    return outcome, complete


def decode_all(
    stream_packets: Packets, count: int, decoder: Decoder, deadline: float | None, take: Callable[[VideoFrame], bool]
) -> None:
    """Decode packets 0 to `count` one after another and give every frame to `take`, in display order, until it says stop (False).

    Packets that do not decode are passed over. Raises OverBudget as `run_groups`.
    """
    from av.error import FFmpegError

    context = decoder.context
    context.flush_buffers()
    for number, data in enumerate(chain(stream_packets.run(0, count), [b""])):
        if deadline is not None and time.monotonic() > deadline:
            raise OverBudget
        if number < count and not data:
            continue
        try:
            frames = context.decode(stream_packets.packet(number, data) if number < count else None)
        except (FFmpegError, ValueError):
            continue
        for frame in frames:
            if not take(frame):
                return
