"""hibari-tts 0.2.1: neural English speech whose pitch and spectrum can be changed before they become sound.

The network predicts, for every 12.5 ms frame, F0 and the spectra of a harmonic and two noise parts; a source-filter
synthesizer turns them into sound. In between, `say` moves F0, warps the spectra along frequency (another vocal tract)
and tilts them, so one neural voice becomes many speakers in many moods. Everything needed is in the wheel (Apache-2.0,
distilled from Kokoro-82M, also Apache-2.0); nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hibari
import numpy as np
import soxr
from hibari import dsp
from numpy.typing import NDArray

from data_builders.synthesis.prosody import Prosody
from reasoning.audio import SAMPLE_RATE

ENGINE = f"hibari-tts {hibari.__version__}"
FRAME_SECONDS = dsp.HOP / dsp.SR
TREMOR_HZ = 6.0
LOWEST_PITCH_HZ = 55.0
"""Under about 40 Hz the synthesizer takes a frame for unvoiced, so no voiced frame goes below this."""
NEUTRAL_DBFS = -30.0
"""Root mean square of a neutral sentence against full scale: leaves headroom for the loudest settings."""

_BINS = np.arange(dsp.N_FFT // 2 + 1)
_OCTAVES = np.log2(np.maximum(_BINS * dsp.SR / dsp.N_FFT, 200.0) / 1000.0)  # flat under 200 Hz
_DB = np.log(10) / 20  # dB -> natural log of amplitude
_SEMITONE = np.log(2) / 12


@dataclass(frozen=True)
class Voice:
    """A speaker: settings that stay the same in every clip.

    formants: ratio, below 1 for a longer vocal tract. pitch_st: mean F0 against the engine's own voice (about 195 Hz),
    semitones. rate: speed, ratio. tilt_db: spectral slope, dB per octave.
    """

    name: str
    sex: str
    formants: float
    pitch_st: float
    rate: float
    tilt_db: float


class Hibari:
    """The engine, loaded once. One thread, so that the same call gives the same samples."""

    def __init__(self) -> None:
        self._engine = hibari.Hibari(threads=1)

    def say(self, text: str, voice: Voice, prosody: Prosody, seed: int) -> NDArray[np.float32]:
        """`text` as float32 mono at 16 kHz, peak at most 0.99. seed: the noise parts, jitter included."""
        rng = np.random.default_rng(seed)
        parts = [self._sentence(phonemes, voice, prosody, rng) for phonemes in self._engine.phonemize(text)]
        sound = soxr.resample(np.concatenate(parts), dsp.SR, SAMPLE_RATE)
        # Set last, because tilt and breath change the level too: what was asked for is what is heard.
        level = 10 ** ((NEUTRAL_DBFS + prosody.level_db) / 20) / np.sqrt(np.mean(sound**2))
        return (sound * min(level, 0.99 / np.abs(sound).max())).astype(np.float32)

    def _sentence(self, phonemes: str, voice: Voice, prosody: Prosody, rng: np.random.Generator) -> NDArray[np.float32]:
        speed = np.asarray([voice.rate * prosody.rate], np.float32)
        ids = np.asarray([self._engine.ids(phonemes)], np.int64)
        outputs: list[Any] = list(self._engine.sess.run(None, {"ids": ids, "speed": speed}))
        harmonic, phase, noise, free, free_phase, f0 = (np.array(output[0]) for output in outputs)
        harmonic, noise, free = (warp(spectrum, voice.formants) for spectrum in (harmonic, noise, free))
        tilt = ((voice.tilt_db + prosody.tilt_db) * _OCTAVES * _DB)[:, None]
        # In this engine the "free" part is what hisses; under voiced sounds that is breath, elsewhere it is consonants.
        hiss = tilt + prosody.breath_db * _DB * (f0 > LOWEST_PITCH_HZ)
        return dsp.synth(
            (harmonic + tilt).astype(np.float32),
            phase,
            (noise + hiss).astype(np.float32),
            (free + hiss).astype(np.float32),
            free_phase,
            contour(f0, voice.pitch_st, prosody, rng),
            rng,
        )


def warp(log_spectrum: NDArray[np.float32], formants: float) -> NDArray:
    """The log spectrum (bins, frames) with every resonance moved to `formants` times its frequency."""
    at = np.minimum(_BINS / formants, _BINS[-1])
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, _BINS[-1])
    share = (at - low)[:, None]
    return log_spectrum[low] * (1 - share) + log_spectrum[high] * share


def contour(f0: NDArray, pitch_st: float, prosody: Prosody, rng: np.random.Generator) -> NDArray[np.float32]:
    """F0 in Hz per frame after the voice's and the sentence's settings; unvoiced frames stay as they are."""
    voiced = f0 > LOWEST_PITCH_HZ
    if not voiced.any():
        return f0.astype(np.float32)
    frames = np.arange(len(f0))
    log_f0 = np.log(np.maximum(f0, LOWEST_PITCH_HZ))
    mean = log_f0[voiced].mean()
    moved = mean + (log_f0 - mean) * prosody.range
    first, last = np.flatnonzero(voiced)[[0, -1]]
    slope = np.clip((frames - first) / max(last - first, 1), 0, 1) - 0.5  # -0.5 to 0.5 over the voiced span
    semitones = pitch_st + prosody.pitch_st + prosody.slope_st * slope
    semitones = semitones + prosody.tremor_st * np.sin(2 * np.pi * TREMOR_HZ * FRAME_SECONDS * frames)
    semitones = semitones + rng.normal(0, 1, len(f0)) * prosody.jitter_st
    return np.where(voiced, np.maximum(np.exp(moved + semitones * _SEMITONE), LOWEST_PITCH_HZ), f0).astype(np.float32)
