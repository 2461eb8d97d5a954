"""The classic score as a reward: whether the most likely emotion is the majority's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reasoning.evaluation.metrics import confusion_parts
from rewards.completions import readings


def majority_accuracy(
    completions: Sequence[Any], votes: Sequence[Sequence[int]], emotions: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """1 where the highest of Shares is the emotion with most votes, else 0. Prior: 0.524.

    Evaluation's own tie rule (reasoning.evaluation.metrics.TIE_RULE): m equal highest shares that hold the majority
    earn 1 / m, and a clip whose votes are tied, which has no majority, earns 0 whatever the answer, so it teaches
    nothing. Unreadable: 0. Ceiling: the share of clips without a tie. Gamed by a sure answer: how the other votes lie
    earns nothing, so on its own it unlearns ambiguity. Meant for comparison with work on majority labels.
    """
    rewards = []
    for reading, counts in zip(readings(completions, emotions), votes, strict=True):
        failed = reading.probabilities is None
        shares = np.zeros(len(counts)) if failed else np.array(reading.probabilities)
        rewards.append(float(np.trace(confusion_parts([counts], [shares], [failed])[0, :, : len(counts)])))
    return rewards
