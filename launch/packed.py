"""Runs of `equivox evaluate` in one small file, without what belongs to the corpus: votes, sentences and sound.

A file can so be published beside its figures, and scored again by whoever has the corpus (`equivox pack`, `unpack`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data_builders.tables import read_records, write_records
from reasoning.errors import EvaluationError
from reasoning.evaluation.predictions import Prediction
from reasoning.evaluation.record import RunRecord

if TYPE_CHECKING:
    from data_builders.rows import Corpus

OF_THE_CORPUS = ("votes", "transcript", "speaker")
"""Fields of a prediction that are not packed."""
_LISTS = {"probabilities": pa.list_(pa.float64()), "problems": pa.list_(pa.string())}
_COLUMNS = tuple(field.name for field in fields(Prediction) if field.name not in OF_THE_CORPUS)
SCHEMA = pa.schema(
    [
        ("run", pa.int64()),
        *((name, pa.int64() if name == "fold" else _LISTS.get(name, pa.string())) for name in _COLUMNS),
    ]
)


@dataclass(frozen=True)
class Run:
    """One evaluation. minutes: that its adapter's training took, None where that is not known."""

    record: RunRecord
    minutes: float | None
    predictions: Sequence[Prediction]


@dataclass(frozen=True)
class _Row:
    run: int
    system: str
    readout: str
    prefix: str | None
    control: str
    split: str
    id: str
    fold: int
    probabilities: tuple[float, ...] | None
    vote: str | None
    problems: tuple[str, ...]
    text: str | None
    audio: str | None


def write_packed(path: Path, runs: Sequence[Run]) -> None:
    """The runs as one parquet file. Raises EvaluationError when they are of more than one corpus."""
    corpora = {run.record.corpus_fingerprint for run in runs}
    if len(corpora) > 1:
        raise EvaluationError(
            "were evaluated on more than one corpus", field="runs", cure="pack each corpus's by itself"
        )
    rows = [
        _Row(number, **{name: getattr(line, name) for name in _COLUMNS})
        for number, run in enumerate(runs)
        for line in run.predictions
    ]
    told = [{"record": {**asdict(run.record), "audio_root": ""}, "minutes": run.minutes} for run in runs]
    write_records(path, rows, SCHEMA, {"corpus": corpora.pop(), "runs": told})


def read_packed(path: Path, corpus: Corpus) -> list[Run]:
    """The runs in the order in which they were packed, with the corpus's votes, sentences and speakers.

    Raises CorpusError when the file holds no runs and EvaluationError when they are of another corpus.
    """
    rows, told = read_records(path, SCHEMA, "packed evaluations", "FILE", "give a file that `equivox pack` wrote")
    if told.get("corpus") != corpus.fingerprint:
        what = f"was packed from evaluations of another corpus than this {corpus.info.name}"
        cure = "prepare the part of the corpus that it was made of: its clips, votes and version decide"
        raise EvaluationError(what, row=str(path), field="--data", cure=cure)
    clips = {clip.id: clip for clip in corpus.clips}
    predictions: list[list[Prediction]] = [[] for _ in told["runs"]]
    for row in rows:
        clip = clips[row["id"]]
        given: dict[str, Any] = {name: row[name] for name in _COLUMNS}
        given |= {name: None if row[name] is None else tuple(row[name]) for name in _LISTS}
        known = {"votes": tuple(clip.votes), "transcript": clip.transcript, "speaker": clip.speaker}
        predictions[row["run"]].append(Prediction(**given, **known))
    return [
        Run(RunRecord(**{**run["record"], "audio_root": str(corpus.root)}), run["minutes"], lines)
        for run, lines in zip(told["runs"], predictions, strict=True)
    ]
