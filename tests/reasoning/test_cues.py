"""Measured cues: against sounds whose pitch, rate, level and noise are known, and against Praat."""

import numpy as np
import pytest

from data_builders.studio import VOICES
from data_builders.synthesis.hibari import Hibari
from data_builders.synthesis.prosody import Prosody
from reasoning.audio import read_audio
from reasoning.cues import CUES, GAPS, MIN_CLIPS, Measurement, count_syllables, measure, relative, with_rate, word

RATE = 16_000
TEXT = "The store closes at nine on Sundays."


def tone(hz: float, seconds: float = 1.0, level_db: float = -20.0, low: int = 1, high: int = 12) -> np.ndarray:
    """Equally strong harmonics `low` to `high` of `hz` with random phases, at a root mean square of `level_db` dBFS."""
    rng = np.random.default_rng(0)
    time = np.arange(int(seconds * RATE)) / RATE
    sound = sum(np.sin(2 * np.pi * k * hz * time + rng.uniform(0, 2 * np.pi)) for k in range(low, high + 1))
    return (sound * 10 ** (level_db / 20) / np.sqrt(np.mean(sound**2))).astype(np.float32)


def between_silence(*parts: np.ndarray, silence: float = 0.5, gap: float = 0.0) -> np.ndarray:
    """The parts, `gap` seconds apart, with faint noise around and between them."""
    pieces = [np.zeros(int(silence * RATE))]
    for part in parts:
        pieces += [part, np.zeros(int(gap * RATE))]
    sound = np.concatenate([*pieces, np.zeros(int(silence * RATE))])
    return (sound + np.random.default_rng(1).normal(0, 1e-4, len(sound))).astype(np.float32)


@pytest.fixture(scope="module")
def say():
    engine = Hibari()
    return lambda seed=0, **settings: engine.say(TEXT, VOICES[0], Prosody(**settings), seed)


def test_every_cue_is_a_value_or_a_named_gap():
    rng = np.random.default_rng(0)
    sounds = {
        "voice": between_silence(tone(120)),
        "silence": np.zeros(RATE, np.float32),
        "short": tone(120, 0.11),
        "one sample": np.ones(1, np.float32),
        "noise": rng.normal(0, 0.1, RATE).astype(np.float32),
        "square": np.sign(tone(120)).astype(np.float32),
    }
    for name, samples in sounds.items():
        sound = with_rate(measure(samples), TEXT, "en")
        assert set(sound.values) | set(sound.gaps) == set(CUES), name
        assert not set(sound.values) & set(sound.gaps), name
        assert set(sound.gaps.values()) <= set(GAPS), name
        assert np.isfinite(list(sound.values.values())).all(), name


@pytest.mark.parametrize("hz", [90.0, 220.0, 400.0])
def test_pitch_of_a_known_tone_is_its_semitones(hz):
    values = measure(between_silence(tone(hz))).values
    assert values["pitch"] == pytest.approx(12 * np.log2(hz / 100), abs=0.05)
    assert values["pitch range"] < 0.1
    assert values["pitch slope"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("per_second", [-6.0, 4.0])
def test_slope_and_range_of_a_known_glide(per_second):
    time = np.arange(2 * RATE) / RATE
    phase = 2 * np.pi * np.cumsum(180.0 * 2 ** (per_second * (time - 1) / 12)) / RATE
    glide = 0.1 * sum(np.sin(k * phase) / k for k in range(1, 10))
    values = measure(between_silence(glide.astype(np.float32))).values
    assert values["pitch slope"] == pytest.approx(per_second, abs=0.1)
    assert values["pitch range"] == pytest.approx(0.8 * 2 * abs(per_second), rel=0.05)  # the middle 80% of two seconds


@pytest.mark.parametrize("level_db", [-40.0, -25.0, -12.0])
def test_loudness_is_the_level_of_the_speech_and_not_of_the_silence_around_it(level_db):
    for silence in (0.3, 2.0):
        values = measure(between_silence(tone(150, level_db=level_db), silence=silence)).values
        assert values["loudness"] == pytest.approx(level_db, abs=0.5)


def test_loudness_range_of_two_levels_is_their_distance():
    values = measure(between_silence(tone(150, level_db=-30.0), tone(150, level_db=-18.0))).values
    assert values["loudness range"] == pytest.approx(12.0, abs=0.5)


def test_timbre_is_the_power_above_one_kilohertz_over_the_power_below():
    values = measure(between_silence(tone(150, low=1, high=24))).values  # 6 of 24 equal harmonics lie below 1 kHz
    assert values["timbre"] == pytest.approx(10 * np.log10(18 / 6), abs=0.2)


@pytest.mark.parametrize("ratio_db", [5.0, 15.0])
def test_voice_quality_is_the_ratio_of_harmonics_to_noise(ratio_db):
    clean = tone(180, 2.0)
    noise = np.random.default_rng(0).normal(0, 0.1 * 10 ** (-ratio_db / 20), len(clean))
    values = measure(between_silence((clean + noise).astype(np.float32))).values
    assert values["voice quality"] == pytest.approx(ratio_db, abs=1.0)


@pytest.mark.parametrize(("gap", "share"), [(0.1, 0.0), (0.5, 0.2)])
def test_pauses_are_stretches_of_a_fifth_of_a_second_or_more(gap, share):
    sound = measure(between_silence(tone(150), tone(150), gap=gap))
    assert sound.values["pauses"] == pytest.approx(share, abs=0.02)
    assert sound.speech_s == pytest.approx(2.0 if share else 2.1, abs=0.06)
    assert with_rate(sound, TEXT, "en").values["pace"] == pytest.approx(9 / sound.speech_s, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "syllables"),
    [
        ("It's eleven o'clock.", 6),
        ("I think I have a doctor's appointment.", 10),
        ("We'll stop in a couple of minutes.", 9),
        ("The airplane is almost full.", 7),
        (TEXT, 9),
        ("25", 3),
        ("?", 0),
    ],
)
def test_syllables_of_english_are_those_of_its_pronunciation(text, syllables):
    assert count_syllables(text, "en") == syllables
    assert count_syllables(text, "de") is None


