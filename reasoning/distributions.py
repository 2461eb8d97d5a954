"""Distributions over emotions: from votes to probabilities, and every divergence between them.

The only owner of these formulas: rewards, training diagnostics and evaluation all call this file. Arrays are (N, K):
N clips, K emotions. Conventions are in the names: bits are base 2, nats base e.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reasoning.errors import DistributionError

Array = NDArray[np.float64]

SHARE_FLOOR = 0.005
"""Half of the last digit that a verbalized share prints: a printed 0.00 may stand for anything below it, so logarithmic
scores raise every share to at least this and renormalise, for every system alike."""

_SUM_TOLERANCE = 1e-6


def _table(table_NK: ArrayLike, name: str) -> Array:
    """table_NK as float64 with two axes; raises DistributionError unless every number is finite and at least 0."""
    table = np.atleast_2d(np.asarray(table_NK, dtype=np.float64))
    if table.ndim != 2 or table.shape[1] < 2:
        raise DistributionError(f"has shape {table.shape}, expected (N, K) with K at least 2", field=name)
    _refuse(np.any(~np.isfinite(table) | (table < 0), axis=1), table, name, "holds a negative or non-finite number")
    return table


def _refuse(bad_N: ArrayLike, table_NK: Array, name: str, why: str) -> None:
    if np.any(bad_N):
        row = int(np.argmax(bad_N))
        raise DistributionError(f"{table_NK[row].tolist()} {why}", row=str(row), field=name)


def _rows(p_NK: ArrayLike, name: str = "p") -> Array:
    """p_NK, checked: every row is a distribution."""
    p = _table(p_NK, name)
    _refuse(np.abs(p.sum(axis=1) - 1) > _SUM_TOLERANCE, p, name, "does not sum to 1")
    return p


def _pair(p_NK: ArrayLike, q_NK: ArrayLike) -> tuple[Array, Array]:
    p, q = _rows(p_NK, "p"), _rows(q_NK, "q")
    if p.shape[1] != q.shape[1] or (p.shape[0] != q.shape[0] and 1 not in (p.shape[0], q.shape[0])):
        raise DistributionError(f"shapes {p.shape} and {q.shape} do not match", field="q")
    return p, q


def _votes(votes_NK: ArrayLike) -> Array:
    """votes_NK, checked: every row holds at least one vote (or a part of one, where raters could name several)."""
    votes = _table(votes_NK, "votes")
    _refuse(votes.sum(axis=1) <= 0, votes, "votes", "holds no vote")
    return votes


def _plogp(p: Array, q: Array) -> Array:
    """Row sums of p * ln(q), with 0 * ln(0) = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(q), 0.0).sum(axis=1)


def normalize_votes(votes_NK: ArrayLike) -> Array:
    """The share of each emotion among a clip's votes, shape (N, K). Raises DistributionError on a row without any."""
    votes = _votes(votes_NK)
    return votes / votes.sum(axis=1, keepdims=True)


def smooth(p_NK: ArrayLike, epsilon: float) -> Array:
    """p(1 - epsilon) + (1 - p) epsilon / (K - 1): rows still sum to 1. EMO-SUPERB (Wu et al. 2024) uses epsilon .05."""
    if not 0 <= epsilon <= 1:
        raise DistributionError(f"is {epsilon}, expected 0 to 1", field="epsilon")
    p = _rows(p_NK)
    return p * (1 - epsilon) + (1 - p) * epsilon / (p.shape[1] - 1)


def floor_shares(q_NK: ArrayLike, floor: float = SHARE_FLOOR) -> Array:
    """q with every share raised to at least `floor`, then renormalised, shape (N, K)."""
    q = np.maximum(_rows(q_NK, "q"), floor)
    return q / q.sum(axis=1, keepdims=True)


def temper(p_NK: ArrayLike, temperature: float) -> Array:
    """p^(1/temperature), renormalised: above 1 flattens, below 1 sharpens. Zero shares are floored first."""
    if not temperature > 0:
        raise DistributionError(f"is {temperature}, expected more than 0", field="temperature")
    logs = np.log(floor_shares(p_NK, 1e-12)) / temperature
    q = np.exp(logs - logs.max(axis=1, keepdims=True))
    return q / q.sum(axis=1, keepdims=True)


def entropy_bits(p_NK: ArrayLike) -> Array:
    """Shannon entropy of each row, in bits: 0 (one emotion) to log2 K (uniform), shape (N,)."""
    p = _rows(p_NK)
    return np.maximum(0.0 - _plogp(p, p) / np.log(2), 0.0)  # 0.0 - keeps a sure row from scoring -0.0


def jsd_nats(p_NK: ArrayLike, q_NK: ArrayLike) -> Array:
    """Jensen-Shannon divergence of each row pair, in nats: 0 (equal) to ln 2 (disjoint), shape (N,). Lin (1991)."""
    p, q = _pair(p_NK, q_NK)
    # Ratios to the mean (p + q) / 2 instead of the mean itself, which a smallest-possible share would underflow to 0.
    both = np.where(p + q > 0, p + q, 1.0)
    nats = 0.5 * (_plogp(p, 2 * p / both) + _plogp(q, 2 * q / both))
    return np.clip(nats, 0.0, np.log(2))


