"""The optimum of the paper's Eq. (2): the most visual tokens that any tile limit and number of frames could show.

Degradation sampling does not seek it (frames come before tiles), so the gap between the two is a figure to report, not an error.
Charges wrappers exactly, as plans do, and shares frames between videos by the same rule.
"""

from __future__ import annotations

from eagle_data.ads import Planner, tile_steps


def optimum(planner: Planner, context_length: int) -> int:
    """The most tiles, frames and pages together that fit one sample into `context_length` tokens, over every tile limit and
    number of frames; 0 where not even the least visual content fits.

    The paper's optimum counts visual tokens: this times `tokens_per_tile`.
    """
    best = 0
    for max_tiles in tile_steps(planner.rules):
        if planner.length(planner.floors, max_tiles) <= context_length:
            best = max(best, planner.tiles(planner.most_frames(context_length, max_tiles), max_tiles))
    return best
