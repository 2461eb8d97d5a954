"""Whether an answer keeps to the grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.completions import readings


def format(completions: Sequence[Any], emotions: Sequence[Sequence[str]], **columns: Any) -> list[float]:
    """1 for a completion that `read_response` reads without a problem, else 0. Prior: 1.000.

    A constant, well-formed answer earns the ceiling, 1: it teaches the grammar and nothing about the clip, so weigh it
    well under `closeness`, which already gives an unreadable answer its floor.
    """
    return [0.0 if reading.problems else 1.0 for reading in readings(completions, emotions)]
