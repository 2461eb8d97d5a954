"""Every divergence against its formula in plain Python, against scipy, and against figures published on real votes."""

from __future__ import annotations

import csv
import doctest
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial.distance import cosine as cosine_distance
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax
from scipy.stats import entropy, pearsonr, wasserstein_distance

from reasoning import distributions as d
from reasoning.errors import DistributionError

K = 6
Row = Sequence[float]


@st.composite
def distribution(draw: st.DrawFn, k: int = K) -> list[float]:
    """Rows with zeros, equal shares, sure rows and shares down to the smallest float."""
    weight = st.one_of(st.just(0.0), st.integers(0, 12).map(float), st.floats(0, 1))
    weights = draw(st.lists(weight, min_size=k, max_size=k).filter(lambda w: sum(w) > 1e-300))
    shares = (np.array(weights) / sum(weights)).tolist()
    if draw(st.booleans()) and 0.0 in shares:
        shares[shares.index(0.0)] = 5e-324
    return shares


def random_rows(n: int = 40, k: int = K, seed: int = 0) -> np.ndarray:
    """Vote shares, a third of them with absent emotions."""
    rng = np.random.default_rng(seed)
    return d.normalize_votes(rng.multinomial(9, rng.dirichlet(np.full(k, 0.6), n)))


def naive_kl_nats(p: Row, q: Row) -> float:
    return sum(a * math.log(a / b) if b > 0 else math.inf for a, b in zip(p, q, strict=True) if a > 0)


def naive_jsd_nats(p: Row, q: Row) -> float:
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (naive_kl_nats(p, m) + naive_kl_nats(q, m)) / 2


def naive_floor(q: Row, floor: float) -> list[float]:
    raised = [max(share, floor) for share in q]
    return [share / sum(raised) for share in raised]


def naive_r2(p: Row, q: Row) -> float:
    """As `R` in the AER-LLM code: numpy's covariance and variances with ddof 0, and 1e-10 in the denominator."""
    return float(np.cov(p, q, ddof=0)[0][1] ** 2 / (np.var(p) * np.var(q) + 1e-10))


