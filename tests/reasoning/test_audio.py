"""The decoder on real files: made here in every format, broken in every way, and the official release's own."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from reasoning.audio import MIN_SECONDS, SAMPLE_RATE, probe, read_audio
from reasoning.errors import AudioError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 72924\n"


def sine(hz: float = 440.0, rate: int = SAMPLE_RATE, seconds: float = 1.0, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


def encode(samples: np.ndarray, rate: int = SAMPLE_RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def amplitude_at(hz: float, samples: np.ndarray) -> float:
    """Amplitude of the sine of `hz` in the middle half of `samples`, by projection on it."""
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(float)
    wave = np.exp(-2j * np.pi * hz * np.arange(len(middle)) / SAMPLE_RATE)
    return float(2 * abs(np.mean(middle * wave)))


# --- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "subtype", "step"),
    [("WAV", "PCM_16", 2**-15), ("WAV", "PCM_24", 2**-23), ("WAV", "FLOAT", 2**-24), ("FLAC", "PCM_16", 2**-15)],
)
def test_lossless_files_give_back_their_samples(tmp_path, format, subtype, step):
    path = tmp_path / f"clip.{format.lower()}"
    path.write_bytes(encode(sine(), format=format, subtype=subtype))
    samples = read_audio(path)
    assert (samples.dtype, samples.shape) == (np.float32, (SAMPLE_RATE,))
    assert samples.flags.c_contiguous
    np.testing.assert_allclose(samples, sine(), atol=step)


@pytest.mark.parametrize("format", ["MP3", "OGG"])
def test_lossy_files_give_back_their_tone_and_length(format):
    samples = read_audio(encode(sine(), format=format))
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    assert amplitude_at(440, samples) == pytest.approx(0.5, abs=0.02)


def test_path_string_and_bytes_of_one_file_give_the_same_samples(tmp_path):
    data = encode(sine(), rate=22_050)
    (tmp_path / "clip.wav").write_bytes(data)
    np.testing.assert_array_equal(read_audio(tmp_path / "clip.wav"), read_audio(data))
    np.testing.assert_array_equal(read_audio(str(tmp_path / "clip.wav")), read_audio(data))


def test_channels_are_averaged():
    stereo = np.stack([sine(440, amplitude=0.6), sine(1000, amplitude=0.2)], axis=1)
    samples = read_audio(encode(stereo, subtype="FLOAT"))
    np.testing.assert_allclose(samples, stereo.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_sine_of_the_same_frequency_phase_and_amplitude(rate):
    samples = read_audio(encode(sine(440, rate), rate, subtype="FLOAT"))
    assert len(samples) == SAMPLE_RATE
    middle = slice(SAMPLE_RATE // 10, -SAMPLE_RATE // 10)  # the filter rings where the sine starts and stops
    np.testing.assert_allclose(samples[middle], sine(440)[middle], atol=2e-3)


def test_resampling_removes_what_16_khz_cannot_hold_instead_of_folding_it_back():
    tone = sine(440, 48_000) + sine(11_000, 48_000, amplitude=0.4)
    samples = read_audio(encode(tone, 48_000, subtype="FLOAT"))
    assert amplitude_at(440, samples) == pytest.approx(0.5, abs=1e-3)
    assert amplitude_at(SAMPLE_RATE - 11_000, samples) < 1e-4  # where the alias would be


def test_content_decides_the_format_not_the_name(tmp_path):
    for format, name in (("MP3", "clip.wav"), ("WAV", "clip.mp3"), ("FLAC", "clip.raw"), ("WAV", "clip")):
        (tmp_path / name).write_bytes(encode(sine(), format=format))
        assert amplitude_at(440, read_audio(tmp_path / name)) == pytest.approx(0.5, abs=0.02)
        assert probe(tmp_path / name) == pytest.approx(1.0, abs=0.1)


def test_the_loudest_samples_beyond_full_scale_are_kept():
    assert np.abs(read_audio(encode(sine(amplitude=1.5), subtype="FLOAT"))).max() == pytest.approx(1.5, abs=1e-3)


# --- what is refused ---------------------------------------------------------------------------------------------


def cut(format: str) -> bytes:
    noisy = sine(seconds=2.0) + 0.05 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE)
    data = encode(noisy, format=format)
    return data[: len(data) // 2]


def claims_terabytes() -> bytes:
    """A flac whose STREAMINFO block promises 2^36 - 1 samples."""
    data = bytearray(encode(sine(), format="FLAC"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    return bytes(data)


def with_sample(value: float) -> bytes:
    samples = sine()
    samples[100] = value
    return encode(samples, subtype="FLOAT")


BROKEN = {
    "empty": (b"", "is empty"),
    "lfs_pointer": (POINTER, "Git-LFS pointer.*git lfs pull"),
    "text": (b"<html>404 not found</html>" * 40, "cannot be decoded"),
    "noise": (np.random.default_rng(0).bytes(4000), "cannot be decoded"),
    "header_alone": (encode(sine())[:44], "ends early|lasts"),
    "half_a_header": (encode(sine())[:20], "cannot be decoded|ends early"),
    "cut_flac": (cut("FLAC"), "cannot be decoded|ends early"),
    "cut_wav": (cut("WAV"), r"ends early, after 1\.00 s"),
    "cut_mp3": (cut("MP3"), "ends early"),
    "cut_ogg": (cut("OGG"), "cannot be decoded|ends early|lasts"),
    "terabytes": (claims_terabytes(), "cannot be decoded|ends early"),
    "no_samples": (encode(np.zeros(0)), r"lasts 0\.000 s"),
    "too_short": (encode(sine(seconds=0.09)), r"lasts 0\.090 s, expected at least 0\.1 s"),
    "too_short_at_48_khz": (encode(sine(rate=48_000, seconds=0.09), 48_000), r"lasts 0\.090 s"),
    "digital_silence": (encode(np.zeros(SAMPLE_RATE)), "is silent"),
    "dither_alone": (encode(np.full(SAMPLE_RATE, 2 / 32768)), "is silent"),
    "opposite_channels": (encode(np.stack([sine(), -sine()], axis=1)), "is silent"),
    "nan": (with_sample(np.nan), "not finite"),
    "infinity": (with_sample(np.inf), "not finite"),
    "nan_to_resample": (encode(np.full(48_000, np.nan), 48_000, subtype="FLOAT"), "not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_audio_is_refused_with_its_clip_and_file_and_what_is_wrong(tmp_path, name):
    data, problem = BROKEN[name]
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    with pytest.raises(AudioError, match=problem) as caught:
        read_audio(path, row="1001_DFA_SAD_XX")
    assert str(caught.value).startswith(f"[1001_DFA_SAD_XX] audio: file {path} ")
    with pytest.raises(AudioError, match=problem) as caught:
        read_audio(data, row="1001_DFA_SAD_XX")
    assert str(caught.value).startswith("[1001_DFA_SAD_XX] audio: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing.wav", "does not exist"), (".", "directory"), ("file/inside.wav", "irectory"), ("a\0b.wav", "null byte")],
)
def test_a_path_that_is_no_file_is_refused(tmp_path, name, problem):
    (tmp_path / "file").write_bytes(encode(sine()))
    for read in (read_audio, probe):
        with pytest.raises(AudioError, match=problem) as caught:
            read(tmp_path / name, row="clip 7")
        assert caught.value.row == "clip 7"


def test_every_cut_of_a_wav_below_the_tolerance_is_refused():
    data = encode(sine())
    for part in np.linspace(0.0, 0.94, 48):
        with pytest.raises(AudioError):
            read_audio(data[: int(part * len(data))])


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0])
def test_a_wav_written_to_a_pipe_which_does_not_know_its_length_is_read(size):
    data = bytearray(encode(sine()))
    data[4:8] = struct.pack("<I", size)
    assert len(read_audio(bytes(data))) == SAMPLE_RATE


def test_silence_is_read_where_it_is_asked_for():
    assert not read_audio(encode(np.zeros(SAMPLE_RATE)), allow_silence=True).any()


@pytest.mark.parametrize(("steps", "silent"), [(3, True), (4, False)])
def test_silence_is_a_peak_of_at_most_three_steps_of_16_bit_audio(steps, silent):
    quiet = np.zeros(SAMPLE_RATE)
    quiet[100] = -steps / 2**15
    data = encode(quiet, subtype="PCM_16")
    if silent:
        with pytest.raises(AudioError, match="is silent"):
            read_audio(data)
    else:
        assert read_audio(data).min() == -steps / 2**15


def test_the_shortest_audio_allowed_is_read():
    assert len(read_audio(encode(sine(seconds=MIN_SECONDS)))) == MIN_SECONDS * SAMPLE_RATE


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG"])
def test_probe_tells_the_length_that_decoding_gives(tmp_path, format):
    path = tmp_path / "clip"
    path.write_bytes(encode(sine(rate=44_100, seconds=1.5), 44_100, format=format))
    assert probe(path) == pytest.approx(len(read_audio(path)) / SAMPLE_RATE, abs=1e-3)


@pytest.mark.parametrize("name", ["empty", "lfs_pointer", "text"])
def test_probe_names_why_a_file_is_no_audio(tmp_path, name):
    data, problem = BROKEN[name]
    (tmp_path / "clip.wav").write_bytes(data)
    with pytest.raises(AudioError, match=problem):
        probe(tmp_path / "clip.wav")


# --- the official release ----------------------------------------------------------------------------------------


def best_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Largest normalised correlation of two recordings over all shifts: 1 when one is the other, moved and scaled."""
    size = 1 << (len(a) + len(b)).bit_length()
    products = np.fft.irfft(np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size)), size)
    return float(products.max() / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_official_mp3_and_lossless_files_of_a_clip_hold_the_same_recording(shared_crema_d: Path):
    lossless = {path.stem: path for path in sorted((shared_crema_d / "AudioWAV").glob("*.*"))}
    pairs = [
        (path, lossless[path.stem])
        for path in sorted((shared_crema_d / "AudioMP3").glob("*.mp3"))
        if path.stem in lossless
    ]
    if len(pairs) < 2:
        pytest.skip("this copy of CREMA-D holds fewer than two clips both as mp3 and lossless")
    decoded = [(read_audio(mp3), read_audio(wav)) for mp3, wav in pairs]
    same = [best_correlation(a, b) for a, b in decoded]
    other = [best_correlation(decoded[i][0], decoded[i - 1][1]) for i in range(len(decoded))]
    assert min(same) > 0.9
    assert max(other) < 0.5
    for a, b in decoded:
        assert len(a) == pytest.approx(len(b), abs=0.2 * SAMPLE_RATE)
