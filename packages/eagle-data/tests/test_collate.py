"""Collation: the packed batch of upstream A.5, the loss weights of A.4, shifting within documents only."""

from __future__ import annotations

import numpy as np
import pytest
from eagle_data.collate import LoadedSample, collate
from eagle_data.encode import IGNORE, WITHHELD
from hypothesis import given, settings
from hypothesis import strategies as st


def loaded(ids: list[int], learned: int | list[bool], tiles: int = 0, where: str = "a:1") -> LoadedSample:
    """The last `learned` tokens are supervised, or those flagged."""
    flags = [i >= len(ids) - learned for i in range(len(ids))] if isinstance(learned, int) else learned
    values = np.array(ids, dtype=np.int32)
    labels = np.where(flags, values, IGNORE).astype(np.int32)
    return LoadedSample(values, labels, np.full((tiles, 3, 4, 4), 0.5, dtype=np.float32), where)


def test_three_samples_become_the_packed_batch_of_the_reference():
    samples = [
        loaded([1, 2, 3, 4, 5], 2, tiles=1, where="a:1"),
        loaded([6, 7, 8, 9], 1, where="a:2"),
        loaded([10, 11, 12], 2, where="a:3"),
    ]
    batch = collate(samples, tile_size=4)
    assert batch.input_ids.tolist() == [list(range(1, 13))]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]]
    assert batch.cu_seqlens.tolist() == [0, 5, 9, 12]
    assert batch.labels.tolist() == [[-100, -100, -100, 4, 5, -100, -100, -100, 9, -100, 11, 12]]
    assert batch.shift_labels.tolist() == [[-100, -100, 4, 5, -100, -100, -100, 9, -100, 11, 12, -100]]
    assert batch.loss_rows.tolist() == [2, 3, 7, 9, 10]
    assert batch.pixel_values.shape == (1, 3, 4, 4)
    assert batch.image_flags.tolist() == [1]
    assert batch.provenance == ("a:1", "a:2", "a:3")
    assert batch.tokens == 12
    for name in ("input_ids", "labels", "shift_labels", "position_ids", "loss_rows", "image_flags"):
        assert getattr(batch, name).dtype == np.int64
    assert batch.cu_seqlens.dtype == np.int32
    assert batch.loss_weight.dtype == batch.pixel_values.dtype == np.float32


def weights_of(counts: list[int], **options) -> np.ndarray:
    samples = [loaded([1, *[2] * n], n) for n in counts]
    batch = collate(samples, tile_size=4, **options)
    return batch.loss_weight[0][batch.loss_rows]


@pytest.mark.parametrize(
    ("counts", "weights", "shares"),
    [([4, 16], [1 / 12, 1 / 24], [1 / 3, 2 / 3]), ([1, 100, 900], [0.024390, 0.0024390, 0.00081301], [0.0244, 0.2439, 0.7317])],
)
def test_square_root_weights_equal_the_worked_examples_once_normalised(
    counts: list[int], weights: list[float], shares: list[float]
):
    raw = weights_of(counts, weighting="sqrt_sample")
    normalised = raw / raw.sum()
    parts = np.split(normalised, np.cumsum(counts)[:-1])
    assert raw.sum() == pytest.approx(sum(n**0.5 for n in counts), rel=1e-5)
    assert [part[0] for part in parts] == pytest.approx(weights, rel=1e-4)
    assert [part.sum() for part in parts] == pytest.approx(shares, abs=1e-4)


def test_a_turn_is_a_run_of_supervised_tokens():
    flags = [False, True, True, True, True, False, False, True, False]
    batch = collate([loaded(list(range(1, 10)), flags)], tile_size=4, weighting="sqrt_turn")
    assert batch.loss_weight[0].tolist() == [0.5, 0.5, 0.5, 0.5, 0, 0, 1, 0, 0]
    whole = collate([loaded(list(range(1, 10)), flags)], tile_size=4, weighting="sqrt_sample")
    assert whole.loss_weight[0][whole.loss_rows] == pytest.approx([5**-0.5] * 5)


def test_token_weighting_is_one_for_each_supervised_token():
    assert weights_of([3, 2]).tolist() == [1] * 5


def test_a_first_token_that_is_supervised_is_predicted_by_nothing():
    batch = collate([loaded([1, 2], 2), loaded([3, 4], 2)], tile_size=4, weighting="sqrt_sample")
    assert batch.shift_labels.tolist() == [[2, -100, 4, -100]]
    assert batch.loss_weight.tolist() == [[1, 0, 1, 0]]


