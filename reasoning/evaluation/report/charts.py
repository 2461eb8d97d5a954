"""Geometry of the report's charts: axes, positions in percent, and the points of scatter and calibration plots.

The template draws; nothing here knows HTML. Positions are percent of an axis, so that charts keep their text size on a
phone, where a scaled drawing would not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reasoning.distributions import entropy_bits, normalize_votes

MAX_POINTS = 2000
"""Points a scatter draws; more only hide each other. Above it every k-th is taken, and the page says so."""

CALIBRATION_EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Bins of a predicted share. Finer below 0.1, where most of the K shares of a clip lie."""


@dataclass(frozen=True)
class Axis:
    """A linear axis: low and high in data units, ticks inside them."""

    low: float
    high: float
    ticks: tuple[float, ...]
    digits: int

    def percent(self, value: float) -> float:
        """Where `value` lies on the axis, in percent, cut to its ends."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)

    def label(self, tick: float) -> str:
        """The tick's text, with as many digits as the step needs."""
        return f"{tick:.{self.digits}f}".replace("-", "−")


def axis(
    values: Sequence[float],
    *,
    include: Sequence[float] = (),
    within: tuple[float, float] = (-math.inf, math.inf),
    ticks: int = 4,
) -> Axis:
    """An axis over every finite value and `include`, with about `ticks` round steps (1, 2 or 5 times 10^k).

    within: the range that the quantity has. An interval of few speakers may reach beyond it; it is drawn to the end.
    """
    finite = [min(max(v, within[0]), within[1]) for v in [*values, *include] if math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if high - low < 1e-9:
        high = low + 1.0
    raw = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw - 1e-12)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    places = tuple(round(i * step, digits + 2) for i in range(first, last + 1))
    return Axis(places[0], places[-1], places, digits)


@dataclass(frozen=True)
class Scatter:
    """Entropy of the votes (x) against entropy of the prediction (y), both in bits, as an SVG path of dots.

    path: in a 0..100 square, y upward already flipped. ticks: (percent, text) up to log2 K, the end of both axes.
    shown of n points are drawn. bins: (lower, upper, n, mean vote entropy, mean predicted entropy) by vote entropy:
    the text alternative.
    """

    path: str
    ticks: tuple[tuple[float, str], ...]
    shown: int
    n: int
    bins: tuple[tuple[float, float, int, float, float], ...]


def entropy_scatter(votes_NK: ArrayLike, q_NK: ArrayLike) -> Scatter:
    """How the model's uncertainty follows the listeners'. votes_NK: counts; q_NK: rows that sum to 1."""
    x, y = entropy_bits(normalize_votes(votes_NK)), entropy_bits(q_NK)
    top = math.log2(np.asarray(q_NK).shape[1])
    step = max(1, math.ceil(len(x) / MAX_POINTS))
    dots = [f"M{100 * a / top:.1f} {100 - 100 * b / top:.1f}h0" for a, b in zip(x[::step], y[::step], strict=True)]
    bins = []
    for lower, upper in zip(np.arange(0, top, 0.5), np.arange(0.5, top + 0.5, 0.5), strict=False):
        inside = (x >= lower) & ((x < upper) | (upper >= top))
        if inside.any():
            bins.append((float(lower), min(float(upper), top), int(inside.sum()), _mean(x[inside]), _mean(y[inside])))
    ticks = tuple((100 * t / top, f"{t:g}") for t in np.arange(0, top + 1e-9, 0.5))
    return Scatter("".join(dots), ticks, len(dots), len(x), tuple(bins))


@dataclass(frozen=True)
class CalibrationBin:
    """Shares predicted between lower and upper: how many, their mean, the votes' mean, a dot's radius."""

    lower: float
    upper: float
    n: int
    predicted: float
    voted: float
    radius: float


def calibration(votes_NK: ArrayLike, q_NK: ArrayLike) -> tuple[CalibrationBin, ...]:
    """Over all clips and emotions: where a share of x was predicted, which share of the votes came? No empty bins."""
    p, q = normalize_votes(votes_NK).ravel(), np.asarray(q_NK, dtype=np.float64).ravel()
    which = np.clip(np.digitize(q, CALIBRATION_EDGES) - 1, 0, len(CALIBRATION_EDGES) - 2)
    found = []
    for b in np.unique(which):
        inside = which == b
        lower, upper = CALIBRATION_EDGES[b], CALIBRATION_EDGES[b + 1]
        n = int(inside.sum())
        radius = round(3 + 9 * math.sqrt(n / len(q)), 1)  # area follows the count, above a size that can be seen
        found.append(CalibrationBin(lower, upper, n, _mean(q[inside]), _mean(p[inside]), radius))
    return tuple(found)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())
