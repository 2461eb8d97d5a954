"""Prosody settings, and the settings that stand for each emotion in the studio corpus.

The prototypes are rules, not measurements: directions that reviews of vocal emotion agree on (Juslin & Laukka 2003,
Psychological Bulletin 129(5); Banse & Scherer 1996, JPSP 70(3)), with sizes chosen so that they are plain to the ear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prosody:
    """How a sentence is said, relative to the speaker's own neutral voice; the default changes nothing.

    rate: speed, ratio. pitch_st: mean F0, semitones. range: F0 excursions around the mean, ratio. slope_st: F0 change
    from the first voiced sound to the last, semitones. level_db: loudness. tilt_db: spectral slope, dB per octave (more
    is brighter, tenser; loudness stays). breath_db: level of the hiss under voiced sounds. jitter_st: frame-to-frame F0
    noise (standard deviation, semitones). tremor_st: depth of a 6 Hz F0 wobble, semitones.
    """

    rate: float = 1.0
    pitch_st: float = 0.0
    range: float = 1.0
    slope_st: float = 0.0
    level_db: float = 0.0
    tilt_db: float = 0.0
    breath_db: float = 0.0
    jitter_st: float = 0.0
    tremor_st: float = 0.0


DIMENSIONS = tuple(field.name for field in fields(Prosody))
_RATIOS = np.array([name in ("rate", "range") for name in DIMENSIONS])
_AMOUNTS = np.array([name in ("jitter_st", "tremor_st") for name in DIMENSIONS])  # never below 0

UNITS: Mapping[str, float] = {
    "rate": 0.20,  # log2: 15% faster or slower
    "pitch_st": 3.0,
    "range": 0.5,  # log2: 41% wider or narrower
    "slope_st": 3.0,
    "level_db": 5.0,
    "tilt_db": 2.5,
    "breath_db": 4.0,
    "jitter_st": 0.3,
    "tremor_st": 0.4,
}
"""How far each setting moves for a listener to find it clearly different: the yardstick of `to_units`."""
_UNITS = np.array([UNITS[name] for name in DIMENSIONS])

PROTOTYPES: Mapping[str, Prosody] = {
    "anger": Prosody(rate=1.15, pitch_st=3.0, range=1.5, slope_st=-2.0, level_db=6.0, tilt_db=3.5, breath_db=-3.0),
    "disgust": Prosody(rate=0.82, pitch_st=-2.5, range=1.35, slope_st=-4.0, level_db=1.0, tilt_db=1.5, jitter_st=0.5),
    "fear": Prosody(rate=1.3, pitch_st=6.0, range=0.75, slope_st=2.0, breath_db=4.0, jitter_st=0.25, tremor_st=0.6),
    "happy": Prosody(rate=1.08, pitch_st=4.5, range=1.75, slope_st=2.5, level_db=3.0, tilt_db=1.0),
    "neutral": Prosody(),
    "sad": Prosody(rate=0.78, pitch_st=-2.5, range=0.5, slope_st=-1.5, level_db=-6.0, tilt_db=-3.0, breath_db=4.0),
}


def to_units(prosody: Prosody) -> Array:
    """Shape (D,): the settings as distances from neutral, each in its own UNITS; ratios by their logarithm."""
    values = np.array(astuple(prosody), dtype=np.float64)
    return np.where(_RATIOS, np.log2(np.where(_RATIOS, values, 1.0)), values) / _UNITS


def from_units(z_D: ArrayLike) -> Prosody:
    """The settings whose `to_units` is `z_D`, rounded to 4 decimals; negative jitter and tremor become 0."""
    values = np.asarray(z_D, dtype=np.float64) * _UNITS
    values = np.where(_RATIOS, np.exp2(np.where(_RATIOS, values, 0.0)), values)
    values = np.where(_AMOUNTS, np.maximum(values, 0.0), values)
    return Prosody(*(round(float(value), 4) for value in values))


def prototypes_in_units(names: tuple[str, ...]) -> Array:
    """Shape (K, D): `to_units` of the prototype of every emotion in `names`."""
    return np.stack([to_units(PROTOTYPES[name]) for name in names])


def mix(shares_K: ArrayLike, names: tuple[str, ...]) -> Array:
    """Shape (D,), in units: the mean of the prototypes, weighted by the mixture `shares_K` (sums to 1)."""
    return np.asarray(shares_K, dtype=np.float64) @ prototypes_in_units(names)
