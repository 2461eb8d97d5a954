"""The linear probe against scikit-learn's logistic regression, a naive loss, and the claims of its docstring."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from reasoning.distributions import nll_bits
from reasoning.errors import DistributionError, EvaluationError
from reasoning.evaluation.probe import PENALTIES, choose_probe, fit_probe, linear_probe, pool


def some_votes(clips: int = 120, width: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) of different sizes and votes (N, 4) drawn from a softmax of them; some vote counts differ."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(clips, width)) * [1, 10, 0.1, 3, 1] + 2
    logits = (features - 2) / [1, 10, 0.1, 3, 1] @ np.random.default_rng(99).normal(size=(width, 4))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return features, np.array([rng.multinomial(n, p) for n, p in zip(rng.integers(3, 12, clips), shares, strict=True)])


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_it_is_the_weighted_logistic_regression_of_scikit_learn(penalty):
    features, votes = some_votes()
    probe = fit_probe(features, votes, penalty)
    # Soft labels as weights: every clip once per class, weighted by that class's share of its votes.
    clips, kinds = votes.shape
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    weights = (votes / votes.sum(axis=1, keepdims=True)).ravel()
    reference = LogisticRegression(C=1 / (penalty * clips), tol=1e-10, max_iter=10_000)
    reference.fit(np.repeat(standard, kinds, axis=0), np.tile(np.arange(kinds), clips), sample_weight=weights)
    np.testing.assert_allclose(probe.predict(features), reference.predict_proba(standard), atol=2e-5)


def test_no_small_step_lowers_the_stated_loss():
    features, votes = some_votes()
    probe = fit_probe(features, votes, 0.1)

    def loss(weights: np.ndarray, bias: np.ndarray) -> float:
        total = 0.0
        for x, counts in zip(features, votes, strict=True):
            logits = (x - probe.mean_D) / probe.scale_D @ weights + bias
            logp = logits - np.log(np.exp(logits).sum())
            total -= float((counts / counts.sum()) @ logp)
        return total / len(features) + 0.1 / 2 * float((weights**2).sum())

    best = loss(probe.weights_DK, probe.bias_K)
    rng = np.random.default_rng(1)
    for _ in range(10):
        step, shift = 1e-3 * rng.normal(size=probe.weights_DK.shape), 1e-3 * rng.normal(size=probe.bias_K.shape)
        assert loss(probe.weights_DK + step, probe.bias_K + shift) > best


def test_twice_the_votes_in_the_same_shares_change_nothing():
    features, votes = some_votes()
    once, twice = (fit_probe(features, k * votes, 0.1).predict(features) for k in (1, 2))
    np.testing.assert_allclose(once, twice, atol=1e-9)


def test_a_huge_penalty_leaves_the_mean_of_the_vote_shares():
    features, votes = some_votes()
    prior = (votes / votes.sum(axis=1, keepdims=True)).mean(axis=0)
    predicted = fit_probe(features, votes, 1e6).predict(features)
    np.testing.assert_allclose(predicted, np.tile(prior, (len(votes), 1)), atol=1e-3)


def test_a_constant_feature_does_no_harm():
    features, votes = some_votes()
    with_constant = np.column_stack([features, np.full(len(features), 7.0)])
    expected = fit_probe(features, votes, 0.1).predict(features)
    np.testing.assert_allclose(fit_probe(with_constant, votes, 0.1).predict(with_constant), expected, atol=1e-6)


def test_the_penalty_is_the_best_of_the_list_on_dev_and_prediction_needs_no_test_votes():
    train, dev, test = some_votes(40), some_votes(200, seed=1), some_votes(50, seed=2)
    chosen = choose_probe(*train, *dev)
    losses = {p: nll_bits(dev[1], fit_probe(*train, p).predict(dev[0])).mean() for p in PENALTIES}
    assert chosen.penalty == min(losses, key=lambda p: losses[p])
    predicted = linear_probe(*train, *dev, test[0])
    np.testing.assert_allclose(predicted, chosen.predict(test[0]))
    np.testing.assert_allclose(predicted.sum(axis=1), 1)
    prior = np.tile((train[1] / train[1].sum(axis=1, keepdims=True)).mean(axis=0), (50, 1))
    assert nll_bits(test[1], predicted).mean() < nll_bits(test[1], prior).mean() - 0.2


def test_pooling_is_the_mean_then_the_deviation_over_time_of_each_clip():
    pooled = pool([np.array([[1.0, 10.0], [3.0, 10.0]]), np.array([[5.0, 6.0]])])
    assert pooled.tolist() == [[2, 10, 1, 0], [5, 6, 0, 0]]


def test_what_cannot_be_fitted_is_refused():
    features, votes = some_votes()
    with pytest.raises(EvaluationError, match=r"shape \(119, 5\), expected \(120, D\)"):
        fit_probe(features[:-1], votes, 0.1)
    with pytest.raises(DistributionError):
        fit_probe(features, np.zeros_like(votes), 0.1)
    with pytest.raises(EvaluationError, match=r"\[1\] features: has shape \(0, 3\)"):
        pool([np.ones((2, 3)), np.ones((0, 3))])
