import csv
import doctest
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, pearsonr
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from reasoning.distributions import SHARE_FLOOR, cosine, floor_shares, normalize_votes, r2_aer_llm
from reasoning.errors import DistributionError, EvaluationError
from reasoning.evaluation import metrics
from reasoning.evaluation.metrics import (
    LOWER_IS_BETTER,
    METRICS,
    additive_metrics,
    confusion_parts,
    per_clip,
    worst_scores,
)

K = 6


def some_clips(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Votes (n, 6) of 4 to 12 raters and predictions (n, 6), some of them with zero shares."""
    rng = np.random.default_rng(seed)
    votes = np.array([rng.multinomial(rng.integers(4, 13), rng.dirichlet(np.full(K, 0.5))) for _ in range(n)])
    probs = rng.dirichlet(np.full(K, 0.7), n)
    probs[probs < 0.03] = 0.0
    return votes, probs / probs.sum(axis=1, keepdims=True)


def value(name: str, votes, probs, failed=None) -> float:
    metric = additive_metrics(votes, probs, failed)[name]
    return float(metric.finish(metric.parts_NM.sum(axis=0)))


def naive(votes: list[int], q: list[float]) -> dict[str, float]:
    """Each per-clip metric from its textbook formula, one clip, plain Python."""
    n = sum(votes)
    p = [v / n for v in votes]
    raised = [max(x, SHARE_FLOOR) for x in q]
    floored = [x / sum(raised) for x in raised]
    half = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log2(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    def bits(a: list[float]) -> float:
        return -sum(x * math.log2(x) for x in a if x > 0)

    return {
        "jsd_bits": (kl(p, half) + kl(q, half)) / 2,
        "nll_bits": -sum(v * math.log2(f) for v, f in zip(votes, floored, strict=True)) / n,
        "brier": sum((a - b) ** 2 for a, b in zip(p, q, strict=True)),
        "bc": sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True)),
        "tvd": sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
        "kl_bits": kl(p, floored),
        "entropy_mae_bits": abs(bits(q) - bits(p)),
    }


def test_doctests_of_the_module_hold():
    assert doctest.testmod(metrics).failed == 0


def test_every_per_clip_metric_equals_its_textbook_formula():
    votes, probs = some_clips(200)
    scores = per_clip(votes, probs)
    assert set(scores) == set(metrics.PER_CLIP)
    for i in range(len(votes)):
        expected = naive(votes[i].tolist(), probs[i].tolist())
        for name, values in scores.items():
            assert values[i] == pytest.approx(expected[name], abs=1e-9), (name, i)


def test_divergences_agree_with_scipy_and_sklearn():
    votes, probs = some_clips(300, seed=1)
    p, scores = normalize_votes(votes), per_clip(votes, probs)
    assert scores["jsd_bits"] == pytest.approx(jensenshannon(p, probs, axis=1, base=2) ** 2, abs=1e-9)
    assert scores["kl_bits"] == pytest.approx(entropy(p, floor_shares(probs), base=2, axis=1), abs=1e-9)
    labels = np.repeat(np.tile(np.arange(K), len(votes)), votes.ravel())
    rows = np.repeat(np.repeat(np.arange(len(votes)), K), votes.ravel())
    per_vote = log_loss(labels, floor_shares(probs)[rows], labels=np.arange(K)) / np.log(2)
    assert np.average(scores["nll_bits"], weights=votes.sum(axis=1)) == pytest.approx(per_vote, abs=1e-9)


def test_hard_scores_agree_with_sklearn_on_untied_clips():
    votes, probs = some_clips(400, seed=2)
    untied = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
    assert 0 < (~untied).sum() < len(votes)
    truth, guess = votes[untied].argmax(axis=1), probs[untied].argmax(axis=1)
    assert value("wa", votes, probs) == pytest.approx(accuracy_score(truth, guess))
    assert value("ua", votes, probs) == pytest.approx(balanced_accuracy_score(truth, guess))
    assert value("macro_f1", votes, probs) == pytest.approx(f1_score(truth, guess, average="macro"))


def test_predicted_ties_are_shared_out_as_sklearn_does_with_weights():
    votes = np.array([[5, 1, 0], [0, 6, 1], [1, 2, 7], [4, 0, 1]])
    probs = np.array([[0.4, 0.4, 0.2], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3], [0.2, 0.4, 0.4]])
    truth = [0, 0, 1, 2, 2, 2, 0, 0]
    guess = [0, 1, 1, 0, 1, 2, 1, 2]
    weight = [0.5, 0.5, 1, 1 / 3, 1 / 3, 1 / 3, 0.5, 0.5]
    assert value("wa", votes, probs) == pytest.approx(accuracy_score(truth, guess, sample_weight=weight))
    assert value("ua", votes, probs) == pytest.approx(balanced_accuracy_score(truth, guess, sample_weight=weight))
    assert value("macro_f1", votes, probs) == pytest.approx(
        f1_score(truth, guess, average="macro", sample_weight=weight)
    )


def test_a_uniform_prediction_has_chance_accuracy_whatever_the_order_of_emotions():
    votes, _ = some_clips(100, seed=3)
    assert value("wa", votes, np.full((100, K), 1 / K)) == pytest.approx(1 / K)


def test_an_emotion_that_is_no_clips_majority_does_not_count_in_ua_and_f1():
    votes, probs = np.array([[3, 0, 0], [0, 3, 0]]), np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    assert value("ua", votes, probs) == 0.5
    assert value("macro_f1", votes, probs) == 0.5


def test_entropy_correlation_agrees_with_scipy_and_is_undefined_for_a_constant():
    votes, probs = some_clips(300, seed=4)
    h_votes, h_probs = entropy(normalize_votes(votes), base=2, axis=1), entropy(probs, base=2, axis=1)
    assert value("entropy_correlation", votes, probs) == pytest.approx(pearsonr(h_probs, h_votes).statistic)
    assert math.isnan(value("entropy_correlation", votes, np.tile(probs[:1], (300, 1))))


def test_a_failed_row_scores_worse_than_any_answer_could():
    votes, probs = some_clips(300, seed=5)
    failed = per_clip(votes, np.full_like(probs, np.nan), np.ones(300, dtype=bool))
    one_hots = [per_clip(votes, np.tile(np.eye(K)[k], (300, 1))) for k in range(K)]
    for name, scores in failed.items():
        for other in [per_clip(votes, probs), *one_hots]:
            gap = scores - other[name] if name in LOWER_IS_BETTER else other[name] - scores
            assert (gap >= -1e-9).all() or name == "entropy_mae_bits"
    assert failed["jsd_bits"].tolist() == [1.0] * 300
    assert failed["nll_bits"][0] == pytest.approx(worst_scores(K)["nll_bits"])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.9))
def test_failing_never_pays_on_any_subset_of_clips(seed, share):
    votes, probs = some_clips(40, seed=seed)
    failed = np.random.default_rng(seed).random(40) < share
    for name in set(METRICS) - {"entropy_correlation", "entropy_mae_bits"}:
        kept, lost = value(name, votes, probs), value(name, votes, probs, failed)
        assert lost >= kept - 1e-12 if name in LOWER_IS_BETTER else lost <= kept + 1e-12, name


def test_failing_on_the_clips_that_are_wrong_anyway_lowers_the_scores():
    votes, probs = some_clips(300, seed=6)
    failed = per_clip(votes, probs)["jsd_bits"] > 0.5
    for name in (
        "jsd_bits",
        "nll_bits",
        "brier",
        "bc",
        "tvd",
        "entropy_mae_bits",
        "entropy_correlation",
        "ua",
        "macro_f1",
    ):
        kept, lost = value(name, votes, probs), value(name, votes, probs, failed)
        assert lost > kept if name in LOWER_IS_BETTER else lost < kept, name


def test_a_failed_row_is_wrong_without_being_a_false_alarm_of_any_emotion():
    parts = confusion_parts([[3, 0]], [[1.0, 0.0]], [True])
    assert parts.tolist() == [[[0, 0, 1], [0, 0, 0]]]


@settings(max_examples=60, deadline=None)
@given(
    votes=arrays(np.int64, (4, K), elements=st.integers(0, 12)),
    weights=arrays(np.float64, (4, K), elements=st.floats(0, 1)),
    order=st.permutations(range(K)),
)
def test_scores_stay_in_range_and_ignore_the_order_of_emotions(votes, weights, order):
    votes[:, 0] += 1
    weights[:, 0] += 0.01
    probs = weights / weights.sum(axis=1, keepdims=True)
    scores, worst = per_clip(votes, probs), worst_scores(K)
    for name, upper in {**worst, "bc": 1.0, "entropy_mae_bits": math.log2(K)}.items():
        assert ((scores[name] >= 0) & (scores[name] <= upper + 1e-9)).all(), name
    permuted = per_clip(votes[:, order], probs[:, order])
    for name in scores:
        assert permuted[name] == pytest.approx(scores[name], abs=1e-9)
    for name in ("wa", "ua", "macro_f1"):
        assert value(name, votes[:, order], probs[:, order]) == pytest.approx(value(name, votes, probs), nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(votes=arrays(np.int64, (3, K), elements=st.integers(0, 12)))
def test_predicting_the_votes_themselves_is_perfect(votes):
    votes[:, 0] += 1
    scores = per_clip(votes, normalize_votes(votes))
    for name in ("jsd_bits", "brier", "tvd", "entropy_mae_bits"):
        assert scores[name] == pytest.approx(0, abs=1e-12)
    assert scores["bc"] == pytest.approx(1)


def test_clips_without_votes_and_shapes_that_differ_are_refused():
    with pytest.raises(DistributionError, match="holds no vote"):
        per_clip([[0, 0]], [[0.5, 0.5]])
    with pytest.raises(EvaluationError, match="do not match"):
        per_clip([[1, 1]], [[0.2, 0.3, 0.5]])


REFERENCE = {  # FIELD.md section 4: JSD bits, BC, R2, TVD, Brier of constant predictors over all 7,442 voice-only clips
    "uniform": (0.378, 0.657, 0.0, 0.566, 0.358),
    "prior": (0.290, 0.738, 0.470, 0.458, 0.266),
    "always neutral": (0.433, 0.589, 0.487, 0.561, 0.647),
    "acted intent": (0.474, 0.552, 0.409, 0.603, 0.731),
}


@pytest.fixture(scope="module")
def all_votes(shared_crema_d: Path) -> tuple[np.ndarray, np.ndarray]:
    """Votes (7442, 6) and the acted intents, straight from the official table, without the project's reader."""
    with (shared_crema_d / "processedResults" / "tabulatedVotes.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row[""].startswith("1")]
    votes = np.array([[int(row[letter]) for letter in "ADFHNS"] for row in rows])
    intents = ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]
    return votes, np.array([intents.index(row["fileName"].split("_")[2]) for row in rows])


@pytest.mark.parametrize("predictor", list(REFERENCE))
def test_reference_points_of_the_field_are_reproduced_on_the_official_votes(all_votes, predictor):
    votes, intent = all_votes
    assert len(votes) == 7442
    p = normalize_votes(votes)
    probs = {
        "uniform": np.full_like(p, 1 / K),
        "prior": np.tile(p.mean(axis=0), (len(p), 1)),
        "always neutral": np.tile(np.eye(K)[4], (len(p), 1)),
        "acted intent": np.eye(K)[intent],
    }[predictor]
    scores = per_clip(votes, probs)
    found = [scores["jsd_bits"], scores["bc"], r2_aer_llm(p, probs), scores["tvd"], scores["brier"]]
    assert [round(float(x.mean()), 3) for x in found] == pytest.approx(REFERENCE[predictor], abs=0.0011)
    assert cosine(p, probs).min() >= 0
    tied = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) > 1
    assert round(100 * tied.mean(), 1) == 8.7
