import numpy as np
import pytest
from scipy.optimize import minimize

from reasoning.distributions import brier, jsd_bits, nll_bits, normalize_votes, temper
from reasoning.errors import EvaluationError
from reasoning.evaluation.baselines import (
    fit_temperature,
    jsd_constant,
    sentence_only,
    training_prior,
    uniform,
)


def votes_from(alpha, n_clips: int, seed: int = 0, n_votes: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([rng.multinomial(n_votes, theta) for theta in rng.dirichlet(alpha, n_clips)])


TRAIN = votes_from([0.4, 0.2, 0.3, 0.5, 1.2, 0.6], 500)


def test_prior_weighs_every_clip_alike_however_many_voted():
    assert training_prior([[1, 0], [0, 100]]).tolist() == [0.5, 0.5]
    assert uniform(4).tolist() == [0.25] * 4


def test_jsd_constant_beats_the_prior_and_every_point_around_it_on_train_but_not_on_a_proper_score():
    p, constant, prior = normalize_votes(TRAIN), jsd_constant(TRAIN), training_prior(TRAIN)
    best = jsd_bits(p, constant).mean()
    assert constant.sum() == pytest.approx(1)
    assert best < jsd_bits(p, prior).mean()
    assert constant.max() > prior.max()
    rng = np.random.default_rng(1)
    for near in (constant + rng.normal(0, 0.01, (200, 6))).clip(1e-6):
        assert jsd_bits(p, near / near.sum()).mean() >= best - 1e-7
    assert nll_bits(TRAIN, constant).mean() > nll_bits(TRAIN, prior).mean()
    assert brier(p, constant).mean() > brier(p, prior).mean()


def test_jsd_constant_agrees_with_an_independent_search_on_the_simplex():
    p = normalize_votes(TRAIN)
    found = minimize(
        lambda q: jsd_bits(p, np.abs(q) / np.abs(q).sum()).mean(),
        np.full(6, 1 / 6),
        method="Nelder-Mead",
        options={"maxiter": 6000, "xatol": 1e-7, "fatol": 1e-12},
    )
    assert jsd_bits(p, jsd_constant(TRAIN)).mean() == pytest.approx(found.fun, abs=1e-5)


def test_sentences_that_matter_are_learned_and_an_unseen_one_gets_the_prior():
    texts = ["a", "b"] * 100
    votes = np.where(np.arange(200)[:, None] % 2 == 0, [8, 1], [1, 8])
    model = sentence_only(texts, votes, texts[:20], votes[:20])
    assert model.shrinkage == 0
    seen_a, unseen, unknown = model.predict(["a", "c", None])
    assert seen_a == pytest.approx([8 / 9, 1 / 9])
    assert unseen == pytest.approx([0.5, 0.5])
    assert unknown == pytest.approx([0.5, 0.5])


def test_sentences_that_do_not_matter_are_shrunk_to_the_prior():
    texts = [f"sentence {i % 100}" for i in range(200)]
    votes, dev = votes_from([1, 1, 1], 200), votes_from([1, 1, 1], 200, seed=1)
    model = sentence_only(texts, votes, texts, dev)
    assert model.shrinkage >= 8
    shrunk = model.predict(texts[:1])[0]
    p = normalize_votes(votes)
    by_hand = (p[0] + p[100] + model.shrinkage * p.mean(axis=0)) / (2 + model.shrinkage)
    assert shrunk == pytest.approx(p.mean(axis=0) if np.isinf(model.shrinkage) else by_hand)


@pytest.mark.parametrize("bent", [0.4, 1.0, 2.5])
def test_the_temperature_that_bent_a_calibrated_prediction_is_found_again(bent):
    rng = np.random.default_rng(2)
    truth = rng.dirichlet(np.full(6, 2.0), 400)
    votes = np.array([rng.multinomial(200, p) for p in truth])
    assert fit_temperature(votes, temper(truth, 1 / bent)) == pytest.approx(bent, rel=0.05)


def test_the_temperature_of_shares_with_zeros_is_the_best_of_all_not_of_its_neighbourhood():
    """Sure answers that are wrong now and then: one minimum where they are right, a lower one far out."""
    rng = np.random.default_rng(0)
    quarters = np.array([rng.multinomial(4, theta) for theta in rng.dirichlet(np.full(6, 0.6), 200)]) / 4
    votes = np.array([rng.multinomial(9, 0.7 * row + 0.3 / 6) for row in quarters])
    found = fit_temperature(votes, quarters)
    losses = [nll_bits(votes, temper(quarters, t)).mean() for t in np.geomspace(0.05, 20, 400)]
    assert nll_bits(votes, temper(quarters, found)).mean() <= min(losses) + 1e-6


def test_a_uniform_prediction_has_temperature_one():
    assert fit_temperature(TRAIN, np.full((500, 6), 1 / 6)) == 1.0


def test_temperature_needs_a_row():
    with pytest.raises(EvaluationError, match="no usable dev prediction"):
        fit_temperature(np.zeros((0, 6)), np.zeros((0, 6)))