def test_pace_without_words_or_language_is_a_stated_gap():
    sound = measure(between_silence(tone(150)))
    assert with_rate(sound, None, "en").gaps["pace"] == "no_transcript"
    assert with_rate(sound, " ?! ", "en").gaps["pace"] == "no_transcript"
    assert with_rate(sound, "Guten Tag", "de").gaps["pace"] == "unknown_language"


def test_bad_audio_is_named_for_what_it_is():
    assert set(measure(np.zeros(RATE, np.float32)).gaps.values()) == {"no_speech"}
    assert set(measure(tone(150, 0.12)).gaps.values()) == {"too_short"}
    noise = np.concatenate([np.zeros(RATE // 2), np.random.default_rng(0).normal(0, 0.1, RATE), np.zeros(RATE // 2)])
    assert measure(noise.astype(np.float32)).gaps == dict.fromkeys(
        ("pitch", "pitch range", "pitch slope", "timbre", "voice quality"), "unvoiced"
    )
    steady = measure(tone(150))
    assert steady.gaps == dict.fromkeys(("loudness range", "pauses"), "no_contrast")
    assert with_rate(steady, TEXT, "en").gaps["pace"] == "no_contrast"


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_overdriven_audio_keeps_its_pitch_and_loses_its_level_and_spectrum(say, scale):
    clean = say()
    driven = (np.clip(clean * 4 / np.abs(clean).max(), -1, 1) * scale).astype(np.float32)
    assert "clipped" not in measure(clean).gaps.values()
    sound = measure(driven)
    assert {name for name, gap in sound.gaps.items() if gap == "clipped"} == {
        "loudness", "loudness range", "timbre", "voice quality",
    }  # fmt: skip
    assert sound.values["pitch"] == pytest.approx(measure(clean).values["pitch"], abs=0.5)


@pytest.mark.parametrize(
    ("cue", "less", "more", "difference"),
    [
        ("pitch", {"pitch_st": -3.0}, {"pitch_st": 3.0}, 6.0),
        ("pitch slope", {"slope_st": -5.0}, {"slope_st": 5.0}, None),
        ("pitch range", {"range": 0.5}, {"range": 2.0}, None),
        ("loudness", {"level_db": -6.0}, {"level_db": 4.0}, 10.0),
        ("timbre", {"tilt_db": -3.0}, {"tilt_db": 3.0}, None),
        ("voice quality", {"breath_db": 12.0}, {}, None),
    ],
)
def test_synthesized_speech_is_measured_as_it_was_said(say, cue, less, more, difference):
    low, high = (measure(say(**settings)).values[cue] for settings in (less, more))
    if difference is None:
        assert high > low + CUES[cue].step
    else:
        assert high - low == pytest.approx(difference, rel=0.15)


def test_pace_follows_the_rate_of_synthesized_speech(say):
    paces = [with_rate(measure(say(rate=rate)), TEXT, "en").values["pace"] for rate in (0.8, 1.0, 1.25)]
    assert paces[1] / paces[0] == pytest.approx(1.25, rel=0.1)
    assert paces[2] / paces[1] == pytest.approx(1.25, rel=0.1)


def test_a_clip_is_placed_among_the_same_speakers_clips():
    deep = {f"d{i}": Measurement({"pitch": float(i)}, {}) for i in range(MIN_CLIPS)}
    high = {f"h{i}": Measurement({"pitch": 40.0 + i}, {}) for i in range(MIN_CLIPS)}
    clips = {c: _only_pitch(s) for c, s in (deep | high).items()}
    found = relative(clips, {c: c[0] for c in clips}, dict.fromkeys(clips))
    levels = [found[f"h{i}"]["pitch"].level for i in range(MIN_CLIPS)]
    assert levels == [-2, -1, -1, 0, 0, 0, 0, 1, 1, 2]
    assert [found[f"d{i}"]["pitch"].level for i in range(MIN_CLIPS)] == levels
    assert found["h0"]["pitch"].percentile == pytest.approx(100 * 0.5 / MIN_CLIPS)
    assert found["h0"]["pitch"].reference == "speaker"
    assert found["h0"]["pace"].gap == "no_transcript"


def test_a_speaker_who_hardly_varies_is_usual_throughout():
    clips = {f"c{i}": _only_pitch(Measurement({"pitch": 0.1 * i}, {})) for i in range(MIN_CLIPS)}
    found = relative(clips, dict.fromkeys(clips, "s"), dict.fromkeys(clips, "female"))
    assert {cues["pitch"].level for cues in found.values()} == {0}


def test_a_speaker_with_few_clips_is_compared_with_the_same_sex_and_else_with_all():
    clips = {f"{sex}{i}": _only_pitch(Measurement({"pitch": base + i}, {})) for sex, base, count in
             (("f", 20.0, MIN_CLIPS), ("m", 0.0, MIN_CLIPS - 1)) for i in range(count)}  # fmt: skip
    speakers = {clip: clip for clip in clips}
    found = relative(clips, speakers, {c: {"f": "female", "m": "male"}[c[0]] for c in clips})
    assert found["f0"]["pitch"].reference == "sex"
    assert found["f0"]["pitch"].level == -2
    assert found["m0"]["pitch"].reference == "corpus"
    few = {clip: clips[clip] for clip in list(clips)[:3]}
    alone = relative(few, speakers, dict.fromkeys(clips))["f0"]["pitch"]
    assert (alone.level, alone.gap, alone.value) == (None, "no_reference", 20.0)


def test_percentiles_halve_ties():
    values = [0.0] * 8 + [1.0, 2.0]
    clips = {f"c{i}": _only_pitch(Measurement({"pitch": v}, {})) for i, v in enumerate(values)}
    found = relative(clips, dict.fromkeys(clips, "s"), dict.fromkeys(clips))
    naive = [100 * (sum(o < v for o in values) + 0.5 * sum(o == v for o in values)) / len(values) for v in values]
    assert [found[c]["pitch"].percentile for c in clips] == pytest.approx(naive)


def test_levels_are_words():
    assert [word("pace", level) for level in (-2, -1, 0, 1, 2)] == ["very slow", "slow", "usual", "fast", "very fast"]


def test_level_and_noise_agree_with_praat_on_acted_speech(shared_crema_d):
    parselmouth = pytest.importorskip("parselmouth", reason="needs Praat: pip install 'equivox[praat]' (GPL-3)")
    ours, theirs = [], []
    for path in sorted((shared_crema_d / "AudioWAV").glob("*.flac"))[::40]:
        samples = read_audio(path)
        values = measure(samples).values
        if "voice quality" not in values:
            continue
        sound = parselmouth.Sound(samples.astype(float), RATE)
        harmonicity = sound.to_harmonicity_ac(time_step=0.01, minimum_pitch=60, silence_threshold=0.1).values
        ours.append([values["voice quality"], values["loudness"]])
        intensity = sound.to_intensity(minimum_pitch=100, time_step=0.01).values[0]
        theirs.append([np.median(harmonicity[harmonicity > -100]), np.percentile(intensity, 90)])
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(np.array(ours).T, np.array(theirs).T, strict=True)]
    assert len(ours) > 20
    assert min(correlation) > 0.8


def _only_pitch(sound: Measurement) -> Measurement:
    return Measurement(sound.values, {name: "no_transcript" for name in CUES if name != "pitch"})