def jsd_bits(p_NK: ArrayLike, q_NK: ArrayLike) -> Array:
    """Jensen-Shannon divergence of each row pair, in bits: 0 (equal) to 1 (disjoint), shape (N,).

    Raises DistributionError on negative or unnormalised rows. Lin (1991), IEEE Trans. Inf. Theory 37(1). This is the
    divergence, not its square root, the distance, which some papers print under the same name.

    >>> float(jsd_bits([[1, 0]], [[0, 1]])[0])
    1.0
    """
    return jsd_nats(p_NK, q_NK) / np.log(2)


def js_distance(p_NK: ArrayLike, q_NK: ArrayLike) -> Array:
    """Square root of `jsd_nats`: 0 to sqrt(ln 2) = 0.833, shape (N,). What AER-LLM (2409.18339) calls JS divergence."""
    return np.sqrt(jsd_nats(p_NK, q_NK))


def bhattacharyya(p_NK: ArrayLike, q_NK: ArrayLike) -> Array:
    """Bhattacharyya coefficient, sum of sqrt(p q): 0 (disjoint) to 1 (equal), shape (N,). Bhattacharyya (1943)."""
    p, q = _pair(p_NK, q_NK)
    return np.clip(np.sqrt(p * q).sum(axis=1), 0.0, 1.0)


def tvd(p_NK: ArrayLike, q_NK: ArrayLike) -> Array:
    """Total variation distance, half of sum |p - q|: 0 to 1, shape (N,)."""
    p, q = _pair(p_NK, q_NK)
    return 0.5 * np.abs(p - q).sum(axis=1)


def earth_mover(p_NK: ArrayLike, q_NK: ArrayLike, points_KD: ArrayLike) -> Array:
    """Earth mover's distance, the least (share moved) x (Euclidean way) that turns q into p, shape (N,).

    points_KD: where each emotion lies, so the unit is theirs; 0 (equal) to the distance of the two farthest points.
    Solved as a linear program by scipy, about 10 ms a row. Raises DistributionError where the points are not K finite
    ones. Rubner, Tomasi and Guibas (2000), Int. J. Computer Vision 40(2). The first Wasserstein distance.

    >>> float(earth_mover([[1, 0, 0]], [[0, 0.5, 0.5]], [[0, 0], [3, 4], [0, 1]])[0])
    3.0
    """
    from scipy.stats import wasserstein_distance_nd  # half a second to import, and only this function needs it

    p, q = _pair(p_NK, q_NK)
    points = np.asarray(points_KD, dtype=np.float64)
    if points.ndim != 2 or len(points) != p.shape[1] or not np.isfinite(points).all():
        raise DistributionError(f"has shape {points.shape}, expected {p.shape[1]} finite points", field="points")
    rows = zip(*np.broadcast_arrays(p, q), strict=True)
    return np.array([max(wasserstein_distance_nd(points, points, a, b), 0.0) for a, b in rows])


def kl_bits(p_NK: ArrayLike, q_NK: ArrayLike, floor: float = SHARE_FLOOR) -> Array:
    """Kullback-Leibler divergence KL(p || q) in bits, q floored by `floor_shares`: 0 upward, shape (N,).

    Finite for every q; with floor=0 it is infinite where q misses an emotion of p. The floor costs a sure and right
    q = p up to log2(1 + (K - 1) floor), 0.036 bits for 6 emotions. Kullback and Leibler (1951).
    """
    p, q = _pair(p_NK, q_NK)
    return np.maximum((_plogp(p, p) - _plogp(p, floor_shares(q, floor))) / np.log(2), 0.0)


def nll_bits(votes_NK: ArrayLike, q_NK: ArrayLike, floor: float = SHARE_FLOOR) -> Array:
    """Mean negative log2-likelihood of a clip's votes under q, in bits per vote: 0 upward, shape (N,). Proper.

    q is floored by `floor_shares`. Equals kl_bits + entropy_bits of the vote shares.
    """
    p, q = _pair(normalize_votes(votes_NK), q_NK)
    return -_plogp(p, floor_shares(q, floor)) / np.log(2)


def brier(p_NK: ArrayLike, q_NK: ArrayLike) -> Array:
    """Brier score against the vote shares, sum (p - q)^2 over emotions: 0 to 2, shape (N,). Proper. Brier (1950)."""
    p, q = _pair(p_NK, q_NK)
    return np.square(p - q).sum(axis=1)


def mse(p_NK: ArrayLike, q_NK: ArrayLike) -> Array:
    """Mean squared error over emotions, `brier` / K: 0 to 2 / K, shape (N,)."""
    p, q = _pair(p_NK, q_NK)
    return np.square(p - q).mean(axis=1)


def cosine(p_NK: ArrayLike, q_NK: ArrayLike) -> Array:
    """Cosine similarity: 0 (disjoint) to 1 (equal), shape (N,)."""
    p, q = _pair(p_NK, q_NK)
    return (p * q).sum(axis=1) / (np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1))


def r2_aer_llm(p_NK: ArrayLike, q_NK: ArrayLike) -> Array:
    """Squared Pearson correlation across emotions within a clip, as AER-LLM computes it: 0 to 1, shape (N,).

    For comparison with that paper only: an anti-correlated guess scores the same, a uniform row scores 0.
    """
    p, q = _pair(p_NK, q_NK)
    p, q = p - p.mean(axis=1, keepdims=True), q - q.mean(axis=1, keepdims=True)
    covariance = (p * q).mean(axis=1)
    return covariance**2 / (np.square(p).mean(axis=1) * np.square(q).mean(axis=1) + 1e-10)
