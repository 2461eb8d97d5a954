"""Whether an answer thinks no longer than it needs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.completions import readings

FREE_WORDS, MOST_WORDS = 100, 200
"""Up to FREE_WORDS of thinking (four lines of about 25) cost nothing, from MOST_WORDS on nothing is earned."""


def brevity(completions: Sequence[Any], emotions: Sequence[Sequence[str]], **columns: Any) -> list[float]:
    """1 up to FREE_WORDS words in the think block, falling in a line to 0 at MOST_WORDS. Prior: 1.000.

    Words are what white space parts. An unreadable answer earns 0, or silence would be the shortest answer. The line
    between two lengths is the soft overlong punishment of DAPO (Yu et al. 2025, arXiv 2503.14476), on words. Ceiling 1,
    which an empty think block earns too: that is how it is gamed, so give it a small weight.
    """
    rewards = []
    for reading in readings(completions, emotions):
        words = len((reading.thinking or "").split())
        earned = (MOST_WORDS - words) / (MOST_WORDS - FREE_WORDS)
        rewards.append(0.0 if reading.problems else min(max(earned, 0.0), 1.0))
    return rewards
