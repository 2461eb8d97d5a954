"""Rewards on the verbalized distribution: how close Shares come to the votes.

All take each clip's votes (counts) and emotions (their names, in the order of the counts), lie in 0 to 1, higher is
better, and give an answer that cannot be read FLOOR, no more than the farthest distribution. They score with the
functions that evaluation scores with (reasoning.distributions), so the two cannot drift apart. Ceiling of all: 1, at
the votes themselves; shares of n votes that do not round to hundredths stay just below.

"Prior" is what the constant answer that says the mean of all votes earns on the voice-only votes of CREMA-D: the floor
that a policy reaches without listening. `python benchmarks/reward_floors.py` computes it; a test holds the docstrings
to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from reasoning.distributions import (
    Array,
    bhattacharyya,
    brier,
    earth_mover,
    entropy_bits,
    jsd_bits,
    normalize_votes,
    tvd,
)
from rewards.completions import readings
from rewards.valence_arousal import points

FLOOR = 0.0
"""What an answer that cannot be read earns."""


def closeness(
    completions: Sequence[Any], votes: Sequence[Sequence[int]], emotions: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """1 - jsd_bits: 0 (disjoint) to 1 (equal). Prior: 0.710.

    Gamed by sharpening: its optimum under uncertainty is sharper than the mean of the votes, so read nll_bits or brier
    beside it.
    """
    return _earned(completions, votes, emotions, lambda p, q: 1 - jsd_bits(p, q))


def tvd_closeness(
    completions: Sequence[Any], votes: Sequence[Sequence[int]], emotions: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """1 - total variation distance: the share of votes that Shares give to the right emotion. Prior: 0.542.

    Gamed by answering the median of the clips that sound alike: the minority among them can be left out at no loss.
    """
    return _earned(completions, votes, emotions, lambda p, q: 1 - tvd(p, q))


def brier_closeness(
    completions: Sequence[Any], votes: Sequence[Sequence[int]], emotions: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """1 - brier / 2. Proper: under uncertainty the mean of the votes earns most. Prior: 0.867.

    Gamed by hedging: the prior earns most of the ceiling, so little is left to win, and an emotion with one vote in ten
    can be left out for .01.
    """
    return _earned(completions, votes, emotions, lambda p, q: 1 - brier(p, q) / 2)


def bhattacharyya_closeness(
    completions: Sequence[Any], votes: Sequence[Sequence[int]], emotions: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """Bhattacharyya coefficient, sum of sqrt(p q). Prior: 0.738.

    Gamed by sharpening, like `closeness`: the optimum under uncertainty goes with the square of the mean root.
    """
    return _earned(completions, votes, emotions, bhattacharyya)


def earth_mover_closeness(
    completions: Sequence[Any], votes: Sequence[Sequence[int]], emotions: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """1 - earth mover's distance / that of the two farthest emotions, on valence and arousal. Prior: 0.786.

    A vote given to a neighbour costs little, to an opposite much. Raises RewardError for an emotion without a place in
    the plane (rewards.valence_arousal). Gamed by confusing neighbours: fear for anger costs .08 where `closeness` falls
    to 0; weigh it beside a distance that tells all emotions apart. About 10 ms a completion.
    """
    rewards = []
    for reading, counts, names in zip(readings(completions, emotions), votes, emotions, strict=True):
        places, farthest = _ground(tuple(names))
        if reading.probabilities is None:
            rewards.append(FLOOR)
        else:
            way = earth_mover(normalize_votes([counts]), [reading.probabilities], places)[0]
            rewards.append(max(0.0, float(1 - way / farthest)))
    return rewards


def entropy_match(
    completions: Sequence[Any], votes: Sequence[Sequence[int]], emotions: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """closeness x (1 - |entropy of Shares - entropy of the votes| / log2 K): as unsure as the listeners.

    Prior: 0.433. Never the second factor alone: it cannot see which emotion a share belongs to. Gamed by a
    constant of the usual ambiguity, which matches most clips' entropy without hearing any.
    """
    return _earned(completions, votes, emotions, lambda p, q: (1 - jsd_bits(p, q)) * (1 - entropy_gap(p, q)))


def entropy_gap(p_NK: Array, q_NK: Array) -> Array:
    """|entropy of p - entropy of q| / log2 K, shape (N,): 0 (equally ambiguous) to 1. Blind to permuted labels."""
    return np.abs(entropy_bits(p_NK) - entropy_bits(q_NK)) / np.log2(p_NK.shape[1])


def _earned(
    completions: Sequence[Any],
    votes: Sequence[Sequence[int]],
    emotions: Sequence[Sequence[str]],
    score: Callable[[Array, Array], Array],
) -> list[float]:
    """score(votes' shares, answered shares) of each completion, FLOOR where it cannot be read, kept within 0 to 1."""
    rewards = []
    for reading, counts in zip(readings(completions, emotions), votes, strict=True):
        if reading.probabilities is None:
            rewards.append(FLOOR)
        else:
            earned = score(normalize_votes([counts]), np.array([reading.probabilities]))[0]
            rewards.append(min(max(float(earned), 0.0), 1.0))
    return rewards


@lru_cache
def _ground(names: tuple[str, ...]) -> tuple[Array, float]:
    """Each emotion's place, (K, 2), and the distance of the two farthest."""
    places = np.array(points(names))
    return places, float(np.linalg.norm(places[:, None] - places[None], axis=-1).max())
