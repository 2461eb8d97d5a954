"""Parquet files as every builder writes and reads them, and tables of records with what they were made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reasoning.errors import CorpusError
from reasoning.files import write_atomic

_METADATA = b"equivox"


def encode_table(table: pa.Table) -> bytes:
    """The bytes of a parquet file that holds `table`."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def decode_table(data: bytes) -> pa.Table:
    """The table in the bytes of a parquet file. Raises pa.ArrowException on anything else."""
    # Arrow's own buffer, no Python file: a thread that still holds one at exit aborts Python (apache/arrow#50482).
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def write_records(path: Path, records: Sequence[Any], schema: pa.Schema, made_from: Mapping[str, Any]) -> None:
    """Write one row a record, whole or not at all, and `made_from` (JSON-safe) in the file's metadata."""
    table = pa.Table.from_pylist([asdict(record) for record in records], schema=schema)
    write_atomic(path, encode_table(table.replace_schema_metadata({_METADATA: json.dumps(dict(made_from))})))


def read_records(
    path: Path, schema: pa.Schema, kind: str, field: str, cure: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows with the columns of `schema`, what the file was made from).

    Raises CorpusError with `field` and `cure` when the file is missing or is no file of `kind` ("traces").
    """

    def fail(what: str) -> CorpusError:
        return CorpusError(what, row=str(path), field=field, cure=cure)

    try:
        table = decode_table(path.read_bytes())
    except OSError as error:
        raise fail(f"cannot be read: {error.strerror}") from None
    except pa.ArrowException as error:
        raise fail(f"is no parquet file: {error}") from None
    metadata = (table.schema.metadata or {}).get(_METADATA)
    missing = [name for name in schema.names if name not in table.column_names]
    if missing or metadata is None:
        raise fail(f"is no file of {kind} ({', '.join(missing) or 'its metadata'} missing)")
    return table.select(schema.names).to_pylist(), json.loads(metadata)
