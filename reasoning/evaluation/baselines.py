"""What a system must beat without hearing anything, and the temperature that takes mere sharpening out of a comparison.

Fitted on train speakers, chosen on dev speakers. Arrays are (N, K) as everywhere; votes are counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import softmax

from reasoning.clips import Clip
from reasoning.distributions import jsd_bits, nll_bits, normalize_votes, temper
from reasoning.errors import EvaluationError

Array = NDArray[np.float64]

SHRINKAGES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, float("inf"))
"""Pseudo-clips of the prior that are added to each sentence's clips; infinity is the prior itself."""

TEMPERATURE_RANGE = (0.05, 20.0)


def uniform(n_emotions: int) -> Array:
    """1/K for every emotion, shape (K,)."""
    return np.full(n_emotions, 1 / n_emotions)


def training_prior(train_votes_NK: ArrayLike) -> Array:
    """Mean over training clips of the vote shares, shape (K,): every clip weighs the same, however many voted."""
    return normalize_votes(train_votes_NK).mean(axis=0)


def jsd_constant(train_votes_NK: ArrayLike) -> Array:
    """The constant (K,) with the lowest mean jsd_bits on the training clips: sharper than the prior, and no better.

    Beating the prior in jsd_bits while losing to this constant means only that the guess was sharper. Jensen-Shannon
    divergence is convex in each argument (Lin 1991), so the minimum is global; found by L-BFGS over softmax logits.
    """
    p_NK = normalize_votes(train_votes_NK)
    start = np.log(np.maximum(p_NK.mean(axis=0), 1e-6))
    found = minimize(lambda logits: jsd_bits(p_NK, softmax(logits)).mean(), start, method="L-BFGS-B")
    return softmax(found.x)


@dataclass(frozen=True)
class SentenceMeans:
    """Predicts from the words alone: each sentence's mean vote shares on train, shrunk towards the prior.

    q = (sum of the sentence's shares + shrinkage * prior) / (its clips + shrinkage); an unseen sentence gets the prior.
    """

    prior: Array
    sums: dict[str, Array]
    counts: dict[str, int]
    shrinkage: float

    def predict(self, transcripts: Sequence[str | None]) -> Array:
        """A distribution for each transcript, shape (N, K)."""
        return np.array([self._one(text) for text in transcripts])

    def _one(self, text: str | None) -> Array:
        if text is None or text not in self.sums or np.isinf(self.shrinkage):
            return self.prior
        return (self.sums[text] + self.shrinkage * self.prior) / (self.counts[text] + self.shrinkage)


def sentence_only(
    train_transcripts: Sequence[str | None],
    train_votes_NK: ArrayLike,
    dev_transcripts: Sequence[str | None],
    dev_votes_NK: ArrayLike,
) -> SentenceMeans:
    """The sentence predictor whose shrinkage, out of SHRINKAGES, has the lowest mean nll_bits on dev."""
    p_NK = normalize_votes(train_votes_NK)
    prior = p_NK.mean(axis=0)
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for text, shares in zip(train_transcripts, p_NK, strict=True):
        if text is not None:
            sums[text] = sums.get(text, np.zeros_like(prior)) + shares
            counts[text] = counts.get(text, 0) + 1
    candidates = [SentenceMeans(prior, sums, counts, shrinkage) for shrinkage in SHRINKAGES]
    return min(candidates, key=lambda c: float(nll_bits(dev_votes_NK, c.predict(dev_transcripts)).mean()))


@dataclass(frozen=True)
class Baselines:
    """Everything of a fold that is fitted without audio. constant_K: `jsd_constant`."""

    prior_K: Array
    constant_K: Array
    sentences: SentenceMeans

    def predict(self, transcripts: Sequence[str | None]) -> dict[str, Array]:
        """Baseline -> a distribution for each clip, shape (N, K)."""
        n = len(transcripts)
        return {
            "uniform": np.tile(uniform(len(self.prior_K)), (n, 1)),
            "training_prior": np.tile(self.prior_K, (n, 1)),
            "jsd_constant": np.tile(self.constant_K, (n, 1)),
            "sentence_only": self.sentences.predict(transcripts),
        }

    def to_dict(self) -> dict[str, list[float] | float | str]:
        """JSON-safe: training_prior, jsd_constant and sentence_shrinkage ("inf" for the prior itself)."""
        shrinkage = self.sentences.shrinkage
        return {
            "training_prior": self.prior_K.tolist(),
            "jsd_constant": self.constant_K.tolist(),
            "sentence_shrinkage": "inf" if np.isinf(shrinkage) else shrinkage,
        }


def fit_baselines(train: Sequence[Clip], dev: Sequence[Clip]) -> Baselines:
    """The baselines of a fold. Raises EvaluationError when train or dev has no clip."""
    for name, clips in (("train", train), ("dev", dev)):
        if not clips:
            raise EvaluationError(f"no {name} clip to fit baselines on", field="fold")
    votes, dev_votes = (np.array([clip.votes for clip in clips]) for clips in (train, dev))
    sentences = sentence_only([c.transcript for c in train], votes, [c.transcript for c in dev], dev_votes)
    return Baselines(training_prior(votes), jsd_constant(votes), sentences)


def fit_temperature(dev_votes_NK: ArrayLike, dev_probs_NK: ArrayLike) -> float:
    """The temperature, within TEMPERATURE_RANGE, at which dev predictions have the lowest mean nll_bits.

    One number for a system and readout: above 1 it was too sharp, below 1 too flat; 1 where it makes no difference, as
    for uniform rows. Pass usable rows only.
    Guo et al. (2017), ICML. Raises EvaluationError without a row.
    """
    votes, probs = np.atleast_2d(dev_votes_NK), np.atleast_2d(dev_probs_NK)
    if votes.size == 0:
        raise EvaluationError("no usable dev prediction to fit a temperature on", cure="predict the dev split too")

    def loss(log_t: float) -> float:
        return float(nll_bits(votes, temper(probs, float(np.exp(log_t)))).mean())

    # Where shares are 0 the loss has several minima: the best point of a grid says which, and its neighbours bound it.
    grid = np.log(np.geomspace(*TEMPERATURE_RANGE, 61))
    best = int(np.argmin([loss(log_t) for log_t in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(loss, bounds=bounds, method="bounded")
    if loss(0.0) - found.fun < 1e-9:  # type: ignore[attr-defined]
        return 1.0
    return float(np.exp(found.x))  # type: ignore[attr-defined]
