"""The only audio decoder: a file or its bytes -> float32 mono at 16 kHz, checked."""

from __future__ import annotations

import io
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

_LFS_HEADER = b"version https://git-lfs"


def _bytes_of(source: Path | str | bytes, row: str) -> bytes:
    if isinstance(source, bytes):
        return source
    path = Path(source)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise AudioError(f"file {path} does not exist", row=row, field="audio", cure="check the corpus root") from None
    except OSError as error:
        raise AudioError(f"file {path} cannot be read: {error.strerror}", row=row, field="audio") from None
    return data


def read_audio(
    source: Path | str | bytes, *, row: str | None = None, allow_silence: bool = False
) -> NDArray[np.float32]:
    """Samples of `source` as float32 mono at 16 kHz, shape (samples,), full scale 1.

    source: a path, or a whole file's bytes; any format that libsndfile reads (wav, flac, mp3, ogg). Channels are
    averaged, other rates resampled (soxr, high quality). row: the clip's id, for errors. Raises AudioError on a
    missing file, a Git-LFS pointer, anything that is not audio, non-finite samples, less than MIN_SECONDS, or silence
    (peak under SILENCE_PEAK) unless `allow_silence`.
    """
    row = row or (str(source) if not isinstance(source, bytes) else "bytes")
    data = _bytes_of(source, row)
    if data.startswith(_LFS_HEADER):
        raise AudioError("is a Git-LFS pointer, not audio", row=row, field="audio", cure="run `git lfs pull` there")
    if not data:
        raise AudioError("is an empty file", row=row, field="audio", cure="download it again")
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = str(error).rsplit(": ", 1)[-1].strip()
        raise AudioError(f"cannot be decoded ({reason})", row=row, field="audio", cure="download it again") from None
    mono = samples.mean(axis=1)
    if rate != SAMPLE_RATE and len(mono):
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    return _checked(np.ascontiguousarray(mono, dtype=np.float32), row, allow_silence)


def _checked(mono: NDArray[np.float32], row: str, allow_silence: bool) -> NDArray[np.float32]:
    if len(mono) < MIN_SECONDS * SAMPLE_RATE:
        seconds = len(mono) / SAMPLE_RATE
        raise AudioError(f"lasts {seconds:.3f} s, expected at least {MIN_SECONDS} s", row=row, field="audio")
    if not np.isfinite(mono).all():
        raise AudioError("holds samples that are not finite", row=row, field="audio", cure="export it again")
    if not allow_silence and np.abs(mono).max() < SILENCE_PEAK:
        raise AudioError("is silent", row=row, field="audio", cure="leave this clip out")
    return mono


def probe(path: Path | str) -> float:
    """Seconds of audio that the file's header promises, without decoding it. Raises AudioError when there is none."""
    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.LibsndfileError, RuntimeError):
        read_audio(path)  # names the cause: missing, pointer, empty or not audio
        raise
