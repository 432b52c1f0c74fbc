"""Targets are judged from rows of one file: reached, missed, or not measured."""

from importlib import import_module

import pytest

targets = import_module("kernel_bench.targets")


def _row(case, impl, value, unit="TB/s", tokens=32768, **more):
    return {"case": case, "impl": impl, "value": value, "unit": unit, "shape": {"tokens": tokens}, **more}


def _verdict(case, rows, text=""):
    return next(verdict for verdict in targets.judge(rows) if verdict.case == case and text in verdict.text)


def test_without_rows_nothing_is_reached_or_missed():
    assert {verdict.reached for verdict in targets.judge([])} == {None}


@pytest.mark.parametrize(("value", "reached"), [(4.0, True), (3.99, False)])
def test_the_last_shape_is_judged(value, reached):
    rows = [_row("rms_norm_forward", "eagle", 4.2, tokens=65536), _row("rms_norm_forward", "eagle", value)]
    assert _verdict("rms_norm_forward", rows).reached is reached


@pytest.mark.parametrize(("peer", "reached"), [(4.2, True), (4.3, False)])
def test_swiglu_may_stand_beside_the_best_exact_peer_instead(peer, reached):
    rows = [_row("swiglu_forward", "eagle", 4.15), _row("swiglu_forward", "compile", peer)]
    rows += [_row("swiglu_forward_inexact", "liger", 9.0)]
    assert _verdict("swiglu_forward", rows).reached is reached


@pytest.mark.parametrize(("ours", "reached"), [(147.9, True), (148.1, False)])
def test_the_head_is_judged_by_its_floor_and_by_compile(ours, reached):
    rows = [
        _row("linear_ce_32768", "eagle", ours, "ms", floor=137.0, peak_gib=3.6),
        _row("linear_ce_32768", "compile", 148.0, "ms"),
    ]
    assert _verdict("linear_ce_32768", rows, "matrix products").reached is reached
    assert _verdict("linear_ce_32768", rows, "compile").reached is reached
    assert _verdict("linear_ce_32768", rows, "GiB").reached is False


def test_a_fifth_of_the_rows_is_judged_by_the_time_of_all():
    rows = [_row("linear_ce_32768", "eagle", 148.0, "ms"), _row("linear_ce_32768_supervised20", "eagle", 36.0, "ms")]
    verdict = _verdict("linear_ce_32768_supervised20", rows)
    assert (verdict.measured, verdict.reached) == ("0.243x", True)


def test_offload_is_judged_by_time_device_memory_and_host_bytes():
    plain = _row("offload_32768", "plain", 4.0, "s", held_gib=8.0)
    ours = _row("offload_32768", "eagle", 4.07, "s", held_gib=2.1, layer_inputs_gib=6.1, host_ratio=1.0)
    assert [verdict.reached for verdict in targets.judge([plain, ours]) if verdict.case == "offload_32768"] == [True] * 3
    worse = {**ours, "value": 4.1, "held_gib": 4.0, "host_ratio": 1.3}
    assert [verdict.reached for verdict in targets.judge([plain, worse]) if verdict.case == "offload_32768"] == [False] * 3


def test_a_step_must_be_faster_than_liger_at_no_more_memory():
    rows = [_row("step_32768", "liger", 4.5, "s", peak_gib=33.4), _row("step_32768", "eagle", 3.9, "s", peak_gib=33.5)]
    assert _verdict("step_32768", rows, "liger").reached is True
    assert _verdict("step_32768", rows, "memory").reached is False
    assert _verdict("step_32768", rows, "transformers").reached is None
