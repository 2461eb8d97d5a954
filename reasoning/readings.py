"""Each sampled answer is parsed once, however many rewards, metrics and tables ask what it says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from reasoning.emotions import EmotionSet
from reasoning.response import PROBLEMS, Reading, read_response

REMEMBERED = 16_384
"""Texts whose reading is kept: more than one process samples in a rollout, so a pass over it never reads one twice."""


def read_once(text: str, names: Sequence[str]) -> Reading:
    """`read_response(text, EmotionSet(names))`, remembered. It is pure, so what an earlier step read stays true."""
    return _read(text, tuple(names))


@lru_cache(maxsize=REMEMBERED)
def _read(text: str, names: tuple[str, ...]) -> Reading:
    return read_response(text, EmotionSet(names))


RATES = ("parse_rate", *(f"problems/{name}" for name in PROBLEMS))


def rates(readings: Sequence[Reading]) -> list[float]:
    """The share of readings without a problem, then with each problem, 0 to 1, in the order of RATES.

    A reading may have several problems, so their shares can add up to more than what cannot be read.
    """
    counts = [sum(not r.problems for r in readings), *(sum(p in r.problems for r in readings) for p in PROBLEMS)]
    return [count / len(readings) for count in counts]
