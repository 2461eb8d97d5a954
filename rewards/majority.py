"""The classic score as a reward: whether the most likely emotion is the majority's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.completions import readings

_TIE = 1e-9


def majority_accuracy(
    completions: Sequence[Any], votes: Sequence[Sequence[int]], emotions: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """1 where the highest of Shares is the emotion with most votes, else 0. Prior: 0.524.

    Evaluation's tie rule (reasoning.evaluation.metrics.TIE_RULE, whose accuracy a test holds this to): m equal highest
    shares that hold the majority earn 1 / m, and a clip whose votes are tied has no majority, so it pays every answer 0
    and teaches nothing. Unreadable: 0. Ceiling: the share of clips without a tie. Gamed by a sure answer: how the other
    votes lie earns nothing, so on its own it unlearns ambiguity. Meant for comparison with work on majority labels.
    """
    rewards = []
    for reading, counts in zip(readings(completions, emotions), votes, strict=True):
        shares, most = reading.probabilities, max(counts)
        if shares is None or list(counts).count(most) > 1:
            rewards.append(0.0)
            continue
        highest = [i for i, share in enumerate(shares) if share >= max(shares) - _TIE]
        rewards.append(1 / len(highest) if list(counts).index(most) in highest else 0.0)
    return rewards
