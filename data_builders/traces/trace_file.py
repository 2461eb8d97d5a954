"""The file of traces: one row a clip, what wrote it, whether the verifier keeps it, and what it was made from.

write_traces(Path("traces.parquet"), rows, corpus)
thinking = read_traces(Path("traces.parquet"), corpus)      # clip id -> text of the think block
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_builders.rows import Corpus
from data_builders.tables import read_records, write_records
from reasoning.errors import CorpusError

COMMAND = "equivox prepare cot"


@dataclass(frozen=True)
class TraceRow:
    """One clip's trace. thinking: text of the think block. writer: name and version of what wrote it. saw_votes:
    whether it was shown the clip's votes. verdict: "kept" or "rejected". reasons: from reasoning.verifier.REASONS."""

    id: str
    thinking: str
    writer: str
    saw_votes: bool
    verdict: str
    reasons: tuple[str, ...]


_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("thinking", pa.string()),
        ("writer", pa.string()),
        ("saw_votes", pa.bool_()),
        ("verdict", pa.string()),
        ("reasons", pa.list_(pa.string())),
    ]
)


def by_whom(writer: str, saw_votes: bool) -> str:
    """Who wrote traces, and whether they saw the answer: "template 2 (the writer did not see the votes)"."""
    return f"{writer} (the writer {'saw' if saw_votes else 'did not see'} the votes)"


def write_traces(path: Path, rows: Sequence[TraceRow], corpus: Corpus) -> None:
    """Write the rows, whole or not at all, with the corpus they belong to."""
    write_records(path, rows, _SCHEMA, _made_of(corpus))


def read_trace_rows(path: Path, corpus: Corpus) -> list[TraceRow]:
    """Every row of a trace file.

    Raises CorpusError when it is missing or something else, or was made of another corpus or another state of this one:
    cues are relative to the clips that are there, so that a trace may be false once others have come.
    """
    cure = f"make one with `{COMMAND} --data CORPUS --out {path}`"
    rows, made_from = read_records(path, _SCHEMA, "traces", "traces", cure)
    if made_from != _made_of(corpus):
        what = f"belongs to another corpus than this {corpus.info.name}, or to another state of it"
        raise CorpusError(what, row=str(path), field="traces", cure=cure)
    return [TraceRow(**{**row, "reasons": tuple(row["reasons"])}) for row in rows]


def read_traces(path: Path, corpus: Corpus, unverified: bool = False) -> dict[str, str]:
    """Clip id -> thinking, of the traces that the verifier keeps; of all that are there with `unverified`."""
    return {row.id: row.thinking for row in read_trace_rows(path, corpus) if unverified or row.verdict == "kept"}


def _made_of(corpus: Corpus) -> dict[str, Any]:
    return {
        "corpus": corpus.info.name,
        "emotions": list(corpus.info.emotions.names),
        "clips_sha256": corpus.fingerprint,
    }
