"""The pitch tracker: against tones whose F0 is known, and against Praat, which is another program."""

import numpy as np
import pytest

from reasoning.audio import read_audio
from reasoning.pitch import CEILING_HZ, FLOOR_HZ, HOP_SECONDS, track

RATE = 16_000


def voice(f0_N: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Twelve harmonics of a contour given per sample, each 6 dB an octave below the last, with white noise."""
    phase = 2 * np.pi * np.cumsum(f0_N) / RATE
    sound = sum(np.sin(k * phase) / k for k in range(1, 13) if k * f0_N.max() < RATE / 2)
    sound = sound / np.abs(sound).max() * 0.5
    return (sound + noise * np.random.default_rng(seed).standard_normal(len(f0_N))).astype(np.float32)


@pytest.mark.parametrize("hz", [75.0, 110.0, 196.0, 330.0, 480.0, 640.0])
def test_a_steady_tone_has_its_own_pitch_within_a_fiftieth_of_a_semitone(hz):
    contour = track(voice(np.full(RATE, hz)))
    middle = contour.f0_T[10:-10]
    assert np.abs(12 * np.log2(middle / hz)).max() < 0.02
    assert contour.periodicity_T[10:-10].min() > 0.98


def test_a_glide_is_followed_from_frame_to_frame():
    f0_N = 150.0 * 2 ** np.linspace(0, 1, RATE)
    contour = track(voice(f0_N))
    centres = (np.arange(len(contour.f0_T)) * HOP_SECONDS + 1.5 / FLOOR_HZ) * RATE
    expected = f0_N[np.minimum(centres.astype(int), RATE - 1)]
    error = 12 * np.log2(contour.f0_T / expected)
    assert np.nanmax(np.abs(error)) < 0.35
    assert np.isnan(contour.f0_T).mean() < 0.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_white_noise_has_hardly_any_pitch(seed):
    noise = np.random.default_rng(seed).normal(0, 0.1, RATE).astype(np.float32)
    assert np.mean(~np.isnan(track(noise).f0_T)) < 0.05


def test_silence_has_no_pitch():
    assert np.isnan(track(np.zeros(RATE, np.float32)).f0_T).all()


@pytest.mark.parametrize("ratio_db", [6.0, 12.0, 20.0])
def test_periodicity_is_the_share_of_power_that_is_not_noise(ratio_db):
    clean = voice(np.full(2 * RATE, 180.0))
    noise = np.random.default_rng(0).normal(0, np.sqrt(np.mean(clean**2) / 10 ** (ratio_db / 10)), len(clean))
    periodic = np.nanmedian(track((clean + noise).astype(np.float32)).periodicity_T)
    assert 10 * np.log10(periodic / (1 - periodic)) == pytest.approx(ratio_db, abs=1.0)


def test_pitch_and_voicing_agree_with_praat_on_acted_speech(shared_crema_d):
    """One clip in forty, with Praat's own search range narrowed by the same two passes."""
    parselmouth = pytest.importorskip("parselmouth", reason="needs Praat: pip install 'equivox[praat]' (GPL-3)")
    differences, voiced = [], []
    for path in sorted((shared_crema_d / "AudioWAV").glob("*.flac"))[::40]:
        samples = read_audio(path)
        ours = track(samples).f0_T
        sound = parselmouth.Sound(samples.astype(float), RATE)
        low, high = FLOOR_HZ, CEILING_HZ
        for _ in range(2):
            pitch = sound.to_pitch_ac(time_step=HOP_SECONDS, pitch_floor=low, pitch_ceiling=high)
            theirs = pitch.selected_array["frequency"]
            quartiles = np.quantile(theirs[theirs > 0], [0.25, 0.75])
            low, high = max(FLOOR_HZ, 0.75 * quartiles[0]), min(CEILING_HZ, 2.5 * quartiles[1])
        differences.append(12 * np.log2(np.nanmedian(ours) / np.median(theirs[theirs > 0])))
        voiced.append(np.mean(~np.isnan(ours)) - np.mean(theirs > 0))
    assert len(differences) > 20
    assert np.median(np.abs(differences)) < 0.3
    assert np.quantile(np.abs(differences), 0.9) < 1.5
    assert abs(np.mean(voiced)) < 0.05
