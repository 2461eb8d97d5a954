"""The linear soft-label probe: what a frozen encoder tells about the votes without any language model.

Multinomial logistic regression on the mean and the standard deviation over time of a clip's features, fitted to vote
distributions. It is the baseline that says how much of a model's score its encoder alone explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from threadpoolctl import threadpool_limits

from reasoning.distributions import nll_bits, normalize_votes
from reasoning.errors import EvaluationError

Array = NDArray[np.float64]

PENALTIES = tuple(float(p) for p in 10.0 ** np.arange(-3, 1.1, 0.5))


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe. weights_DK and bias_K act on features standardised with the training rows' mean_D and scale_D."""

    weights_DK: Array
    bias_K: Array
    mean_D: Array
    scale_D: Array
    penalty: float

    def predict(self, features_ND: ArrayLike) -> Array:
        """The predicted vote distribution of each row, shape (N, K); rows sum to 1."""
        standard = (np.asarray(features_ND, dtype=np.float64) - self.mean_D) / self.scale_D
        return softmax(standard @ self.weights_DK + self.bias_K, axis=1)


def pool(features: Sequence[ArrayLike]) -> Array:
    """Mean and standard deviation over time of each clip's features, shape (N, 2d).

    features: one (tokens, d) array a clip, what the audio tower returned. Raises EvaluationError on an empty one.
    """
    pooled = []
    for row, clip in enumerate(features):
        frames = np.asarray(clip, dtype=np.float64)
        if frames.ndim != 2 or not len(frames):
            raise EvaluationError(f"has shape {frames.shape}, expected (tokens, d)", row=str(row), field="features")
        pooled.append(np.concatenate([frames.mean(axis=0), frames.std(axis=0)]))
    return np.stack(pooled)


def fit_probe(features_ND: ArrayLike, votes_NK: ArrayLike, penalty: float) -> LinearProbe:
    """The probe that minimises the mean cross-entropy (nats) to the vote shares + penalty / 2 * ||weights||^2.

    Every clip counts the same, however many votes it has; the bias is not penalised. The problem is convex and starts
    from zero: the result depends on the data alone. Raises EvaluationError when the solver does not converge.
    """
    features, shares = np.asarray(features_ND, dtype=np.float64), normalize_votes(votes_NK)
    if features.ndim != 2 or len(features) != len(shares):
        raise EvaluationError(f"has shape {features.shape}, expected ({len(shares)}, D)", field="features")
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale == 0] = 1.0  # a constant feature becomes 0 and gets no weight
    standard = (features - mean) / scale
    clips, kinds = shares.shape
    width = standard.shape[1]

    def loss(flat: Array) -> tuple[float, Array]:
        weights, bias = flat[:-kinds].reshape(width, kinds), flat[-kinds:]
        logp = log_softmax(standard @ weights + bias, axis=1)
        error = (np.exp(logp) - shares) / clips
        value = -np.sum(shares * logp) / clips + penalty / 2 * np.sum(weights**2)
        return value, np.concatenate([(standard.T @ error + penalty * weights).ravel(), error.sum(axis=0)])

    start = np.zeros((width + 1) * kinds)
    # Small products: beside torch's threads, BLAS threads that wait in a spin cost minutes where one takes a second.
    options = {"maxiter": 2000, "gtol": 1e-7, "ftol": 1e-12}
    with threadpool_limits(1):
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    if not found.success:
        raise EvaluationError(f"the probe's solver stopped early: {found.message}", field=f"penalty {penalty}")
    return LinearProbe(found.x[:-kinds].reshape(width, kinds), found.x[-kinds:], mean, scale, penalty)


def choose_probe(
    features_train: ArrayLike,
    votes_train: ArrayLike,
    features_dev: ArrayLike,
    votes_dev: ArrayLike,
    penalties: Sequence[float] = PENALTIES,
) -> LinearProbe:
    """The probe fitted on train whose penalty gives the lowest nll_bits on dev: a proper score, as jsd_bits is not."""
    probes = [fit_probe(features_train, votes_train, penalty) for penalty in penalties]
    return min(probes, key=lambda probe: float(nll_bits(votes_dev, probe.predict(features_dev)).mean()))


def linear_probe(
    features_train: ArrayLike,
    votes_train: ArrayLike,
    features_dev: ArrayLike,
    votes_dev: ArrayLike,
    features_test: ArrayLike,
) -> Array:
    """Predicted vote distributions of the test rows, shape (N, K): fitted on train, penalty chosen on dev.

    features_*: (N, D) from pool(); votes_*: (N, K) counts. The test votes are never seen.
    """
    return choose_probe(features_train, votes_train, features_dev, votes_dev).predict(features_test)
