"""Bits of a header, most significant first, with the Exp-Golomb codes of H.264 and HEVC.

For parameter sets of a few hundred bytes; reading past the end raises EOFError.
"""

from __future__ import annotations

__all__ = ["BitReader", "unescaped"]


def unescaped(nal: bytes) -> bytes:
    """A NAL unit without its emulation prevention bytes (00 00 03 becomes 00 00)."""
    return nal.replace(b"\x00\x00\x03", b"\x00\x00") if b"\x00\x00\x03" in nal else nal


class BitReader:
    """Reads `data` from its first bit on."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def bits(self, count: int) -> int:
        """An unsigned number of `count` bits."""
        self._left -= count
        if self._left < 0:
            raise EOFError("header ends early")
        return self._value >> self._left & (1 << count) - 1

    def ue(self) -> int:
        """An unsigned Exp-Golomb code."""
        zeros = 0
        while not self.bits(1):
            zeros += 1
            if zeros > 32:
                raise EOFError("no such code")
        return (1 << zeros) - 1 + self.bits(zeros)

    def se(self) -> int:
        """A signed Exp-Golomb code."""
        code = self.ue()
        return (code + 1) // 2 if code & 1 else -(code // 2)