PAIRWISE: dict[str, Callable[[Row, Row], float]] = {
    "jsd_nats": naive_jsd_nats,
    "jsd_bits": lambda p, q: naive_jsd_nats(p, q) / math.log(2),
    "js_distance": lambda p, q: math.sqrt(max(naive_jsd_nats(p, q), 0.0)),
    "bhattacharyya": lambda p, q: sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True)),
    "tvd": lambda p, q: sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
    "kl_bits": lambda p, q: naive_kl_nats(p, naive_floor(q, 0.005)) / math.log(2),
    "brier": lambda p, q: sum((a - b) ** 2 for a, b in zip(p, q, strict=True)),
    "mse": lambda p, q: sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / len(p),
    "cosine": lambda p, q: sum(a * b for a, b in zip(p, q, strict=True)) / (math.hypot(*p) * math.hypot(*q)),
    "r2_aer_llm": naive_r2,
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_each_score_equals_its_formula_written_out(name):
    p, q = random_rows(seed=1), random_rows(seed=2)
    expected = [PAIRWISE[name](a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    np.testing.assert_allclose(getattr(d, name)(p, q), expected, atol=1e-7 if name == "js_distance" else 1e-12)


def test_scores_equal_scipy():
    p, q = random_rows(seed=3), random_rows(seed=4)
    np.testing.assert_allclose(d.jsd_bits(p, q), jensenshannon(p, q, base=2, axis=1) ** 2, atol=1e-12)
    np.testing.assert_allclose(d.js_distance(p, q), jensenshannon(p, q, axis=1), atol=1e-12)
    np.testing.assert_allclose(d.kl_bits(p, q, floor=0), rel_entr(p, q).sum(axis=1) / np.log(2), atol=1e-12)
    np.testing.assert_allclose(d.entropy_bits(p), entropy(p, base=2, axis=1), atol=1e-12)
    np.testing.assert_allclose(d.cosine(p, q), [1 - cosine_distance(a, b) for a, b in zip(p, q, strict=True)])
    correlations = [pearsonr(a, b).statistic for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(d.r2_aer_llm(p, q), np.square(correlations), atol=1e-5)


def test_disjoint_and_equal_rows_score_the_ends_of_every_range():
    one, other = [1.0, 0, 0, 0, 0, 0], [0, 0, 1.0, 0, 0, 0]
    ends = {  # score: (equal, disjoint)
        "jsd_bits": (0, 1),
        "jsd_nats": (0, math.log(2)),
        "js_distance": (0, math.sqrt(math.log(2))),
        "bhattacharyya": (1, 0),
        "tvd": (0, 1),
        "brier": (0, 2),
        "mse": (0, 2 / K),
        "cosine": (1, 0),
    }
    for name, (equal, disjoint) in ends.items():
        score = getattr(d, name)
        assert (float(score(one, one)[0]), float(score(one, other)[0])) == pytest.approx((equal, disjoint)), name


@given(distribution(), distribution())
def test_symmetric_scores_do_not_depend_on_which_row_comes_first(p, q):
    for name in ("jsd_bits", "js_distance", "bhattacharyya", "tvd", "brier", "mse", "cosine", "r2_aer_llm"):
        assert getattr(d, name)(p, q)[0] == pytest.approx(getattr(d, name)(q, p)[0], abs=1e-12), name


@given(distribution(), distribution())
def test_scores_stay_in_their_documented_ranges(p, q):
    assert 0 <= d.jsd_bits(p, q)[0] <= 1
    assert 0 <= d.bhattacharyya(p, q)[0] <= 1
    assert 0 <= d.tvd(p, q)[0] <= 1 + 1e-12
    assert 0 <= d.brier(p, q)[0] <= 2 + 1e-12
    assert 0 <= d.cosine(p, q)[0] <= 1 + 1e-12
    assert 0 <= d.r2_aer_llm(p, q)[0] <= 1 + 1e-12
    assert 0 <= d.entropy_bits(p)[0] <= math.log2(K) + 1e-12
    assert 0 <= d.kl_bits(p, q)[0] <= -math.log2(d.SHARE_FLOOR / (1 + (K - 1) * d.SHARE_FLOOR))


POINTS = np.array([[-0.5, 0.6], [-0.6, 0.3], [-0.6, 0.6], [0.8, 0.5], [0.0, 0.0], [-0.6, -0.3]])


def cheapest_moves(p: Row, q: Row, points: np.ndarray) -> float:
    """The transport problem itself, every move a variable; the function solves its dual."""
    ways = np.linalg.norm(points[:, None] - points[None], axis=-1)
    n = len(p)
    sums = np.concatenate([np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))])
    return float(linprog(ways.ravel(), A_eq=sums, b_eq=[*q, *p]).fun)


def test_the_earth_mover_pays_what_the_cheapest_moves_cost_in_the_plane_and_on_a_line():
    p, q = random_rows(12, seed=5), random_rows(12, seed=6)
    expected = [cheapest_moves(a, b, POINTS) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    np.testing.assert_allclose(d.earth_mover(p, q, POINTS), expected, atol=1e-9)
    line = [0.0, 1, 2, 4, 7, 7.5]
    on_line = [wasserstein_distance(line, line, a, b) for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(d.earth_mover(p, q, [[x, 0.0] for x in line]), on_line, atol=1e-9)


def test_the_earth_mover_pays_total_variation_where_all_points_are_one_apart():
    p, q = random_rows(8, seed=7), random_rows(8, seed=8)
    np.testing.assert_allclose(d.earth_mover(p, q, np.eye(K) / math.sqrt(2)), d.tvd(p, q), atol=1e-9)


@settings(max_examples=25)
@given(distribution(), distribution(), distribution())
def test_the_earth_mover_is_a_metric_within_the_farthest_pair(p, q, r):
    def way(a: Row, b: Row) -> float:
        return float(d.earth_mover(a, b, POINTS)[0])

    # The linear program is solved to a feasibility of 1e-7: masses below that may stay where they are.
    farthest = np.linalg.norm(POINTS[:, None] - POINTS[None], axis=-1).max()
    assert 0 <= way(p, q) <= farthest + 1e-9
    assert way(p, p) == pytest.approx(0, abs=1e-9)
    assert way(p, q) == pytest.approx(way(q, p), abs=1e-7)
    assert way(p, r) <= way(p, q) + way(q, r) + 1e-7


def test_the_earth_mover_compares_many_rows_with_one_and_refuses_points_that_do_not_fit():
    p = random_rows(3)
    np.testing.assert_allclose(d.earth_mover(p, p[1], POINTS)[1], 0, atol=1e-9)
    for points in (POINTS[:5], POINTS[:, 0], np.where(POINTS == 0, math.nan, POINTS)):
        with pytest.raises(DistributionError, match="6 finite points"):
            d.earth_mover(p, p, points)


@given(distribution())
def test_a_row_has_no_divergence_from_itself(p):
    assert d.jsd_bits(p, p)[0] == 0
    assert d.tvd(p, p)[0] == d.brier(p, p)[0] == 0
    assert d.kl_bits(p, p, floor=0)[0] == pytest.approx(0, abs=1e-12)
    assert d.bhattacharyya(p, p)[0] == pytest.approx(1)


@given(distribution(), distribution())
def test_jsd_lies_between_the_bounds_that_total_variation_sets(p, q):
    """Lin (1991): jsd_bits <= tvd; Pinsker, for either half against the mean: tvd^2 / (2 ln 2) <= jsd_bits."""
    jsd, tvd = d.jsd_bits(p, q)[0], d.tvd(p, q)[0]
    assert tvd**2 / (2 * math.log(2)) - 1e-9 <= jsd <= tvd + 1e-9


def test_the_smallest_share_that_a_float_holds_does_not_look_like_a_disjoint_row():
    assert d.jsd_bits([1.0, 5e-324], [1.0, 0.0])[0] < 1e-300


@given(st.lists(st.integers(0, 12), min_size=K, max_size=K).filter(any), distribution())
def test_nll_per_vote_is_the_mean_over_single_votes_and_splits_into_kl_and_entropy(votes, q):
    floored = naive_floor(q, d.SHARE_FLOOR)
    single = [-math.log2(floored[k]) for k, count in enumerate(votes) for _ in range(count)]
    nll = d.nll_bits(votes, q)[0]
    assert nll == pytest.approx(sum(single) / len(single))
    assert nll == pytest.approx(d.kl_bits(d.normalize_votes(votes), q)[0] + d.entropy_bits(d.normalize_votes(votes))[0])


@pytest.mark.parametrize("score", ["nll_bits", "brier"])
def test_proper_scores_are_best_on_average_at_the_true_distribution_and_jsd_is_not(score):
    """Over every outcome of 3 votes: the proper scores' best forecast is the truth, that of jsd_bits is sharper."""
    truth = 0.7
    outcomes = np.array([[n, 3 - n] for n in range(4)])
    chance = np.array([math.comb(3, n) * truth**n * (1 - truth) ** (3 - n) for n in range(4)])
    grid = np.round(np.arange(0.05, 0.96, 0.01), 2)

    def best(values: Callable[[np.ndarray], np.ndarray]) -> float:
        expected = [float(chance @ values(np.array([[share, 1 - share]]))) for share in grid]
        return float(grid[int(np.argmin(expected))])

    shares = d.normalize_votes(outcomes)
    proper = {"nll_bits": lambda q: d.nll_bits(outcomes, q), "brier": lambda q: d.brier(shares, q)}[score]
    assert best(proper) == pytest.approx(truth)
    assert best(lambda q: d.jsd_bits(shares, q)) > truth + 0.02


def test_kl_is_infinite_without_a_floor_and_finite_with_it_where_a_vote_is_missed():
    assert d.kl_bits([0.5, 0.5], [1.0, 0.0], floor=0)[0] == math.inf
    assert d.kl_bits([0.5, 0.5], [1.0, 0.0])[0] == pytest.approx(
        0.5 * math.log2(0.5 * 1.005) + 0.5 * math.log2(0.5 * 1.005 / 0.005)
    )


def test_the_floor_costs_a_sure_and_right_answer_what_the_docstring_says():
    sure = np.eye(K)[0]
    assert d.kl_bits(sure, sure)[0] == pytest.approx(math.log2(1 + (K - 1) * d.SHARE_FLOOR))
    assert d.kl_bits(sure, sure)[0] == pytest.approx(0.036, abs=5e-4)


@given(st.lists(st.integers(0, 12), min_size=K, max_size=K).filter(any))
def test_votes_become_their_shares(votes):
    assert d.normalize_votes(votes)[0].tolist() == pytest.approx([v / sum(votes) for v in votes])


@given(distribution(), st.floats(0, 1))
def test_smoothing_keeps_a_distribution_and_follows_the_emo_superb_formula(p, epsilon):
    smoothed = d.smooth(p, epsilon)[0]
    assert smoothed.sum() == pytest.approx(1)
    assert smoothed.tolist() == pytest.approx([s * (1 - epsilon) + (1 - s) * epsilon / (K - 1) for s in p])


def test_smoothing_a_sure_row_by_005_leaves_095():
    assert d.smooth(np.eye(K)[2], 0.05)[0].tolist() == pytest.approx([0.01, 0.01, 0.95, 0.01, 0.01, 0.01])


@given(distribution())
def test_floored_shares_are_a_distribution_in_the_same_order(q):
    floored = d.floor_shares(q)[0]
    assert floored.sum() == pytest.approx(1)
    assert floored.min() >= d.SHARE_FLOOR / (1 + (K - 1) * d.SHARE_FLOOR) - 1e-12
    assert all(floored[i] >= floored[j] for i in range(K) for j in range(K) if q[i] >= q[j])


@given(st.lists(st.floats(-20, 20), min_size=K, max_size=K), st.floats(0.2, 10))
def test_tempering_probabilities_equals_dividing_their_logits(logits, temperature):
    # Shares under the 1e-12 floor of `temper` are raised, so the logits stay within what the floor leaves alone.
    logits = np.clip(logits, -10, 10)
    np.testing.assert_allclose(
        d.temper(softmax(logits), temperature)[0], softmax(logits / temperature), atol=1e-6, rtol=1e-6
    )


def test_tempering_flattens_above_one_sharpens_below_and_leaves_one_alone():
    p = random_rows()
    np.testing.assert_allclose(d.temper(p, 1.0), p, atol=1e-10)
    unsure = d.entropy_bits(p) > 0.1
    assert (d.entropy_bits(d.temper(p, 2.0)) >= d.entropy_bits(p) - 1e-9)[unsure].all()
    assert (d.entropy_bits(d.temper(p, 0.5)) <= d.entropy_bits(p) + 1e-9)[unsure].all()
    np.testing.assert_allclose(d.temper(p, math.inf), np.full_like(p, 1 / K))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(DistributionError, match="temperature"):
        d.temper([0.5, 0.5], temperature)


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, math.nan])
def test_an_epsilon_outside_0_to_1_is_refused(epsilon):
    with pytest.raises(DistributionError, match="epsilon"):
        d.smooth([0.5, 0.5], epsilon)


def test_sure_rows_have_zero_entropy_without_a_minus_sign():
    assert str(d.entropy_bits(np.eye(K))[0]) == "0.0"


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ([0.5, 0.6], "does not sum to 1"),
        ([0.5, 0.5 + 2e-6], "does not sum to 1"),
        ([1.5, -0.5], "negative"),
        ([math.nan, 1.0], "non-finite"),
        ([math.inf, 0.0], "non-finite"),
        ([1.0], "K at least 2"),
        ([], "K at least 2"),
        ([[[0.5, 0.5]]], "shape"),
    ],
)
@pytest.mark.parametrize("name", PAIRWISE)
def test_what_is_no_distribution_is_refused_on_either_side(name, bad, problem):
    for pair in ((bad, [0.5, 0.5]), ([0.5, 0.5], bad)):
        with pytest.raises(DistributionError, match=problem):
            getattr(d, name)(*pair)


