"""The synthesizer does what the settings ask: measured on its sound, by means that share no code with it."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from data_builders.studio import VOICES
from data_builders.synthesis.hibari import Hibari
from data_builders.synthesis.prosody import PROTOTYPES, Prosody
from reasoning.audio import SAMPLE_RATE

TEXT = "We are moving along a narrow lane near the meadow."  # nearly all voiced
PLAIN = replace(VOICES[0], formants=1.0, pitch_st=0.0, rate=1.0, tilt_db=0.0)


def pitch_hz(samples: NDArray, lowest: float = 60.0, highest: float = 480.0) -> NDArray:
    """F0 of every clearly periodic 40 ms frame, by the peak of its normalised autocorrelation."""
    size, hop = int(0.04 * SAMPLE_RATE), int(0.01 * SAMPLE_RATE)
    shortest, longest = int(SAMPLE_RATE / highest), int(SAMPLE_RATE / lowest)
    loud = 0.1 * np.abs(samples).max()
    found = []
    for start in range(0, len(samples) - size - longest, hop):
        frame = samples[start : start + size]
        if np.abs(frame).max() < loud:
            continue
        later = np.stack([samples[start + lag : start + lag + size] for lag in range(shortest, longest)])
        likeness = later @ frame / (np.linalg.norm(later, axis=1) * np.linalg.norm(frame) + 1e-9)
        best = likeness.max()
        if best > 0.8:
            # The first peak about as high as the best one: later ones are multiples of the period.
            peaks = np.flatnonzero((likeness[1:-1] >= likeness[:-2]) & (likeness[1:-1] >= likeness[2:])) + 1
            strong = [peak for peak in peaks if likeness[peak] > 0.93 * best]
            if strong:
                found.append(SAMPLE_RATE / (shortest + strong[0]))
    return np.array(found)


def semitones(samples: NDArray) -> NDArray:
    return 12 * np.log2(pitch_hz(samples) / 100)


def band_db(samples: NDArray, low: float, high: float) -> float:
    """Mean power between two frequencies, in dB."""
    power = np.abs(np.fft.rfft(samples)) ** 2 / len(samples) ** 2
    hz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    return float(10 * np.log10(power[(hz >= low) & (hz < high)].sum()))


@pytest.fixture(scope="module")
def say():
    engine = Hibari()
    return lambda prosody=None, voice=PLAIN, seed=0: engine.say(TEXT, voice, prosody or Prosody(), seed)


def test_the_pitch_estimator_finds_a_known_pitch():
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    buzz = sum(np.sin(2 * np.pi * 150 * k * t) / k for k in range(1, 10))
    assert np.median(pitch_hz(buzz)) == pytest.approx(150, rel=0.01)


def test_the_same_call_gives_the_same_samples_and_the_seed_only_the_noise(say):
    assert np.array_equal(say(), say())
    assert not np.array_equal(say(), say(seed=1))
    assert len(say()) == len(say(seed=1))


@pytest.mark.parametrize("shift", [-10.0, -3.0, 4.0])
def test_pitch_moves_by_the_semitones_asked(say, shift):
    moved = np.median(semitones(say(Prosody(pitch_st=shift)))) - np.median(semitones(say()))
    assert moved == pytest.approx(shift, abs=0.6)


def test_anger_is_asked_to_be_higher_faster_louder_and_brighter_than_sadness_and_is(say):
    anger, sad = PROTOTYPES["anger"], PROTOTYPES["sad"]
    a, s = say(anger), say(sad)
    assert np.median(semitones(a)) - np.median(semitones(s)) == pytest.approx(anger.pitch_st - sad.pitch_st, abs=1.0)
    assert np.std(semitones(a)) > 1.5 * np.std(semitones(s))
    assert len(s) / len(a) == pytest.approx(anger.rate / sad.rate, rel=0.12)
    assert band_db(a, 50, 8000) - band_db(s, 50, 8000) == pytest.approx(anger.level_db - sad.level_db, abs=0.2)
    brightness = [band_db(x, 1500, 6000) - band_db(x, 100, 800) for x in (a, s)]
    assert brightness[0] - brightness[1] > 8


def test_a_falling_sentence_falls(say):
    level, falling = semitones(say()), semitones(say(Prosody(slope_st=-8.0)))
    fall = [x[: len(x) // 3].mean() - x[-len(x) // 3 :].mean() for x in (level, falling)]
    assert fall[1] - fall[0] == pytest.approx(8 * 2 / 3, abs=1.5)  # means of the outer thirds are 2/3 apart


def test_level_is_in_decibels_and_tilt_leaves_it_alone(say):
    plain = band_db(say(), 50, 8000)
    assert band_db(say(Prosody(level_db=5.0)), 50, 8000) - plain == pytest.approx(5, abs=0.2)
    assert band_db(say(Prosody(tilt_db=4.0)), 50, 8000) - plain == pytest.approx(0, abs=0.2)


def test_breath_raises_the_noise_and_jitter_roughens_the_pitch(say):
    assert band_db(say(Prosody(breath_db=10.0)), 5000, 8000) > band_db(say(), 5000, 8000) + 3
    rough, smooth = (np.abs(np.diff(semitones(x))).mean() for x in (say(Prosody(jitter_st=1.0)), say()))
    assert rough > 1.5 * smooth


def test_a_longer_vocal_tract_lowers_the_resonances_and_leaves_the_pitch(say):
    long = say(voice=replace(PLAIN, formants=0.8))
    assert np.median(semitones(long)) == pytest.approx(np.median(semitones(say())), abs=0.3)
    assert (
        band_db(long, 2600, 8000) - band_db(long, 100, 2600)
        < band_db(say(), 2600, 8000) - band_db(say(), 100, 2600) - 2
    )


def test_no_voice_in_no_mood_clips_or_falls_silent():
    engine = Hibari()
    for voice in VOICES[::3]:
        for prosody in PROTOTYPES.values():
            samples = engine.say("The bus stops in front of the library.", voice, prosody, 0)
            assert 0.02 < np.abs(samples).max() < 0.99
            assert samples.dtype == np.float32
