"""Records come back with what they were made of, and pandas-like readers see an ordinary parquet file."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_builders.tables import decode_table, encode_table, read_records, write_records
from reasoning.errors import CorpusError

SCHEMA = pa.schema([("id", pa.string()), ("votes", pa.list_(pa.int64()))])


@dataclass(frozen=True)
class Record:
    id: str
    votes: tuple[int, ...]


def test_records_and_what_they_were_made_of_come_back_and_other_columns_do_not(tmp_path):
    path = tmp_path / "records.parquet"
    write_records(path, [Record("é", (1, 2)), Record("b", ())], SCHEMA, {"corpus": "tones", "folds": [1]})
    table = pq.read_table(path)
    pq.write_table(table.append_column("more", pa.array([1, 2])), path)
    rows, made_from = read_records(path, SCHEMA, "records", "records", "make it")
    assert rows == [{"id": "é", "votes": [1, 2]}, {"id": "b", "votes": []}]
    assert made_from == {"corpus": "tones", "folds": [1]}


def test_no_record_is_still_a_table_with_its_columns(tmp_path):
    write_records(tmp_path / "none.parquet", [], SCHEMA, {})
    assert read_records(tmp_path / "none.parquet", SCHEMA, "records", "records", "make it") == ([], {})


def test_a_table_is_the_same_to_arrows_own_reader_and_to_ours(tmp_path):
    table = pa.table({"x": [1.5, None], "y": ["a", "b"]})
    (tmp_path / "t.parquet").write_bytes(encode_table(table))
    assert pq.read_table(tmp_path / "t.parquet").equals(table)
    assert decode_table(encode_table(table)).equals(table)


def test_what_is_no_such_file_is_named_with_field_and_cure(tmp_path):
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    pq.write_table(pa.Table.from_pylist([], schema=SCHEMA), tmp_path / "bare.parquet")
    for name, says in (
        ("none", "cannot be read: No such file"),
        ("text", "is no parquet file"),
        ("other", r"is no file of records \(votes missing\)"),
        ("bare", r"is no file of records \(its metadata missing\)"),
    ):
        with pytest.raises(CorpusError, match=rf"{name}\.parquet\] rows: {says}.*To mend: make it"):
            read_records(tmp_path / f"{name}.parquet", SCHEMA, "records", "rows", "make it")
