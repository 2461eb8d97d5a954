"""The only audio decoder: a file or its bytes -> float32 mono at 16 kHz, checked."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from reasoning.errors import AudioError

SAMPLE_RATE = 16_000
"""Hz. What every audio tower of a supported family hears."""

SILENCE_PEAK = 1e-4
"""Peak amplitude (full scale 1) under which a recording holds no voice: -80 dBFS, 3 steps of 16-bit audio."""

MIN_SECONDS = 0.1

WHOLE = 0.95
"""Part of the promised audio under which a file counts as cut short: an mp3 without a frame count promises roughly."""

_RIFF_STREAMED = 0x7FFF0000  # sox and ffmpeg write sizes from here up when they do not know the length
_LFS_HEADER = b"version https://git-lfs"


def read_audio(
    source: Path | str | bytes, *, row: str | None = None, allow_silence: bool = False
) -> NDArray[np.float32]:
    """Samples of `source` as float32 mono at 16 kHz, shape (samples,), full scale 1.

    source: a path, or a whole file's bytes; any format that libsndfile knows by its content (wav, flac, mp3, ogg).
    Channels are averaged, other rates resampled (soxr, high quality). row: the clip's id, for errors. Raises AudioError
    on a missing file, a Git-LFS pointer, anything that is not audio, a file that ends early, non-finite samples, less
    than MIN_SECONDS, or silence (peak under SILENCE_PEAK) unless `allow_silence`.
    """
    file = "" if isinstance(source, bytes) else f"file {source} "

    def error(problem: str, cure: str | None = None) -> AudioError:
        return AudioError(file + problem, row=row, field="audio", cure=cure)

    data = source if isinstance(source, bytes) else _read_bytes(Path(source), error)
    samples, rate = _decode(data, error)
    mono = samples.mean(axis=1)
    if rate != SAMPLE_RATE and len(mono):
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    if len(mono) < MIN_SECONDS * SAMPLE_RATE:
        raise error(f"lasts {len(mono) / SAMPLE_RATE:.3f} s, expected at least {MIN_SECONDS} s")
    if not np.isfinite(mono).all():
        raise error("holds samples that are not finite", "export it again")
    if not allow_silence and np.abs(mono).max() < SILENCE_PEAK:
        raise error("is silent", "leave this clip out")
    return np.ascontiguousarray(mono, dtype=np.float32)


def probe(path: Path | str, *, row: str | None = None) -> float:
    """Seconds of audio that the file's header promises, without decoding it. Raises AudioError when there is none."""
    try:
        with open(path, "rb") as file:  # by content, as read_audio does: a path would be judged by its extension too
            return float(soundfile.info(file).duration)
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError):
        return len(read_audio(path, row=row, allow_silence=True)) / SAMPLE_RATE  # or the error that names the cause


def _read_bytes(path: Path, error: Callable[..., AudioError]) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise error("does not exist", "check the corpus root") from None
    except (OSError, ValueError) as reason:  # a ValueError is a NUL in the path
        raise error(f"cannot be read: {getattr(reason, 'strerror', None) or reason}") from None


def _decode(data: bytes, error: Callable[..., AudioError]) -> tuple[NDArray[np.float32], int]:
    """Samples (frames, channels) and their rate, of a whole file."""
    if not data:
        raise error("is empty", "download it again")
    if data.startswith(_LFS_HEADER):
        raise error("is a Git-LFS pointer, not audio", "run `git lfs pull` in its repository")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples = np.asarray(file.read(dtype="float32", always_2d=True), dtype=np.float32)
            promised, rate = file.frames, file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, MemoryError) as reason:  # a corrupt header may promise terabytes
        raise error(f"cannot be decoded ({str(reason).rsplit(': ', 1)[-1].strip(' .')})", "download it again") from None
    # libsndfile says nothing about an mp3 or wav that ends early, and a part of a clip is not what its listeners heard.
    if len(samples) < WHOLE * promised or len(data) < WHOLE * _riff_bytes(data):
        raise error(f"ends early, after {len(samples) / rate:.2f} s", "download it again")
    return samples, rate


def _riff_bytes(data: bytes) -> int:
    """Bytes that a wav file's header promises; 0 for other formats and for streamed files, which do not know."""
    size = int.from_bytes(data[4:8], "little")
    return size + 8 if data[:4] == b"RIFF" and size < _RIFF_STREAMED else 0
