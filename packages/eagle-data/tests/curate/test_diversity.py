"""The diversity rule equals its formula, and planted duplicates are found, whatever stands around them."""

from __future__ import annotations

import numpy as np
from eagle_data.curate import diversity
from eagle_data.curate.diversity import novel
from hypothesis import given, settings
from hypothesis import strategies as st


def units(rng: np.random.Generator, n: int, dim: int = 8) -> np.ndarray:
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_the_formula(candidates: np.ndarray, existing: np.ndarray, threshold: float, within: float | None) -> list[bool]:
    kept: list[bool] = []
    for i, a in enumerate(candidates):
        new = all(float(a @ b) < threshold for b in existing)
        if new and within is not None:
            new = all(float(a @ candidates[j]) < within for j in range(i) if kept[j])
        kept.append(new)
    return kept


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(0, 40),
    st.sampled_from([0.2, 0.5, 0.9]),
    st.sampled_from([None, 0.4, 0.8]),
)
def test_it_equals_the_formula_in_blocks_of_any_size(seed: int, n: int, m: int, threshold: float, within: float | None):
    rng = np.random.default_rng(seed)
    candidates, existing = units(rng, n), units(rng, m)
    block = diversity._BLOCK
    try:
        diversity._BLOCK = int(rng.integers(1, 50))
        result = novel(candidates, existing, threshold, within)
    finally:
        diversity._BLOCK = block
    margins = np.abs(
        np.concatenate([(candidates @ existing.T).ravel() - threshold, (candidates @ candidates.T).ravel() - (within or 9)])
    )
    if margins.min() > 1e-5:  # float32 sums in another order may differ by less
        assert result.kept.tolist() == by_the_formula(candidates, existing, threshold, within)
    everything = np.concatenate([existing, candidates])
    for i in range(n):
        if result.nearest[i] >= 0:
            assert abs(float(candidates[i] @ everything[result.nearest[i]]) - result.largest[i]) < 1e-5
        else:
            assert m == 0
            assert result.largest[i] == -1


def test_planted_duplicates_are_found_among_thousands():
    rng = np.random.default_rng(1)
    existing, candidates = units(rng, 3000, 256), units(rng, 2500, 256)
    old, new = rng.choice(3000, 40, replace=False), rng.choice(2500, 40, replace=False)
    noisy = existing[old] + rng.normal(size=(40, 256)).astype(np.float32) * 0.02
    candidates[new] = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    result = novel(candidates, existing, 0.5)
    assert sorted(np.flatnonzero(~result.kept)) == sorted(new)
    assert result.nearest[new].tolist() == old.tolist()


def test_a_repeat_among_the_candidates_is_dropped_only_when_asked():
    [a, b] = np.eye(2, 4, dtype=np.float32)
    candidates, nothing = np.stack([a, b, a, a]), np.empty((0, 4), np.float32)
    assert novel(candidates, nothing, 0.5).kept.tolist() == [True] * 4
    result = novel(candidates, nothing, 0.5, within=0.95)
    assert result.kept.tolist() == [True, True, False, False]
    assert result.nearest.tolist() == [-1, -1, 0, 0]


def test_a_dropped_clip_drops_no_other():
    existing = np.eye(1, 4, dtype=np.float32)
    like = np.array([[1, 0.02, 0, 0]], np.float32)
    like /= np.linalg.norm(like)
    half = np.array([[0.45, 0.893, 0, 0]], np.float32)
    result = novel(np.concatenate([like, half / np.linalg.norm(half)]), existing, 0.5, within=0.46)
    assert result.kept.tolist() == [False, True]
