import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.evaluation.report.charts import MAX_POINTS, axis, calibration, entropy_scatter

FINITE = st.floats(-1e4, 1e4, allow_nan=False)


@given(st.lists(FINITE, min_size=1, max_size=8))
def test_an_axis_holds_every_value_between_few_round_ticks(values):
    found = axis(values)
    assert found.low <= min(values) + 1e-6
    assert found.high >= max(values) - 1e-6
    assert 2 <= len(found.ticks) <= 8
    assert all(0 <= found.percent(v) <= 100 for v in values)
    assert found.ticks == tuple(sorted(set(found.ticks)))


def test_an_axis_of_scores_reads_in_tenths():
    found = axis([0.185, 0.378, math.nan])
    assert [found.label(t) for t in found.ticks] == ["0.15", "0.20", "0.25", "0.30", "0.35", "0.40"]
    assert found.percent(0.275) == pytest.approx(50)


def test_an_axis_of_differences_includes_zero_and_prints_a_true_minus():
    found = axis([-0.13, -0.05], include=(0.0,))
    assert found.high == 0
    assert found.label(found.low).startswith("−0.1")


def test_scatter_places_certain_votes_left_and_a_flat_guess_on_top():
    found = entropy_scatter([[4, 0], [2, 2]], [[0.5, 0.5], [1.0, 0.0]])
    assert found.path == "M0.0 0.0h0M100.0 100.0h0"
    assert found.ticks == ((0.0, "0"), (50.0, "0.5"), (100.0, "1"))
    assert [(b[2], b[3], b[4]) for b in found.bins] == [(1, 0.0, 1.0), (1, 1.0, 0.0)]


def test_scatter_draws_at_most_the_limit_and_counts_all():
    n = 2 * MAX_POINTS + 5
    found = entropy_scatter(np.ones((n, 6)), np.full((n, 6), 1 / 6))
    assert found.shown <= MAX_POINTS
    assert found.path.count("M") == found.shown
    assert found.n == n == sum(b[2] for b in found.bins)


def test_calibration_compares_the_predicted_with_the_voted_share():
    votes = [[3, 1], [1, 3]]
    found = calibration(votes, [[0.9, 0.1], [0.95, 0.05]])
    by_range = {(b.lower, b.upper): (b.n, b.predicted, b.voted) for b in found}
    assert by_range[(0.9, 1.0)] == pytest.approx((2, 0.925, 0.5))
    assert by_range[(0.05, 0.1)] == pytest.approx((1, 0.05, 0.75))
    assert by_range[(0.1, 0.2)] == pytest.approx((1, 0.1, 0.25))
    assert sum(b.n for b in found) == 4


def test_calibration_of_the_votes_themselves_lies_on_the_diagonal():
    votes = np.random.default_rng(0).integers(1, 9, (50, 6))
    for b in calibration(votes, votes / votes.sum(axis=1, keepdims=True)):
        assert b.predicted == pytest.approx(b.voted)


def test_an_interval_beyond_the_range_is_drawn_to_its_end():
    found = axis([-0.2, 0.9, 1.3], within=(0.0, 1.0))
    assert (found.low, found.high) == (0, 1)
    assert (found.percent(-0.2), found.percent(1.3)) == (0, 100)
