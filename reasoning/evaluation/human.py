"""Human reference points: what a few listeners would score, and what the noise of so few votes costs anyone.

Neither is a ceiling: a few raters are a noisy guess that a model can beat, and jsd_bits against sampled votes is lowest
for a guess sharper than the truth. They say where on a human scale a score lies.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import comb, digamma, gammaln

from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.errors import EvaluationError

Array = NDArray[np.float64]
Divergence = Callable[[ArrayLike, ArrayLike], Array]

RATERS = (1, 2, 3, 4)


def enough_votes(votes_NK: ArrayLike, k_max: int = max(RATERS)) -> NDArray[np.bool_]:
    """Clips that more than k_max raters heard, (N,): the same clips serve every k."""
    return np.asarray(votes_NK).sum(axis=1) > k_max


def raters_against_the_rest(votes_NK: ArrayLike, k: int, divergence: Divergence = jsd_bits) -> Array:
    """Expected divergence between the shares of k of a clip's raters and the shares of its other raters, (N,).

    Exact: E[d(a / k, (v - a) / (n - k))] over all ways a of drawing k of the n votes v without replacement, each with
    its hypergeometric probability prod_j C(v_j, a_j) / C(n, k). Raises EvaluationError when a clip has no more than k.
    """
    votes = _votes(votes_NK, k)
    rows_M, drawn_MK, weight_M = _draws(votes, k)
    each_M = divergence(normalize_votes(votes[rows_M] - drawn_MK), drawn_MK / k)
    return _per_clip_sums(rows_M, weight_M * each_M, len(votes))


def model_against_the_rest(
    votes_NK: ArrayLike, probs_NK: ArrayLike, k: int, divergence: Divergence = jsd_bits
) -> Array:
    """Expected divergence between a model's rows and the same remaining votes that k raters were scored on, (N,)."""
    votes, probs = _votes(votes_NK, k), np.asarray(probs_NK, dtype=np.float64)
    rows_M, drawn_MK, weight_M = _draws(votes, k)
    each_M = divergence(normalize_votes(votes[rows_M] - drawn_MK), probs[rows_M])
    return _per_clip_sums(rows_M, weight_M * each_M, len(votes))


def rater_equivalent(differences: ArrayLike, ks: tuple[int, ...] = RATERS) -> tuple[float | None, str]:
    """(k, text): how many raters score like the model, interpolated where model minus raters crosses zero.

    differences: mean divergence of the model minus that of k raters, one a k. k is None, and the text says "below 1"
    or "above 4", where the model is worse than one rater or better than all of `ks`.

    >>> rater_equivalent([-0.2, -0.1, 0.1, 0.2])
    (2.5, '2.5')
    """
    gaps = np.asarray(differences, dtype=np.float64)
    if gaps[0] > 0:
        return None, f"below {ks[0]}"
    crossings = np.flatnonzero(gaps > 0)
    if len(crossings) == 0:
        return None, f"above {ks[-1]}"
    right = int(crossings[0])
    left = right - 1
    k = ks[left] + (ks[right] - ks[left]) * -gaps[left] / (gaps[right] - gaps[left])
    return float(k), f"{k:.1f}"


def fit_dirichlet_multinomial(votes_NK: ArrayLike) -> Array:
    """Maximum-likelihood alpha (K,) of a Dirichlet-multinomial over clips' vote counts.

    log p(v | alpha) = ln G(A) - ln G(n + A) + sum_j ln G(v_j + alpha_j) - ln G(alpha_j), A = sum alpha. Minka (2000),
    Estimating a Dirichlet distribution. Found by L-BFGS over ln alpha, kept within e^-7 .. e^7.
    """
    votes = np.atleast_2d(np.asarray(votes_NK, dtype=np.float64))
    n = votes.sum(axis=1, keepdims=True)

    def loss(logs: Array) -> tuple[float, Array]:
        alpha = np.exp(logs)
        total = alpha.sum()
        fit = gammaln(total) - gammaln(n + total) + (gammaln(votes + alpha) - gammaln(alpha)).sum(axis=1, keepdims=True)
        slope = digamma(total) - digamma(n + total) + digamma(votes + alpha) - digamma(alpha)
        return -float(fit.mean()), -slope.mean(axis=0) * alpha

    start = np.log(normalize_votes(votes).mean(axis=0) + 1e-3)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(-7, 7)] * votes.shape[1])
    return np.exp(found.x)


def sampling_floor(votes_NK: ArrayLike, alpha_K: ArrayLike, draws: int = 200, seed: int = 0) -> Array:
    """Expected jsd_bits of an oracle that knows each clip's true distribution, from vote sampling alone, (N,).

    Given its votes v, a clip's true distribution is Dirichlet(alpha + v), alpha fitted on train. Each draw takes theta
    from it, then a fresh sample of the clip's n votes from theta, and scores jsd_bits(sample shares, theta); the mean
    over `draws`. Seeded.
    """
    votes = np.asarray(votes_NK, dtype=np.int64)
    rng = np.random.default_rng(seed)
    gammas = rng.standard_gamma(np.broadcast_to(votes + np.asarray(alpha_K), (draws, *votes.shape)))
    theta = gammas / gammas.sum(axis=2, keepdims=True)
    fresh = rng.multinomial(votes.sum(axis=1), theta)
    k = votes.shape[1]
    return jsd_bits(normalize_votes(fresh.reshape(-1, k)), theta.reshape(-1, k)).reshape(draws, -1).mean(axis=0)


def _per_clip_sums(rows_M: NDArray[np.int64], values_M: Array, n: int) -> Array:
    sums = np.zeros(n)
    np.add.at(sums, rows_M, values_M)
    return sums


def _votes(votes_NK: ArrayLike, k: int) -> NDArray[np.int64]:
    votes = np.atleast_2d(np.asarray(votes_NK, dtype=np.int64))
    if not enough_votes(votes, k).all():
        row = int(np.flatnonzero(~enough_votes(votes, k))[0])
        what = f"has {int(votes[row].sum())} votes, expected more than {k}"
        raise EvaluationError(what, row=str(row), field="votes", cure="keep only the clips of `enough_votes`")
    return votes


def _draws(votes: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Every way of drawing k of each clip's votes: (clip (M,), drawn counts (M, K), its probability (M,))."""
    total = np.asarray(comb(votes.sum(axis=1), k))
    found = []
    for chosen in combinations_with_replacement(range(votes.shape[1]), k):
        drawn = np.bincount(chosen, minlength=votes.shape[1])
        rows = np.flatnonzero((votes >= drawn).all(axis=1))
        weight = np.asarray(comb(votes[rows], drawn)).prod(axis=1) / total[rows]
        found.append((rows, np.tile(drawn, (len(rows), 1)), weight))
    rows_M, drawn_MK, weight_M = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows_M, drawn_MK, weight_M
