"""What can be heard in a voice, measured: nine prosodic cues of a clip, and how they compare with the same speaker's.

    sound = measure(read_audio("clip.flac"))
    cues = relative({"clip": with_rate(sound, "It's eleven o'clock.", "en"), ...}, speakers, sexes)["clip"]
    cues["pitch"].percentile, word("pitch", cues["pitch"].level)

A cue that a recording does not let one measure is a gap with a name from GAPS, never a number.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import theilslopes

from reasoning.audio import SAMPLE_RATE, SILENCE_PEAK
from reasoning.pitch import HOP_SECONDS, Array, frames, track

VERSION = "1"
"""Changes whenever `measure` would give other numbers: stored measurements of another version are made again."""


@dataclass(frozen=True)
class Spec:
    """One cue. step: the smallest difference from the reference's median, in `unit`, that may be called anything but
    usual: a speaker who hardly varies is not said to. low, high: what less and more of it is called."""

    unit: str
    step: float
    low: str
    high: str


CUES: Mapping[str, Spec] = {
    "pitch": Spec("semitones over 100 Hz, median F0", 1.0, "low", "high"),
    "pitch range": Spec("semitones from the 10th to the 90th percentile of F0", 2.0, "narrow", "wide"),
    "pitch slope": Spec("semitones a second, Theil-Sen through F0", 2.0, "falling", "rising"),
    "loudness": Spec("dBFS, mean power of speech", 1.5, "low", "high"),
    "loudness range": Spec("dB from the 10th to the 90th percentile of speech level", 2.0, "narrow", "wide"),
    "pace": Spec("syllables a second of speech, pauses taken out", 0.25, "slow", "fast"),
    "pauses": Spec("share of the time from first to last speech", 0.05, "few", "many"),
    "timbre": Spec("dB of 1 to 5 kHz over 50 Hz to 1 kHz while voiced", 1.5, "dark", "bright"),
    "voice quality": Spec("dB of harmonics over noise, median while voiced", 1.5, "breathy", "clear"),
}
"""Steps for pitch are about the size that plays a part in speech ('t Hart 1981, JASA 69(3): 1.5 to 3 semitones for
movements; 1 for a median, which is steadier), 5% of a usual pace is Quene's (2007, J. Phonetics 35(3)) just noticeable
difference of tempo; those in dB are the project's own choice. Timbre is eGeMAPS' alpha ratio with its sign turned
(Eyben et al. 2016, IEEE TAC 7(2)), a measure of spectral tilt: bright is a flat spectrum, a tense voice."""

GAPS = {
    "no_speech": "nothing in the recording stands out as speech",
    "too_short": "less than MIN_SPEECH_SECONDS of speech",
    "no_contrast": "speech is less than MIN_CONTRAST_DB over the background, so its ends and pauses cannot be told",
    "unvoiced": "less than MIN_VOICED_SECONDS have a pitch",
    "clipped": "the recording is overdriven: its level, spectrum and noise are not the voice's",
    "no_transcript": "no words to count syllables in",
    "unknown_language": "the syllable counter does not know the language",
    "unreadable": "the audio file cannot be decoded",
    "no_reference": "fewer than MIN_CLIPS comparable clips",
}
"""Every reason for which a cue has no value, or no percentile, and what it means."""

MIN_SPEECH_SECONDS, MIN_VOICED_SECONDS, MIN_PAUSE_SECONDS = 0.3, 0.15, 0.2
MIN_CONTRAST_DB = 10.0
MIN_CLIPS = 10
"""Clips of one speaker, the clip itself included, from which on it is compared with them alone."""

LEVELS = {-2: "very {low}", -1: "{low}", 0: "usual", 1: "{high}", 2: "very {high}"}
USUAL, EXTREME = 20.0, 40.0
"""Percentiles from 50 beyond which a cue is low or high, and very low or very high."""

_VOICED_ONLY = ("pitch", "pitch range", "pitch slope", "timbre", "voice quality")
_SPOILT_BY_CLIPPING = ("loudness", "loudness range", "timbre", "voice quality")
_NEEDS_CONTRAST = ("loudness range", "pace", "pauses")
_FRAME = int(0.025 * SAMPLE_RATE)


@dataclass(frozen=True)
class Measurement:
    """A recording's cues: every name in CUES is in `values` (in the cue's unit) or in `gaps` (a name from GAPS).

    speech_s: seconds of speech without pauses, what syllables are divided by.
    """

    values: Mapping[str, float]
    gaps: Mapping[str, str]
    speech_s: float = 0.0


@dataclass(frozen=True)
class Cue:
    """One cue of one clip. value: in the cue's unit. percentile: among the reference's clips, 0 to 100, ties halved.
    level: -2 (very low) to 2 (very high). reference: "speaker", "sex" or "corpus". gap: why the others are None."""

    value: float | None = None
    percentile: float | None = None
    level: int | None = None
    reference: str | None = None
    gap: str | None = None


def word(name: str, level: int) -> str:
    """The word for a level of a cue: word("pace", 2) is "very fast"."""
    return LEVELS[level].format(low=CUES[name].low, high=CUES[name].high)


# --- one recording


def measure(samples: NDArray[np.float32]) -> Measurement:
    """The cues of 16 kHz mono `samples` (full scale 1), without the pace, which needs words: see `with_rate`.

    Total: silence, noise, clipping and very short audio give gaps.
    """
    names = [name for name in CUES if name != "pace"]
    if len(samples) < _FRAME or np.abs(samples).max() < SILENCE_PEAK:
        return Measurement({}, dict.fromkeys(names, "no_speech"))
    level_T, active_T, contrast = _activity(samples)
    speech_s, paused = _speech_and_pauses(active_T)
    if speech_s < MIN_SPEECH_SECONDS:
        return Measurement({}, dict.fromkeys(names, "too_short"), speech_s)
    values = {
        "loudness": float(10 * np.log10(np.mean(10 ** (level_T[active_T] / 10)))),
        "loudness range": _spread(level_T[active_T]),
        "pauses": paused,
        **_voice(samples),
    }
    gaps = {name: "unvoiced" for name in _VOICED_ONLY if name not in values}
    if _clipped(samples):
        gaps |= dict.fromkeys(_SPOILT_BY_CLIPPING, "clipped")
    if not contrast:
        gaps |= {name: "no_contrast" for name in _NEEDS_CONTRAST if name in values and name not in gaps}
        speech_s = 0.0
    return Measurement({n: round(v, 4) for n, v in values.items() if n not in gaps}, gaps, round(speech_s, 4))


def with_rate(sound: Measurement, transcript: str | None, language: str) -> Measurement:
    """`sound` with its pace, or the gap that stands for it."""
    syllables = count_syllables(transcript, language) if transcript else None
    if not transcript or not transcript.strip():
        gap = "no_transcript"
    elif syllables is None:
        gap = "unknown_language"
    elif sound.speech_s < MIN_SPEECH_SECONDS:
        gap = sound.gaps.get("pauses", "too_short")  # what hid the pauses hid the length of speech too
    elif not syllables:
        gap = "no_transcript"
    else:
        pace = {"pace": round(syllables / sound.speech_s, 4)}
        return dataclasses.replace(sound, values={**sound.values, **pace})
    return dataclasses.replace(sound, gaps={**sound.gaps, "pace": gap})


def unreadable() -> Measurement:
    """What stands for a clip whose audio cannot be decoded."""
    return Measurement({}, dict.fromkeys(CUES, "unreadable"))


def count_syllables(text: str, language: str) -> int | None:
    """Syllables of English `text` by its dictionary pronunciation; None for another language.

    language: a BCP 47 tag; "en" and "en-GB" are English.
    """
    if language.lower().split("-")[0] != "en":
        return None
    return _count_english(text)


@cache
def _count_english(text: str) -> int:
    from hibari.g2p import VOWELS

    # hibari writes each diphthong as one letter, and ᵊ before a syllabic consonant; ɐ is the article "a".
    return sum(letter in VOWELS or letter in "ɐᵊ" for letter in _pronouncer()(text))


@cache
def _pronouncer():
    from hibari.g2p import G2P  # here: it reads two dictionaries, 3 seconds

    return G2P()


def _activity(samples: NDArray) -> tuple[Array, NDArray[np.bool_], bool]:
    """Per frame: level in dBFS and whether it is speech; and whether speech stands out from the background."""
    power_T = np.mean(frames(samples, _FRAME).astype(np.float64) ** 2, axis=1)
    level_T = 10 * np.log10(np.maximum(power_T, 1e-12))
    quiet, loud = np.percentile(level_T, [5, 95])
    contrast = bool(loud - quiet >= MIN_CONTRAST_DB)
    # Digital silence would put the cut far below any breath, so the background counts as 40 dB down at most.
    floor = max(quiet, loud - 40)
    return level_T, level_T > (floor + 0.35 * (loud - floor) if contrast else -np.inf), contrast


def _speech_and_pauses(active_T: NDArray[np.bool_]) -> tuple[float, float]:
    """Seconds of speech from first to last active frame without pauses, and the share of that stretch they take."""
    at = np.flatnonzero(active_T)
    if not len(at):
        return 0.0, 0.0
    still = (np.diff(at) - 1) * HOP_SECONDS
    pauses = float(still[still >= MIN_PAUSE_SECONDS].sum())
    span = (at[-1] - at[0] + 1) * HOP_SECONDS
    return float(span - pauses), pauses / float(span)


def _voice(samples: NDArray) -> dict[str, float]:
    """The cues of voiced frames; empty when there are too few."""
    contour = track(samples)
    voiced = np.flatnonzero(~np.isnan(contour.f0_T))
    if len(voiced) * HOP_SECONDS < MIN_VOICED_SECONDS:
        return {}
    semitones = 12 * np.log2(contour.f0_T[voiced] / 100.0)
    periodic = np.clip(contour.periodicity_T[voiced], 1e-4, 1 - 1e-4)  # 40 dB either way: beyond it is arithmetic
    return {
        "pitch": float(np.median(semitones)),
        "pitch range": _spread(semitones),
        "pitch slope": float(np.asarray(theilslopes(semitones, voiced * HOP_SECONDS))[0]),
        "timbre": _alpha_ratio(samples, voiced),
        "voice quality": float(np.median(10 * np.log10(periodic / (1 - periodic)))),
    }


def _alpha_ratio(samples: NDArray, voiced: NDArray[np.int_]) -> float:
    length = int(0.05 * SAMPLE_RATE)  # as long as the pitch tracker's, so that frame numbers agree
    padded = np.pad(samples, (0, max(0, length - len(samples))))
    spectrum = np.fft.rfft(frames(padded, length)[voiced] * np.hanning(length), 1024)
    power_F = np.mean(np.abs(spectrum) ** 2, axis=0)
    hertz = np.fft.rfftfreq(1024, 1 / SAMPLE_RATE)
    low = power_F[(hertz >= 50) & (hertz < 1000)].sum()
    high = power_F[(hertz >= 1000) & (hertz <= 5000)].sum()
    return float(10 * np.log10(max(high, 1e-20) / max(low, 1e-20)))


def _clipped(samples: NDArray) -> bool:
    """Whether the tops are cut off: runs of four samples or more at the peak, ten samples in all, of either sign.

    Voices have sharp peaks; a flat one is an overdriven converter, whatever the level it was stored at. Clipping before
    lossy coding or resampling leaves no flat top and is not found.
    """
    for signed in (samples, -samples):
        at_top = signed >= 0.999 * signed.max()
        edges = np.flatnonzero(np.diff(np.concatenate([[0], at_top.astype(np.int8), [0]])))
        runs = edges[1::2] - edges[::2]
        if signed.max() > 0 and runs[runs >= 4].sum() >= 10:
            return True
    return False


def _spread(values: Array) -> float:
    low, high = np.percentile(values, [10, 90])
    return float(high - low)


# --- compared with others


def relative(
    measured: Mapping[str, Measurement], speakers: Mapping[str, str], sexes: Mapping[str, str | None]
) -> dict[str, dict[str, Cue]]:
    """Every clip's cues, each against the clips of the same speaker; all three mappings are by clip id.

    A speaker with fewer than MIN_CLIPS measured clips is compared with all clips of the same sex, or with all where
    the sex is not known or has too few. Votes play no part.
    """
    found: dict[str, dict[str, Cue]] = {clip: {} for clip in measured}
    for name, spec in CUES.items():
        groups: dict[tuple[str, str | None], list[float]] = defaultdict(list)
        for clip, sound in measured.items():
            if name in sound.values:
                for key in _references(clip, speakers, sexes):
                    groups[key].append(sound.values[name])
        ordered = {key: np.sort(values) for key, values in groups.items()}
        for clip, sound in measured.items():
            if name not in sound.values:
                found[clip][name] = Cue(gap=sound.gaps[name])
                continue
            keys = [key for key in _references(clip, speakers, sexes) if len(ordered[key]) >= MIN_CLIPS]
            found[clip][name] = (
                _place(sound.values[name], ordered[keys[0]], keys[0][0], spec.step)
                if keys
                else Cue(sound.values[name], gap="no_reference")
            )
    return found


def _references(
    clip: str, speakers: Mapping[str, str], sexes: Mapping[str, str | None]
) -> list[tuple[str, str | None]]:
    sex = [("sex", sexes[clip])] if sexes[clip] else []
    return [("speaker", speakers[clip]), *sex, ("corpus", None)]


def _place(value: float, ordered: Array, reference: str, step: float) -> Cue:
    below, upto = np.searchsorted(ordered, value, "left"), np.searchsorted(ordered, value, "right")
    percentile = 50.0 * float(below + upto) / len(ordered)
    away = percentile - 50.0
    level = int(np.sign(away)) * (int(abs(away) > USUAL) + int(abs(away) > EXTREME))
    if abs(value - float(np.median(ordered))) < step:
        level = 0
    return Cue(value, round(percentile, 2), level, reference)