def test_a_prompt_weight_learns_every_token_with_its_weight():
    batch = collate([loaded([1, 2, 3, 4], 1), loaded([5, 6], 1)], tile_size=4, prompt_weight=0.25)
    assert batch.shift_labels.tolist() == [[2, 3, 4, -100, 6, -100]]
    assert batch.loss_weight.tolist() == [[0.25, 0.25, 1, 0, 1, 0]]
    assert batch.loss_rows.tolist() == [0, 1, 2, 4]
    assert batch.labels.tolist() == [[-100, -100, -100, 4, -100, 6]]


def test_what_is_withheld_is_never_learned_and_no_label_tells_it_apart():
    sample = loaded([1, 2, 3, 4, 5], 1)
    sample.labels[1:3] = WITHHELD
    for prompt_weight in (0.0, 0.25):
        batch = collate([sample], tile_size=4, prompt_weight=prompt_weight)
        assert batch.labels.tolist() == [[-100, -100, -100, -100, 5]]
        learned = [(row, int(batch.shift_labels[0, row])) for row in batch.loss_rows.tolist()]
        assert learned == ([(2, 4), (3, 5)] if prompt_weight else [(3, 5)])
        assert batch.loss_weight.tolist() == [[0, 0, prompt_weight, 1, 0]]


def test_a_pack_without_pictures_may_carry_one_white_dummy_tile():
    text = [loaded([1, 2], 1)]
    bare = collate(text, tile_size=4)
    assert bare.pixel_values.shape == (0, 3, 4, 4)
    assert bare.image_flags.tolist() == []
    dummy = collate(text, tile_size=4, dummy_tile=True)
    assert dummy.pixel_values.shape == (1, 3, 4, 4)
    assert (dummy.pixel_values == 1).all()
    assert dummy.image_flags.tolist() == [0]
    assert collate([loaded([1, 2], 1, tiles=2)], tile_size=4, dummy_tile=True).image_flags.tolist() == [1, 1]


def test_tiles_keep_the_order_of_the_samples():
    samples = [loaded([1, 2], 1, tiles=2), loaded([3, 4], 1), loaded([5, 6], 1, tiles=1)]
    samples[2].pixels[:] = -1
    assert collate(samples, tile_size=4).pixel_values[:, 0, 0, 0].tolist() == [0.5, 0.5, -1]


def test_an_empty_pack_is_an_error():
    with pytest.raises(ValueError, match="at least one sample"):
        collate([], tile_size=4)


documents = st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=6)


@given(documents=documents, weighting=st.sampled_from(["token", "sqrt_sample", "sqrt_turn"]))
@settings(deadline=None, max_examples=100)
def test_labels_are_shifted_within_each_document_and_weights_stand_where_labels_do(documents: list[list[bool]], weighting):
    samples = [loaded([10 * d + i for i in range(len(flags))], flags) for d, flags in enumerate(documents)]
    batch = collate(samples, tile_size=4, weighting=weighting)
    for d, (start, end) in enumerate(zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)):
        assert batch.shift_labels[0, start:end].tolist() == [*samples[d].labels[1:].tolist(), IGNORE]
        supervised = int((batch.shift_labels[0, start:end] != IGNORE).sum())
        if weighting == "sqrt_sample":
            assert batch.loss_weight[0, start:end].sum() == pytest.approx(supervised**0.5, rel=1e-5)
    assert np.array_equal(batch.loss_weight[0] > 0, batch.shift_labels[0] != IGNORE)
    assert np.array_equal(batch.loss_rows, np.flatnonzero(batch.loss_weight[0]))


def test_a_weighting_that_is_not_there_is_named_with_the_choices():
    with pytest.raises(ValueError, match="there is no weighting 'sqrt'; use token, sqrt_sample, sqrt_turn"):
        collate([loaded([1, 2], 1)], tile_size=4, weighting="sqrt")  # pyright: ignore[reportArgumentType]


def test_a_sample_with_fewer_labels_than_tokens_is_named():
    good = loaded([1, 2, 3], 1)
    short = LoadedSample(good.input_ids, good.labels[:1], good.pixels, "b:7")
    with pytest.raises(ValueError, match="b:7: 1 labels for 3 tokens; give one label a token"):
        collate([good, short], tile_size=4)
