"""The cues of a whole corpus, measured once: in parallel, and kept by content in `cues.parquet` in its folder.

cues = corpus_cues(read_corpus(Path("data/crema_d")), Path("data/crema_d"), workers=2)
cues["1001_IEO_HAP_HI"]["pitch"].level
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from data_builders.rows import Corpus
from data_builders.tables import decode_table, encode_table
from reasoning.audio import read_audio
from reasoning.cues import CUES, VERSION, Cue, Measurement, measure, relative, unreadable, with_rate
from reasoning.errors import AudioError
from reasoning.files import write_atomic

CACHE_FILE = "cues.parquet"
SAVE_EVERY = 500
"""Clips after which a long run stores what it has: a killed one goes on from there."""

PARALLEL_FROM = 50
"""Clips from which on processes pay for being started."""

_SOUND = tuple(name for name in CUES if name != "pace")


def corpus_cues(corpus: Corpus, folder: Path, workers: int = 1, progress: bool = True) -> dict[str, dict[str, Cue]]:
    """The cues of every clip, by clip id, each against the same speaker's clips (reasoning.cues.relative).

    folder: where the measurements are kept, by the sha256 of each audio file and the version of the measuring; what is
    there is not measured again. workers: processes. A file that cannot be decoded gives the gap `unreadable`.
    """
    sounds = measure_files({clip.id: corpus.root / clip.audio for clip in corpus.clips}, folder, workers, progress)
    measured = {c.id: with_rate(sounds[c.id], c.transcript, c.language) for c in corpus.clips}
    return relative(measured, {c.id: c.speaker for c in corpus.clips}, {c.id: c.sex for c in corpus.clips})


def measure_files(files: dict[str, Path], folder: Path, workers: int, progress: bool) -> dict[str, Measurement]:
    """`measure` of every file, by the same keys, through the cache in `folder`."""
    known = read_cache(folder)
    digests = {key: _digest(path) for key, path in files.items()}
    missing = {digest: files[key] for key, digest in digests.items() if digest not in known}
    bar = tqdm(total=len(missing), desc="measuring", unit="clip", disable=not progress or not missing)
    with bar, _mapper(workers, len(missing)) as mapped:
        results = zip(missing, mapped(measure_file, missing.values()), strict=True)
        while part := dict(islice(_shown(results, bar), SAVE_EVERY)):
            known |= part
            write_cache(folder, known)
    return {key: known.get(digest, unreadable()) for key, digest in digests.items()}


def measure_file(path: Path) -> Measurement:
    """`measure` of one audio file; `unreadable()` when it cannot be decoded."""
    try:
        return measure(read_audio(path, allow_silence=True))
    except AudioError:
        return unreadable()


def read_cache(folder: Path) -> dict[str, Measurement]:
    """sha256 of an audio file -> its measurement; empty when there is no cache, or one of another version."""
    try:
        table = decode_table((folder / CACHE_FILE).read_bytes())
    except (OSError, pa.ArrowException):
        return {}  # it is only a copy of what the audio says: whatever is wrong with it, it is made again
    if (table.schema.metadata or {}).get(b"version") != VERSION.encode():
        return {}
    found = {}
    for row in table.to_pylist():
        values = {name: row[name] for name in _SOUND if row[name] is not None}
        found[row["sha256"]] = Measurement(values, json.loads(row["gaps"]), row["speech_s"])
    return found


def write_cache(folder: Path, known: dict[str, Measurement]) -> None:
    """Store the measurements: one row an audio file, one column a cue, gaps as JSON."""
    columns = {"sha256": pa.array(list(known), pa.string())}
    for name in _SOUND:
        columns[name] = pa.array([sound.values.get(name) for sound in known.values()], pa.float64())
    columns["speech_s"] = pa.array([sound.speech_s for sound in known.values()], pa.float64())
    columns["gaps"] = pa.array([json.dumps(sound.gaps) for sound in known.values()], pa.string())
    write_atomic(folder / CACHE_FILE, encode_table(pa.table(columns).replace_schema_metadata({"version": VERSION})))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""  # measured as unreadable, under a key that no file has


def _shown(results: Iterable, bar: tqdm) -> Iterator:
    for result in results:
        bar.update()
        yield result


@contextmanager
def _mapper(workers: int, clips: int):
    """`map`, over processes where there is enough to do."""
    if workers <= 1 or clips < PARALLEL_FROM:
        yield map
        return
    # Spawned, not forked: the caller may hold threads (torch, onnxruntime) that a fork would leave dead locks of.
    with ProcessPoolExecutor(min(workers, clips), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, items: pool.map(function, items, chunksize=8)
