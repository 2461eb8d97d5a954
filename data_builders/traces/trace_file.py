"""The file of traces: one row a clip, what wrote it, whether the verifier keeps it, and what it was made from.

write_traces(Path("traces.parquet"), rows, corpus)
thinking = read_traces(Path("traces.parquet"), corpus)      # clip id -> text of the think block
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_builders.rows import Corpus
from reasoning.errors import CorpusError
from reasoning.files import write_atomic

COMMAND = "equivox prepare cot"
_METADATA = b"equivox"


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


def write_traces(path: Path, rows: Sequence[TraceRow], corpus: Corpus) -> None:
    """Write the rows, whole or not at all, with the corpus they belong to."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_METADATA: json.dumps(_made_of(corpus))}), sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def read_trace_rows(path: Path, corpus: Corpus) -> list[TraceRow]:
    """Every row of a trace file.

    Raises CorpusError when it is missing or something else, or was made of another corpus or another state of this one:
    cues are relative to the clips that are there, so that a trace may be false once others have come.
    """
    cure = f"make one with `{COMMAND} --data CORPUS --out {path}`"
    try:
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(use_threads=False)
    except OSError as error:
        raise CorpusError(f"cannot be read: {error.strerror}", row=str(path), field="traces", cure=cure) from None
    except pa.ArrowException as error:
        raise CorpusError(f"is no parquet file: {error}", row=str(path), field="traces", cure=cure) from None
    metadata = (table.schema.metadata or {}).get(_METADATA)
    missing = [name for name in _SCHEMA.names if name not in table.column_names]
    if metadata is None or missing:
        raise CorpusError(f"is no trace file (missing: {', '.join(missing)})", row=str(path), field="traces", cure=cure)
    if json.loads(metadata) != _made_of(corpus):
        what = f"belongs to another corpus than this {corpus.info.name}, or to another state of it"
        raise CorpusError(what, row=str(path), field="traces", cure=cure)
    return [TraceRow(**{**row, "reasons": tuple(row["reasons"])}) for row in table.select(_SCHEMA.names).to_pylist()]


def read_traces(path: Path, corpus: Corpus, unverified: bool = False) -> dict[str, str]:
    """Clip id -> thinking, of the traces that the verifier keeps; of all that are there with `unverified`."""
    return {row.id: row.thinking for row in read_trace_rows(path, corpus) if unverified or row.verdict == "kept"}


def _made_of(corpus: Corpus) -> dict[str, Any]:
    return {
        "corpus": corpus.info.name,
        "emotions": list(corpus.info.emotions.names),
        "clips_sha256": corpus.fingerprint,
    }
