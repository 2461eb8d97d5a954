"""Scores of predicted distributions against votes: per clip, and over a set of clips.

Arrays are votes_NK (counts), probs_NK (rows sum to 1) and failed_N (True where a system gave no usable answer; the row
of probs_NK is then ignored). A failed row scores as badly as a row can, so that failing never pays. Divergences come
from `reasoning.distributions`, which rewards use too; nothing here computes one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reasoning.distributions import (
    SHARE_FLOOR,
    bhattacharyya,
    brier,
    entropy_bits,
    jsd_bits,
    kl_bits,
    nll_bits,
    normalize_votes,
    tvd,
)
from reasoning.errors import EvaluationError
from reasoning.evaluation.statistics import Additive, mean_of

Array = NDArray[np.float64]

PER_CLIP = ("jsd_bits", "nll_bits", "brier", "bc", "tvd", "kl_bits", "entropy_mae_bits")
SET_LEVEL = ("entropy_correlation", "wa", "ua", "macro_f1")
METRICS = (*PER_CLIP, *SET_LEVEL)
PROPER = ("nll_bits", "brier")
"""Scores whose expectation over sampled votes is best for the true distribution; jsd_bits is not one of them."""
LOWER_IS_BETTER = frozenset({"jsd_bits", "nll_bits", "brier", "tvd", "kl_bits", "entropy_mae_bits"})

TIE_RULE = (
    "WA, UA and macro-F1 use only clips with one most-voted emotion; tied clips are left out and counted. A prediction "
    "whose highest shares are equal is shared out evenly among them"
)
UNPARSEABLE_RULE = (
    "an unusable answer scores as badly as possible: jsd_bits 1, tvd 1, brier 2, bc 0, nll_bits and kl_bits those of "
    "the smallest floored share, the wrong class, and of entropies 0 and log2 K the one farther from the votes'"
)

_TIE = 1e-9


def worst_scores(n_emotions: int, floor: float = SHARE_FLOOR) -> dict[str, float]:
    """What a failed row scores: each per-clip metric's worst value.

    For nll_bits and kl_bits this is the cost of a vote on the smallest share that `floor_shares` can leave,
    log2((1 + (K - 1) floor) / floor).

    >>> round(worst_scores(6)["nll_bits"], 2)
    7.68
    """
    bits = float(np.log2((1 + (n_emotions - 1) * floor) / floor))
    return {"jsd_bits": 1.0, "nll_bits": bits, "brier": 2.0, "bc": 0.0, "tvd": 1.0, "kl_bits": bits}


def per_clip(votes_NK: ArrayLike, probs_NK: ArrayLike, failed_N: ArrayLike | None = None) -> dict[str, Array]:
    """Every metric of PER_CLIP for each clip, shape (N,) each.

    jsd_bits 0..1, nll_bits 0.. (per vote, q floored), brier 0..2 (against the vote shares), bc 0..1 (higher is better),
    tvd 0..1, kl_bits 0.. (votes || prediction, q floored), entropy_mae_bits 0..log2 K (|predicted - vote entropy|).
    Formulas and sources are in `reasoning.distributions`. Raises EvaluationError when shapes differ and
    DistributionError on rows that are no distributions or clips without votes.

    >>> scores = per_clip([[2, 2], [0, 4]], [[0.5, 0.5], [1.0, 0.0]])
    >>> scores["jsd_bits"].tolist(), scores["brier"].tolist()
    ([0.0, 1.0], [0.0, 2.0])
    """
    votes, probs, failed = _checked(votes_NK, probs_NK, failed_N)
    p = normalize_votes(votes)
    scores = {
        "jsd_bits": jsd_bits(p, probs),
        "nll_bits": nll_bits(votes, probs),
        "brier": brier(p, probs),
        "bc": bhattacharyya(p, probs),
        "tvd": tvd(p, probs),
        "kl_bits": kl_bits(p, probs),
    }
    for name, worst in worst_scores(votes.shape[1]).items():
        scores[name] = np.where(failed, worst, scores[name])
    scores["entropy_mae_bits"] = np.abs(predicted_entropy(p, probs, failed) - entropy_bits(p))
    return scores


def predicted_entropy(p_NK: Array, probs_NK: Array, failed_N: Array) -> Array:
    """Entropy in bits of each prediction, (N,); for a failed row 0 or log2 K, whichever is farther from the votes'."""
    limit = np.log2(p_NK.shape[1])
    return np.where(
        failed_N,
        np.where(entropy_bits(p_NK) > limit / 2, 0.0, limit),
        entropy_bits(np.where(failed_N[:, None], p_NK, probs_NK)),
    )


def entropy_correlation(totals: Array) -> Array:
    """Pearson correlation of predicted and vote entropy: -1..1; NaN when either is constant over the clips.

    totals (..., 6): sums over clips of 1, x, y, x*x, y*y, x*y. Shows whether a system knows *which* clips are
    ambiguous, whatever its overall sharpness. Pearson (1895), Proc. R. Soc. 58.

    >>> float(entropy_correlation(np.array([3.0, 6.0, 12.0, 14.0, 56.0, 28.0])))
    1.0
    """
    n, x, y, xx, yy, xy = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
    var_x, var_y = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
    # Sums of squares leave about 1e-16 of rounding where the variance is zero.
    defined = (var_x > 1e-12) & (var_y > 1e-12)
    scale = np.sqrt(np.where(defined, var_x * var_y, 1.0))
    return np.where(defined, np.clip((xy / n - x * y / n**2) / scale, -1, 1), np.nan)


