"""What is measured: the cases as data, and which frames of a video a case asks for.

Pure and without dependencies, since peers' interpreters import it too. Not for: the bars (`targets.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CASES", "VIDEOS", "Case", "middles"]

VIDEOS = {"A": "a_720p_10m.mp4", "B": "b_360p_60m.mp4"}
"""The two long videos by their letter: 720p30 for 10 minutes, and 360p30 for 60."""


@dataclass(frozen=True)
class Case:
    """One measurement, made by every reader in processes of their own.

    Attributes:
        name: in the result file.
        kind: "open" (to an exact index), "uniform" (open and read) or "segment" (open and read any frame of each segment).
        video: letter of `VIDEOS`.
        frames: how many are asked for; 0 for "open".
        size: (width, height) that every reader delivers.
        memory_as: second case name under which the same run's peak memory is recorded, or "".
        timed: false for a case whose time another case already gives.
    """

    name: str
    kind: str
    video: str
    frames: int = 0
    size: tuple[int, int] = (448, 252)
    memory_as: str = ""
    timed: bool = True

    @property
    def shape(self) -> dict[str, int]:
        """For the result file; what differs between lines of a table comes first."""
        return {"height": self.size[1], "width": self.size[0], "frames": self.frames} if self.frames else {"frames": 0}


def middles(total: int, wanted: int) -> list[int]:
    """The frames in the middle of `wanted` equal parts of a video of `total` frames."""
    return [int((2 * place + 1) * total / (2 * wanted)) for place in range(wanted)]


CASES = (
    *(Case(f"open_{letter}", "open", letter) for letter in VIDEOS),
    Case("uniform32_A", "uniform", "A", 32),
    Case("uniform128_A", "uniform", "A", 128),
    Case("uniform512_A", "uniform", "A", 512, memory_as="resized512_A"),
    Case("resized512_A", "uniform", "A", 512, (448, 448), memory_as="resized512_A", timed=False),
    Case("uniform32_B", "uniform", "B", 32),
    Case("uniform128_B", "uniform", "B", 128),
    Case("uniform512_B", "uniform", "B", 512),
    Case("segment128_A", "segment", "A", 128),
    Case("segment128_B", "segment", "B", 128),
)
