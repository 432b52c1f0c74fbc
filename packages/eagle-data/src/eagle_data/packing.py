"""Packing: samples to packs under two budgets at once, tokens and tiles, without cutting any sample.

Best fit over a bounded number of open packs: each sample, in the order given, goes to the fullest open pack that
still takes it, so packs fill up while no sample waits for long. Pure integers, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence


def pack(
    lengths: Sequence[int],
    tiles: Sequence[int],
    order: Sequence[int],
    *,
    max_tokens: int,
    max_tiles: int | None = None,
    open_packs: int = 32,
) -> list[tuple[int, ...]]:
    """Pack the samples `order` (indices into `lengths` and `tiles`) and return packs of indices.

    Every index of `order` is in exactly one pack, as often as it occurs there. When a sample fits nowhere and
    `open_packs` packs are open, the fullest one is closed. Packs come in the order in which they close, then the
    open ones, oldest first. Raises ValueError for a sample that exceeds a budget alone.
    """
    if open_packs < 1:
        raise ValueError(f"open_packs must be at least 1, not {open_packs}")
    closed: list[tuple[int, ...]] = []
    opened: list[list[int]] = []
    tokens_used: list[int] = []
    tiles_used: list[int] = []
    for index in order:
        need, need_tiles = lengths[index], tiles[index]
        if need > max_tokens or (max_tiles is not None and need_tiles > max_tiles):
            raise ValueError(
                f"sample {index} has {need} tokens and {need_tiles} tiles, more than a pack of {max_tokens} tokens"
                f"{'' if max_tiles is None else f' and {max_tiles} tiles'} can hold; plan it for this context length first"
            )
        best = -1
        for slot, used in enumerate(tokens_used):
            fits = used + need <= max_tokens and (max_tiles is None or tiles_used[slot] + need_tiles <= max_tiles)
            if fits and (best < 0 or used > tokens_used[best]):
                best = slot
        if best < 0:
            if len(opened) == open_packs:
                fullest = max(range(len(opened)), key=lambda slot: tokens_used[slot])
                closed.append(tuple(opened.pop(fullest)))
                tokens_used.pop(fullest)
                tiles_used.pop(fullest)
            opened.append([])
            tokens_used.append(0)
            tiles_used.append(0)
            best = len(opened) - 1
        opened[best].append(index)
        tokens_used[best] += need
        tiles_used[best] += need_tiles
    return closed + [tuple(members) for members in opened]