def test_the_error_names_the_argument_and_the_first_bad_row():
    with pytest.raises(DistributionError) as caught:
        d.jsd_bits([[0.5, 0.5]] * 3, [[0.5, 0.5], [0.9, 0.2], [2.0, 2.0]])
    assert (caught.value.row, caught.value.field) == ("1", "q")
    assert "[0.9, 0.2]" in str(caught.value)


@pytest.mark.parametrize("votes", [[0, 0, 0], [1, -1, 3], [math.nan, 1, 1], [math.inf, 1, 1], [3], [[[1, 2]]]])
def test_what_are_no_votes_is_refused(votes):
    with pytest.raises(DistributionError, match="votes"):
        d.normalize_votes(votes)
    with pytest.raises(DistributionError):
        d.nll_bits(votes, [0.2, 0.3, 0.5])


@pytest.mark.parametrize("name", [*PAIRWISE, "nll_bits"])
def test_rows_or_emotions_that_do_not_match_are_refused(name):
    score, half, third = getattr(d, name), [0.5, 0.5], [0.2, 0.3, 0.5]
    for pair in (([half] * 2, [half] * 3), ([half] * 2, [third] * 2)):
        with pytest.raises(DistributionError, match="do not match"):
            score(*pair)


@pytest.mark.parametrize("name", [*PAIRWISE, "nll_bits"])
def test_one_row_is_compared_with_every_row(name):
    many, one, score = random_rows(5), random_rows(1, seed=9), getattr(d, name)
    np.testing.assert_allclose(score(many, one), score(many, np.repeat(one, 5, axis=0)))
    assert score(many, one).shape == (5,)


