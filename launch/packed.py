"""Runs of `equivox evaluate` in one small file, without what belongs to the corpus: votes, sentences and sound.

A file can so be published beside its figures, and scored again by whoever has the corpus (`equivox pack`, `unpack`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data_builders.tables import read_records, write_records
from reasoning.errors import EvaluationError
from reasoning.evaluation.predictions import Prediction
from reasoning.evaluation.record import RunRecord, record_from

if TYPE_CHECKING:
    from data_builders.rows import Corpus
    from reasoning.clips import Clip

OF_THE_CORPUS = ("votes", "transcript", "speaker")
"""Fields of a prediction that are not packed."""
_LISTS = {"probabilities": pa.list_(pa.float64()), "problems": pa.list_(pa.string())}
_COLUMNS = tuple(field.name for field in fields(Prediction) if field.name not in OF_THE_CORPUS)
SCHEMA = pa.schema([(name, pa.int64() if name == "fold" else _LISTS.get(name, pa.string())) for name in _COLUMNS])


@dataclass(frozen=True)
class Run:
    """One evaluation. minutes: that its adapter's training took, None where that is not known."""

    record: RunRecord
    minutes: float | None
    predictions: Sequence[Prediction]


def write_packed(path: Path, runs: Sequence[Run]) -> None:
    """The runs as one parquet file. Raises EvaluationError when they are of more than one corpus."""
    corpora = {run.record.corpus_fingerprint for run in runs}
    if len(corpora) > 1:
        raise EvaluationError(
            "were evaluated on more than one corpus", field="runs", cure="pack each corpus's by itself"
        )
    told = [
        {"record": {**asdict(run.record), "audio_root": ""}, "minutes": run.minutes, "answers": len(run.predictions)}
        for run in runs
    ]
    # Run after run; the schema takes of each line what is not the corpus's.
    lines = [line for run in runs for line in run.predictions]
    write_records(path, lines, SCHEMA, {"corpus": corpora.pop(), "runs": told})


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
    cure = "pack the runs again, or unpack them with the version of Equivox that packed them"
    lines = iter(_whole(row, clips[row["id"]]) for row in rows)
    return [
        Run(
            record_from({**run["record"], "audio_root": str(corpus.root)}, str(path), cure),
            run["minutes"],
            list(islice(lines, run["answers"])),
        )
        for run in told["runs"]
    ]


def _whole(row: Mapping[str, Any], clip: Clip) -> Prediction:
    given = {**row, **{name: None if row[name] is None else tuple(row[name]) for name in _LISTS}}
    return Prediction(**given, votes=tuple(clip.votes), transcript=clip.transcript, speaker=clip.speaker)
