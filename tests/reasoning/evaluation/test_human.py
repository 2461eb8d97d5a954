import doctest
from itertools import combinations

import numpy as np
import pytest

from reasoning.distributions import brier, jsd_bits, normalize_votes
from reasoning.errors import EvaluationError
from reasoning.evaluation import human
from reasoning.evaluation.human import (
    enough_votes,
    fit_dirichlet_multinomial,
    model_against_the_rest,
    rater_equivalent,
    raters_against_the_rest,
    sampling_floor,
)

ALPHA = np.array([0.4, 0.2, 0.3, 0.5, 1.2, 0.6])


def study(n_clips: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(true distributions, votes) of clips that 5 to 12 raters heard."""
    rng = np.random.default_rng(seed)
    theta = rng.dirichlet(ALPHA, n_clips)
    return theta, np.array([rng.multinomial(rng.integers(5, 13), t) for t in theta])


def test_doctests_of_the_module_hold():
    assert doctest.testmod(human).failed == 0


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_exact_expectation_equals_going_through_every_group_of_raters(k):
    votes, model = np.array([3, 0, 2, 1]), np.array([0.4, 0.1, 0.3, 0.2])
    raters = np.repeat(np.arange(4), votes)
    people, systems = [], []
    for group in combinations(range(len(raters)), k):
        drawn = np.bincount(raters[list(group)], minlength=4)
        rest = normalize_votes([votes - drawn])
        people.append(jsd_bits(rest, [drawn / k])[0])
        systems.append(jsd_bits(rest, [model])[0])
    assert raters_against_the_rest([votes], k)[0] == pytest.approx(np.mean(people))
    assert model_against_the_rest([votes], [model], k)[0] == pytest.approx(np.mean(systems))


def test_many_clips_at_once_equal_one_at_a_time():
    theta, votes = study(30)
    together = raters_against_the_rest(votes, 3), model_against_the_rest(votes, theta, 3)
    for i in range(30):
        assert together[0][i] == pytest.approx(raters_against_the_rest(votes[i : i + 1], 3)[0])
        assert together[1][i] == pytest.approx(model_against_the_rest(votes[i : i + 1], theta[i : i + 1], 3)[0])


def test_a_model_that_knows_as_much_as_k_raters_gets_rater_equivalent_k():
    rng = np.random.default_rng(3)
    theta, votes = study(4000, seed=3)
    votes = np.array([rng.multinomial(9, t) for t in theta])
    for k in (2, 3):
        panel = np.array([rng.multinomial(k, t) for t in theta]) / k
        gaps = [
            (model_against_the_rest(votes, panel, j) - raters_against_the_rest(votes, j)).mean() for j in (1, 2, 3, 4)
        ]
        found, _ = rater_equivalent(gaps)
        assert found == pytest.approx(k, abs=0.2)


def test_more_raters_score_better_and_equivalents_outside_their_range_are_named():
    theta, _ = study(1000, seed=4)
    rng = np.random.default_rng(0)
    # Many votes: what k raters leave behind must not shrink to noise.
    votes = np.array([rng.multinomial(60, t) for t in theta])
    scores = [raters_against_the_rest(votes, k, brier).mean() for k in (1, 2, 3, 4)]
    assert scores == sorted(scores, reverse=True)
    bad = np.eye(6)[rng.integers(0, 6, 1000)]
    gaps = [model_against_the_rest(votes, bad, k).mean() - raters_against_the_rest(votes, k).mean() for k in (1, 2)]
    assert rater_equivalent(gaps, (1, 2)) == (None, "below 1")
    good = [model_against_the_rest(votes, theta, k).mean() - raters_against_the_rest(votes, k).mean() for k in (1, 2)]
    assert rater_equivalent(good, (1, 2)) == (None, "above 2")


def test_clips_with_too_few_votes_are_named():
    assert enough_votes([[2, 2], [3, 2]]).tolist() == [False, True]
    with pytest.raises(EvaluationError, match="has 4 votes, expected more than 4"):
        raters_against_the_rest([[3, 2], [2, 2]], 4)


def test_dirichlet_multinomial_recovers_the_parameters_that_made_the_votes():
    _, votes = study(8000, seed=5)
    assert fit_dirichlet_multinomial(votes) == pytest.approx(ALPHA, rel=0.08)


def test_dirichlet_multinomial_stays_finite_without_disagreement_or_an_emotion():
    alpha = fit_dirichlet_multinomial([[9, 0, 0], [0, 9, 0]] * 20)
    assert np.isfinite(alpha).all()
    assert (alpha > 0).all()
    assert alpha[2] < alpha[0]


def test_sampling_floor_is_what_an_oracle_really_scores():
    theta, votes = study(6000, seed=6)
    truth = jsd_bits(normalize_votes(votes), theta).mean()
    floor = sampling_floor(votes, fit_dirichlet_multinomial(votes), draws=20).mean()
    assert floor == pytest.approx(truth, abs=0.003)


def test_sampling_floor_falls_with_more_votes_and_repeats_with_its_seed():
    few, many = sampling_floor([[3, 2, 0]], [1, 1, 1]), sampling_floor([[30, 20, 0]], [1, 1, 1])
    assert many[0] < few[0] / 3
    assert sampling_floor([[3, 2, 0]], [1, 1, 1], seed=7) == pytest.approx(
        sampling_floor([[3, 2, 0]], [1, 1, 1], seed=7), abs=0
    )