def test_inputs_are_left_as_they_were():
    p, q = random_rows(seed=5), random_rows(seed=6)
    before = p.copy(), q.copy()
    for name in (*PAIRWISE, "nll_bits"):
        getattr(d, name)(p, q)
    d.temper(p, 2.0), d.smooth(p, 0.05), d.floor_shares(p)
    np.testing.assert_array_equal((p, q), before)


def test_float32_softmax_rows_count_as_distributions():
    logits = np.random.default_rng(0).normal(size=(500, K)).astype(np.float32)
    rows = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert rows.dtype == np.float32
    assert d.jsd_bits(rows, rows).max() == 0


def test_examples_in_the_docstrings_are_true():
    result = doctest.testmod(d)
    assert result.attempted > 0
    assert result.failed == 0


def test_importing_the_module_does_not_import_torch():
    code = "import sys, reasoning.distributions; print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# Figures of the field on all 7,442 clips of CREMA-D, voice-only votes: jsd_bits, BC, R2, TVD, Brier.
PUBLISHED = {
    "uniform": (0.378, 0.657, 0.0, 0.566, 0.358),
    "corpus prior": (0.290, 0.738, 0.470, 0.458, 0.266),
    "always neutral": (0.433, 0.589, 0.487, 0.561, 0.647),
    "acted intent one-hot": (0.474, 0.552, 0.409, 0.603, 0.731),
    "class mean given intent": (0.192, 0.829, 0.590, 0.351, 0.171),
    "oracle majority one-hot": (0.223, 0.789, 0.768, 0.363, 0.251),
    "class mean given majority": (0.135, 0.878, 0.808, 0.261, 0.079),
    "one rater against the rest": (0.403, 0.619, 0.505, 0.532, 0.595),
}


