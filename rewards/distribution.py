"""Rewards on the verbalized distribution.

They score with the functions that evaluation scores with (reasoning.distributions, reasoning.response), so that the two
cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.emotions import EmotionSet
from reasoning.response import read_response
from rewards.completions import texts

FLOOR = 0.0
"""What an answer that cannot be read earns: no more than the farthest distribution."""


def closeness(
    completions: Sequence[Any], votes: Sequence[Sequence[int]], emotions: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """1 - jsd_bits between Shares and the votes, for each completion: 0 (disjoint or unreadable) to 1 (equal).

    votes: counts of each clip; emotions: their names, in the order of the counts. What a constant answer earns: the
    training prior about .71 on CREMA-D, uniform .62 (FIELD reference points, 1 - .29 and 1 - .38). Ceiling: 1, out of
    reach where shares of n votes do not round to hundredths. Gamed by sharpening: its optimum under uncertainty is
    sharper than the mean of the votes, so read nll_bits or brier beside it.
    """
    rewards = []
    for text, counts, names in zip(texts(completions), votes, emotions, strict=True):
        shares = read_response(text, EmotionSet(tuple(names))).probabilities
        rewards.append(FLOOR if shares is None else float(1 - jsd_bits(normalize_votes([counts]), [shares])[0]))
    return rewards