def weighted_accuracy(confusion: Array) -> Array:
    """WA: correct / scored clips, 0..1; NaN without an untied clip. confusion (..., K, K + 1) from `confusion_parts`.

    Called weighted because a class counts by its size; it is plain accuracy.

    >>> float(weighted_accuracy(np.array([[3.0, 1.0, 0.0], [0.0, 1.0, 1.0]])))
    0.6666666666666666
    """
    return np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1))


def unweighted_accuracy(confusion: Array) -> Array:
    """UA: mean recall over the emotions that are some clip's majority, 0..1; NaN without an untied clip.

    confusion (..., K, K + 1). Also called unweighted average recall. Schuller et al. (2009), Interspeech, p. 312.

    >>> float(unweighted_accuracy(np.array([[3.0, 1.0, 0.0], [0.0, 1.0, 1.0]])))
    0.625
    """
    support = confusion.sum(axis=-1)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _mean_over_supported(hits / np.where(support > 0, support, 1.0), support)


def macro_f1(confusion: Array) -> Array:
    """Mean over the emotions that are some clip's majority of F1 = 2 TP / (TP + FN + TP + FP), 0..1; NaN without clips.

    confusion (..., K, K + 1). Mean of F1 values, not F1 of mean precision and recall. Opitz and Burst (2019),
    arXiv 1911.03347. A failed clip is a false alarm of every wrong emotion: otherwise failing on the clips that a
    system gets wrong would raise the precision of the rest.

    >>> round(float(macro_f1(np.array([[3.0, 1.0, 0.0], [0.0, 1.0, 1.0]]))), 4)
    0.625
    """
    support = confusion.sum(axis=-1)
    failed = confusion[..., -1]
    predicted = confusion[..., :-1].sum(axis=-2) + failed.sum(axis=-1, keepdims=True) - failed
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _mean_over_supported(2 * hits / np.where(support > 0, support + predicted, 1.0), support)


def confusion_parts(votes_NK: ArrayLike, probs_NK: ArrayLike, failed_N: ArrayLike | None = None) -> Array:
    """Each clip's share in the confusion matrix, (N, K, K + 1): row = majority, column = prediction, last = failed.

    A clip whose majority is tied is all zeros. A prediction with m equal highest shares adds 1/m to each of them.
    """
    votes, probs, failed = _checked(votes_NK, probs_NK, failed_N)
    truth = votes == votes.max(axis=1, keepdims=True)
    untied = truth.sum(axis=1) == 1
    guess = (probs >= probs.max(axis=1, keepdims=True) - _TIE).astype(np.float64)
    guess = np.where(failed[:, None], 0.0, guess / guess.sum(axis=1, keepdims=True))
    guess = np.column_stack([guess, failed.astype(np.float64)])
    return (truth & untied[:, None])[:, :, None] * guess[:, None, :]


def additive_metrics(
    votes_NK: ArrayLike, probs_NK: ArrayLike, failed_N: ArrayLike | None = None
) -> dict[str, Additive]:
    """Every metric of METRICS as additive parts, for `statistics.jackknife_interval` and `difference_of`."""
    votes, probs, failed = _checked(votes_NK, probs_NK, failed_N)
    n, k = votes.shape
    metrics = {name: mean_of(values) for name, values in per_clip(votes, probs, failed).items()}
    p = normalize_votes(votes)
    x, y = predicted_entropy(p, probs, failed), entropy_bits(p)
    metrics["entropy_correlation"] = Additive(
        np.column_stack([np.ones(n), x, y, x * x, y * y, x * y]), entropy_correlation
    )
    parts = confusion_parts(votes, probs, failed).reshape(n, -1)
    for name, finish in (("wa", weighted_accuracy), ("ua", unweighted_accuracy), ("macro_f1", macro_f1)):
        metrics[name] = Additive(
            parts, lambda totals, finish=finish: finish(totals.reshape(*totals.shape[:-1], k, k + 1))
        )
    return metrics


def _mean_over_supported(values: Array, support: Array) -> Array:
    supported = support > 0
    return np.where(supported, values, 0.0).sum(axis=-1) / supported.sum(axis=-1)


def _checked(votes_NK: ArrayLike, probs_NK: ArrayLike, failed_N: ArrayLike | None) -> tuple[Array, Array, Array]:
    """The three arrays with shapes that agree; failed rows of probs become uniform so that no NaN travels on."""
    votes = np.atleast_2d(np.asarray(votes_NK, dtype=np.float64))
    probs = np.atleast_2d(np.asarray(probs_NK, dtype=np.float64))
    failed = np.zeros(len(votes), dtype=bool) if failed_N is None else np.asarray(failed_N, dtype=bool)
    if votes.shape != probs.shape or failed.shape != votes.shape[:1]:
        raise EvaluationError(
            f"votes {votes.shape}, predictions {probs.shape} and failures {failed.shape} do not match"
        )
    return votes, np.where(failed[:, None], 1 / votes.shape[1], probs), failed


def entropy_bins(edges: Sequence[float], votes_NK: ArrayLike) -> NDArray[np.int64]:
    """Which bin of vote entropy each clip falls in, (N,).

    Bin i holds edges[i] <= entropy < edges[i + 1]; the first and the last also hold what lies beyond the edges.
    """
    bins = np.digitize(entropy_bits(normalize_votes(votes_NK)), edges) - 1
    return np.clip(bins, 0, len(edges) - 2)