@pytest.fixture(scope="module")
def crema_d(shared_crema_d: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voice-only votes (7442, 6) and the intended emotion (7442,), straight from the official table."""
    with open(shared_crema_d / "processedResults" / "tabulatedVotes.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[""].startswith("1")]
    votes = np.array([[int(row[letter]) for letter in "ADFHNS"] for row in rows])
    intents = ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"]
    return votes, np.array([intents.index(row["fileName"].split("_")[2]) for row in rows])


def predictions(name: str, votes: np.ndarray, intent: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(truth, prediction, weight of each row) of the named predictor."""
    p, even = d.normalize_votes(votes), np.ones(len(votes))
    majority = votes.argmax(axis=1)  # ties to the earlier emotion
    if name == "one rater against the rest":
        clip, emotion = np.nonzero(votes)  # every rater of one clip weighs the same, and so does every clip
        weight = votes[clip, emotion] / votes.sum(axis=1)[clip]
        return d.normalize_votes(votes[clip] - np.eye(K, dtype=int)[emotion]), np.eye(K)[emotion], weight

    def class_means(label: np.ndarray) -> np.ndarray:
        return np.stack([p[label == k].mean(axis=0) for k in range(K)])[label]

    predicted = {
        "uniform": lambda: np.full_like(p, 1 / K),
        "corpus prior": lambda: np.tile(p.mean(axis=0), (len(p), 1)),
        "always neutral": lambda: np.tile(np.eye(K)[4], (len(p), 1)),
        "acted intent one-hot": lambda: np.eye(K)[intent],
        "class mean given intent": lambda: class_means(intent),
        "oracle majority one-hot": lambda: np.eye(K)[majority],
        "class mean given majority": lambda: class_means(majority),
    }[name]()
    return p, predicted, even


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_on_the_official_votes_are_reproduced(name, crema_d):
    p, q, weight = predictions(name, *crema_d)
    scores = (d.jsd_bits, d.bhattacharyya, d.r2_aer_llm, d.tvd, d.brier)
    found = [float(np.average(score(p, q), weights=weight)) for score in scores]
    # The published rater was drawn once per clip; this is the mean over all of them, so it may differ by the draw.
    allowed = 0.007 if name == "one rater against the rest" else 0.0015
    assert found == pytest.approx(PUBLISHED[name], abs=allowed)


def test_published_facts_about_the_official_votes_hold(crema_d):
    votes, intent = crema_d
    assert len(votes) == 7442
    assert (votes.sum(axis=1).min(), votes.sum(axis=1).max()) == (4, 12)
    assert votes.sum(axis=1).mean() == pytest.approx(9.2, abs=0.05)
    p = d.normalize_votes(votes)
    assert (d.entropy_bits(p) == 0).mean() == pytest.approx(0.05, abs=0.005)
    assert p[np.arange(len(p)), intent].mean() == pytest.approx(0.397, abs=0.0015)
