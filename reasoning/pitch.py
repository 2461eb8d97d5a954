"""Fundamental frequency and periodicity of a voice, frame by frame, after Boersma (1993).

The method of Praat's `To Pitch (ac)`, written with numpy: the autocorrelation of each windowed frame divided by that of
its window gives candidates, and the cheapest path through them is the contour. Boersma (1993), "Accurate short-term
analysis of the fundamental frequency and the harmonics-to-noise ratio of a sampled sound", Proc. Institute of Phonetic
Sciences Amsterdam 17, 97-110. Costs are Praat's defaults; tests hold the result against Praat itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reasoning.audio import SAMPLE_RATE

Array = NDArray[np.float64]

FLOOR_HZ, CEILING_HZ = 60.0, 700.0
"""Where F0 is looked for: below a creaking male voice to above a scream of most women."""
HOP_SECONDS = 0.01

_WINDOW = int(3 / FLOOR_HZ * SAMPLE_RATE)  # three periods of the lowest pitch
_HOP = int(HOP_SECONDS * SAMPLE_RATE)
_FFT = 2048  # more than _WINDOW plus the longest lag, so that the circular correlation is the linear one
_CANDIDATES = 10
_SILENCE, _VOICING = 0.03, 0.45
_OCTAVE, _OCTAVE_JUMP, _VOICE_CHANGE = 0.01, 0.35, 0.14  # the last two are for frames 10 ms apart, as ours are


@dataclass(frozen=True)
class Contour:
    """F0 of a recording.

    f0_T: Hz, NaN where unvoiced. periodicity_T: 0 to 1, the share of a frame's energy that repeats with the period,
    NaN where unvoiced. Frames are HOP_SECONDS apart.
    """

    f0_T: Array
    periodicity_T: Array


def track(samples: NDArray[np.float32]) -> Contour:
    """The contour of 16 kHz mono `samples`, shape (T,) with one frame every HOP_SECONDS; all NaN for silence.

    Two passes: the second looks only between 3/4 of the first quartile and 5/2 of the third quartile of the first one's
    F0, which removes most octave errors (Hirst 2011, Journal of Speech Sciences 1(1); the wide ceiling is his for
    expressive speech).
    """
    if len(samples) < _WINDOW:
        samples = np.pad(samples, (0, _WINDOW - len(samples)))
    hz_TC, strength_TC, loudness_T = _candidates(samples)
    f0_T, r_T = _best_path(hz_TC, strength_TC, loudness_T)
    voiced = f0_T[~np.isnan(f0_T)]
    if len(voiced):
        low, high = np.quantile(voiced, [0.25, 0.75]) * [0.75, 2.5]
        inside = (hz_TC >= low) & (hz_TC <= high)
        f0_T, r_T = _best_path(hz_TC, np.where(inside, strength_TC, -np.inf), loudness_T)
    return Contour(f0_T, np.clip(r_T, 0.0, 1.0))


def frames(samples: NDArray, length: int) -> NDArray:
    """Shape (T, length): stretches of `samples`, HOP_SECONDS apart, a view."""
    return np.lib.stride_tricks.sliding_window_view(samples, length)[::_HOP]


def _candidates(samples: NDArray) -> tuple[Array, Array, Array]:
    """Per frame: frequencies (T, C) in Hz, their normalised autocorrelation (T, C; -inf where there is no candidate),
    and the frame's peak against the recording's (T,)."""
    centred_TN = frames(samples, _WINDOW).astype(np.float64)
    centred_TN = centred_TN - centred_TN.mean(axis=1, keepdims=True)
    peak = np.abs(samples - samples.mean()).max()
    loudness_T = np.abs(centred_TN).max(axis=1) / peak if peak > 0 else np.zeros(len(centred_TN))
    window = np.hanning(_WINDOW)
    shortest, longest = int(SAMPLE_RATE / CEILING_HZ), int(np.ceil(SAMPLE_RATE / FLOOR_HZ))
    lags = np.arange(shortest - 1, longest + 2)
    own = _autocorrelation(window[None])[0]
    r_TL = _autocorrelation(centred_TN * window)
    r_TL = r_TL[:, lags] / np.maximum(r_TL[:, :1], 1e-20) / (own[lags] / own[0])
    left, middle, right = r_TL[:, :-2], r_TL[:, 1:-1], r_TL[:, 2:]
    bend = np.minimum(left - 2 * middle + right, -1e-12)
    shift = np.clip(0.5 * (left - right) / bend, -0.5, 0.5)  # the vertex of the parabola through the three
    hz_TL = SAMPLE_RATE / (lags[1:-1] + shift)
    top_TL = middle - 0.25 * (left - right) * shift
    found = (
        (middle > left) & (middle >= right) & (top_TL > 0.5 * _VOICING) & (hz_TL >= FLOOR_HZ) & (hz_TL <= CEILING_HZ)
    )
    strength_TL = np.where(found, np.minimum(top_TL, 1 / np.maximum(top_TL, 1)), -np.inf)
    rank_TL = strength_TL + _OCTAVE * np.log2(hz_TL / CEILING_HZ)
    chosen = np.argpartition(-rank_TL, _CANDIDATES, axis=1)[:, :_CANDIDATES]
    return np.take_along_axis(hz_TL, chosen, 1), np.take_along_axis(strength_TL, chosen, 1), loudness_T


def _autocorrelation(windowed_TN: Array) -> Array:
    return np.fft.irfft(np.abs(np.fft.rfft(windowed_TN, _FFT)) ** 2, _FFT)


def _best_path(hz_TC: Array, strength_TC: Array, loudness_T: Array) -> tuple[Array, Array]:
    """F0 and strength (T,) along the path of the highest total score; NaN where it is unvoiced (Viterbi)."""
    silence = np.maximum(0, 2 - loudness_T / (_SILENCE / (1 + _VOICING)))
    score_TS = np.column_stack([_VOICING + silence, strength_TC + _OCTAVE * np.log2(hz_TC / CEILING_HZ)])
    octaves_TC = np.log2(hz_TC)
    total_S, back_TS = score_TS[0], np.zeros(score_TS.shape, dtype=int)
    cost_SS = np.full((score_TS.shape[1],) * 2, _VOICE_CHANGE)
    cost_SS[0, 0] = 0.0
    states = np.arange(score_TS.shape[1])
    for t in range(1, len(score_TS)):
        cost_SS[1:, 1:] = _OCTAVE_JUMP * np.abs(octaves_TC[t - 1][:, None] - octaves_TC[t][None])
        options_SS = total_S[:, None] - cost_SS
        back_TS[t] = options_SS.argmax(axis=0)
        total_S = options_SS[back_TS[t], states] + score_TS[t]
    path = np.zeros(len(score_TS), dtype=int)
    path[-1] = total_S.argmax()
    for t in range(len(score_TS) - 1, 0, -1):
        path[t - 1] = back_TS[t, path[t]]
    at = np.arange(len(path)), np.maximum(path - 1, 0)
    voiced = path > 0
    return np.where(voiced, hz_TC[at], np.nan), np.where(voiced, strength_TC[at], np.nan)
