import math

import numpy as np
import pytest
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp

from reasoning.errors import EvaluationError
from reasoning.evaluation.metrics import additive_metrics
from reasoning.evaluation.statistics import (
    FEW_SPEAKERS,
    Additive,
    Interval,
    difference_of,
    few_speakers_note,
    jackknife_interval,
    mean_of,
)

SIMULATIONS = 400


def one_study(rng: np.random.Generator, n_speakers: int = 13) -> tuple[np.ndarray, np.ndarray]:
    """Per-clip scores and speakers as in one CREMA-D fold: 9 to 19 clips each, speaker effects, skewed clip noise."""
    sizes = rng.integers(9, 20, n_speakers)
    speakers = np.repeat(np.arange(n_speakers), sizes)
    values = 0.2 + rng.normal(0, 0.05, n_speakers)[speakers] + rng.gamma(2, 0.05, sizes.sum()) - 0.1
    return values, speakers.astype(str)


def naive_jackknife(values: np.ndarray, speakers: np.ndarray) -> tuple[float, float, float]:
    """The interval of a mean over clips, speaker by speaker."""
    names = sorted(set(speakers))
    estimate = sum(values) / len(values)
    squares = 0.0
    for name in names:
        rest = [v for v, s in zip(values, speakers, strict=True) if s != name]
        squares += (sum(rest) / len(rest) - estimate) ** 2
    half = student_t.ppf(0.975, len(names) - 1) * math.sqrt((len(names) - 1) / len(names) * squares)
    return estimate, estimate - half, estimate + half


def test_mean_interval_equals_the_naive_loop():
    values, speakers = one_study(np.random.default_rng(0))
    found = jackknife_interval(mean_of(values), speakers)
    assert (found.estimate, found.low, found.high) == pytest.approx(naive_jackknife(values, speakers))


def test_with_one_clip_a_speaker_it_is_the_ordinary_t_interval():
    values = np.random.default_rng(1).normal(size=20)
    found = jackknife_interval(mean_of(values), [str(i) for i in range(20)])
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_intervals_cover_the_truth_95_percent_of_the_time_at_13_speakers():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(SIMULATIONS):
        found = jackknife_interval(mean_of((study := one_study(rng))[0]), study[1])
        hits += found.low <= 0.2 <= found.high
    assert 0.92 <= hits / SIMULATIONS <= 0.98


def test_the_percentile_bootstrap_that_it_replaces_covers_less():
    rng = np.random.default_rng(2)
    bootstrap = jackknife = 0
    for _ in range(SIMULATIONS):
        values, speakers = one_study(rng)
        codes = speakers.astype(int)
        sums, sizes = np.bincount(codes, values), np.bincount(codes)
        draws = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=500)
        low, high = np.quantile((draws @ sums) / (draws @ sizes), [0.025, 0.975])
        found = jackknife_interval(mean_of(values), speakers)
        bootstrap += low <= 0.2 <= high
        jackknife += found.low <= 0.2 <= found.high
    assert bootstrap / SIMULATIONS < 0.92
    assert bootstrap < jackknife


def test_paired_intervals_cover_a_true_difference_and_are_narrower_than_unpaired_ones():
    rng = np.random.default_rng(3)
    hits, widths = 0, []
    for _ in range(SIMULATIONS):
        a, speakers = one_study(rng)
        b = a + 0.01 + rng.normal(0, 0.02, len(set(speakers)))[speakers.astype(int)] + rng.normal(0, 0.03, len(a))
        found = jackknife_interval(difference_of(mean_of(b), mean_of(a)), speakers)
        hits += found.low <= 0.01 <= found.high
        alone = jackknife_interval(mean_of(a), speakers)
        widths.append((found.high - found.low) / (alone.high - alone.low))
    assert 0.92 <= hits / SIMULATIONS <= 0.98
    assert np.mean(widths) < 0.7


@pytest.mark.parametrize("name", ["wa", "ua", "entropy_correlation"])
def test_set_level_intervals_cover_the_population_value_at_13_speakers(name):
    def study(rng: np.random.Generator, n_speakers: int):
        sizes = rng.integers(9, 20, n_speakers)
        speakers = np.repeat(np.arange(n_speakers), sizes)
        truth = rng.dirichlet(np.full(3, 0.8), sizes.sum())
        noise = np.clip(rng.normal(0.5, 0.2, n_speakers), 0.05, 0.95)[speakers][:, None]
        votes = np.array([rng.multinomial(9, p) for p in truth])
        return votes, (1 - noise) * truth + noise * rng.dirichlet(np.full(3, 0.8), len(truth)), speakers.astype(str)

    rng = np.random.default_rng(4)
    votes, probs, _ = study(rng, 4000)
    metric = additive_metrics(votes, probs)[name]
    population = float(metric.finish(metric.parts_NM.sum(axis=0)))
    hits = 0
    for _ in range(SIMULATIONS):
        votes, probs, speakers = study(rng, 13)
        found = jackknife_interval(additive_metrics(votes, probs)[name], speakers)
        hits += found.low <= population <= found.high
    assert 0.92 <= hits / SIMULATIONS <= 0.985


def test_set_level_leave_one_out_equals_recomputing_without_the_speaker():
    rng = np.random.default_rng(5)
    votes = rng.multinomial(9, [0.5, 0.3, 0.2], 60)
    probs = rng.dirichlet(np.ones(3), 60)
    speakers = np.repeat(np.arange(6), 10).astype(str)
    for name in ("ua", "macro_f1", "entropy_correlation"):

        def score(keep: np.ndarray, name: str = name) -> float:
            metric = additive_metrics(votes[keep], probs[keep])[name]
            return float(metric.finish(metric.parts_NM.sum(axis=0)))

        without = [score(speakers != s) for s in sorted(set(speakers))]
        whole = score(np.ones(60, dtype=bool))
        half = student_t.ppf(0.975, 5) * math.sqrt(5 / 6 * sum((w - whole) ** 2 for w in without))
        found = jackknife_interval(additive_metrics(votes, probs)[name], speakers)
        assert (found.estimate, found.high - found.low) == pytest.approx((whole, 2 * half)), name


def test_one_speaker_gives_an_estimate_without_ends():
    found = jackknife_interval(mean_of(np.array([0.1, 0.3])), ["a", "a"])
    assert found.to_dict() == {"estimate": pytest.approx(0.2), "low": None, "high": None}
    assert not found.clear_of_zero


def test_intervals_say_when_they_are_clear_of_zero():
    assert Interval(0.2, 0.1, 0.3).clear_of_zero
    assert Interval(-0.2, -0.3, -0.1).clear_of_zero
    assert not Interval(0.1, -0.1, 0.3).clear_of_zero


def test_clips_that_cannot_be_paired_or_lack_speakers_are_refused():
    with pytest.raises(EvaluationError, match="cannot pair"):
        difference_of(mean_of(np.zeros(3)), mean_of(np.zeros(4)))
    with pytest.raises(EvaluationError, match="speaker names"):
        jackknife_interval(mean_of(np.zeros(3)), ["a"])
    with pytest.raises(EvaluationError, match="at least 1"):
        jackknife_interval(Additive(np.zeros((0, 2)), lambda totals: totals[..., 0]), [])


def test_few_speakers_are_noted_and_many_are_not():
    assert "13 speakers" in (few_speakers_note(13) or "")
    assert few_speakers_note(FEW_SPEAKERS) is None
