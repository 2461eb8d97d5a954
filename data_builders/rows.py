"""The corpus folder: clips.parquet (flat rows), corpus.json (what they are), left_out.tsv (what is missing and why).

    write_corpus(Path("data/crema_d"), clips, info, root=Path("CREMA-D"))
    corpus = read_corpus(Path("data/crema_d"))
    split_clips(corpus, fold=0)["test"]

Every builder writes through `write_corpus`, everything else reads through `read_corpus`, and both check the same
contract: a folder that was edited by hand fails on reading with the row, the column and the command that rebuilds it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from data_builders.folds import FOLDS, split_of
from data_builders.tables import decode_table, encode_table
from reasoning.clips import Clip
from reasoning.emotions import EmotionSet
from reasoning.errors import CorpusError, EquivoxError, RowError
from reasoning.files import write_atomic

CLIPS_FILE, INFO_FILE, LEFT_OUT_FILE = "clips.parquet", "corpus.json", "left_out.tsv"
EXAMPLES = 5
"""Rows of one reason that corpus.json names; left_out.tsv names them all."""

_STRING, _INT, _FLOAT, _INTS = pa.string(), pa.int64(), pa.float64(), pa.list_(pa.int64())
COLUMNS: Mapping[str, tuple[pa.DataType, bool]] = {  # name -> (type, may be null)
    "id": (_STRING, False),
    "audio": (_STRING, False),
    "duration_s": (_FLOAT, False),
    "transcript": (_STRING, True),
    "language": (_STRING, False),
    "speaker": (_STRING, False),
    "sex": (_STRING, True),
    "age": (_INT, True),
    "split": (_STRING, False),
    "fold": (_INT, False),
    "votes": (_INTS, False),
    "n_votes": (_INT, False),
    "intended": (_STRING, True),
    "source": (_STRING, False),
    "synthesizer": (_STRING, True),
    "parent_id": (_STRING, True),
}
"""The contract's columns in order; anything after them is corpus-specific and lands in Clip.extra."""


@dataclass(frozen=True)
class CorpusInfo:
    """What a corpus is.

    rater_task: what the raters were given ("voice only", ...). builder_version: changes whenever the builder would
    write other rows. tables: source file -> sha256. counts: JSON-safe. left_out: {"row", "reason", "detail"} for
    everything that the source has and the rows have not. statement: a sentence that every report on this corpus prints.
    """

    name: str
    emotions: EmotionSet
    licence: str
    citation: str
    rater_task: str
    builder_version: str
    tables: Mapping[str, str]
    counts: Mapping[str, Any]
    left_out: Sequence[Mapping[str, str]]
    statement: str


@dataclass(frozen=True)
class Corpus:
    """A corpus as read: `clips` in file order, audio under `root`, fingerprint = sha256 of clips.parquet."""

    clips: tuple[Clip, ...]
    info: CorpusInfo
    root: Path
    fingerprint: str


def check_clips(clips: Sequence[Clip], emotions: EmotionSet) -> None:
    """Raise RowError or CorpusError unless every row keeps the contract and no speaker crosses a split or a fold."""
    if not clips:
        raise CorpusError("there is not a single clip to write", cure="see what was left out, and why")
    seen: set[str] = set()
    places: dict[str, tuple[str, int]] = {}
    for clip in clips:
        clip.check(emotions)
        path = PurePosixPath(clip.audio)
        if path.is_absolute() or ".." in path.parts or "\\" in clip.audio:
            raise RowError(f"{clip.audio!r} is not a path inside the corpus root", row=clip.id, field="audio")
        if clip.fold < 0:
            raise RowError(f"is {clip.fold}, expected 0 or more", row=clip.id, field="fold")
        if clip.id in seen:
            raise RowError("is used by two rows", row=clip.id, field="id", cure="give every clip its own id")
        seen.add(clip.id)
        first = places.setdefault(clip.speaker, (clip.split, clip.fold))
        if first != (clip.split, clip.fold):
            raise RowError(
                f"speaker {clip.speaker} is in {first[0]} of fold {first[1]} and in {clip.split} of fold {clip.fold}",
                row=clip.id,
                field="speaker",
                cure="assign folds and splits by speaker (data_builders.folds.place)",
            )


def describe(clips: Sequence[Clip]) -> dict[str, Any]:
    """Counts that every corpus reports: clips, speakers, hours, votes per clip, clips per split and per fold."""
    votes = [clip.n_votes for clip in clips]
    return {
        "clips": len(clips),
        "speakers": len({clip.speaker for clip in clips}),
        "hours": round(sum(clip.duration_s for clip in clips) / 3600, 4),
        "votes_per_clip": {"min": min(votes), "mean": round(sum(votes) / len(votes), 3), "max": max(votes)},
        "splits": dict(sorted(Counter(clip.split for clip in clips).items())),
        "folds": [n for _, n in sorted(Counter(clip.fold for clip in clips).items())],
    }


def reasons(left_out: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Reason -> how many rows were left out for it, most frequent first."""
    return dict(Counter(item["reason"] for item in left_out).most_common())


# --- writing


def write_corpus(out: Path, clips: Sequence[Clip], info: CorpusInfo, *, root: Path | None = None) -> Corpus:
    """Check everything, write the corpus folder `out`, and return it as `read_corpus` reads it.

    root: the folder that Clip.audio is relative to; `out` itself when None. Each file appears whole or not at all, and
    corpus.json comes last with the sha256 of clips.parquet: a killed run leaves the old corpus or a pair that
    `read_corpus` refuses. Raises RowError or CorpusError before anything is written; CorpusError on a full disk.
    """
    check_clips(clips, info.emotions)
    data = encode_table(_table(clips))
    record = _record(info, "." if root is None else str(root.resolve()), hashlib.sha256(data).hexdigest())
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(out / LEFT_OUT_FILE, _left_out_text(info.left_out).encode())
    write_atomic(out / CLIPS_FILE, data)
    write_atomic(out / INFO_FILE, text.encode())
    return read_corpus(out)


def _table(clips: Sequence[Clip]) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name, (kind, _) in COLUMNS.items():
        columns[name] = _array(name, [getattr(clip, name) for clip in clips], kind)
    for name in sorted({key for clip in clips for key in clip.extra}):
        if name in COLUMNS:
            raise CorpusError("is a column of the contract and cannot be an extra one", field=name)
        values = [clip.extra.get(name) for clip in clips]
        columns[name] = _array(name, values, _extra_type(name, values))
    return pa.table(columns)


def _array(name: str, values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise CorpusError(f"cannot be stored as {kind}: {error}", field=name) from None


def _extra_type(name: str, values: list[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    for allowed, kind in (({int}, _INT), ({int, float}, _FLOAT), ({str}, _STRING)):
        if kinds <= allowed:
            return kind
    raise CorpusError(f"mixes {sorted(k.__name__ for k in kinds)}, expected only int, float or str", field=name)


def _record(info: CorpusInfo, root: str, clips_sha256: str) -> dict[str, Any]:
    examples: dict[str, list[str]] = defaultdict(list)
    for item in info.left_out:
        if len(examples[item["reason"]]) < EXAMPLES:
            examples[item["reason"]].append(item["row"])
    return {
        "name": info.name,
        "statement": info.statement,
        "emotions": info.emotions.to_dict(),
        "licence": info.licence,
        "citation": info.citation,
        "rater_task": info.rater_task,
        "builder_version": info.builder_version,
        "root": root,
        "clips_sha256": clips_sha256,
        "tables": dict(info.tables),
        "counts": dict(info.counts),
        "left_out": [
            {"reason": reason, "count": count, "examples": examples[reason]}
            for reason, count in reasons(info.left_out).items()
        ],
    }


_LEFT_OUT_FIELDS = ("row", "reason", "detail")


def _left_out_text(left_out: Sequence[Mapping[str, str]]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter="\t", lineterminator="\n")
    writer.writerow(_LEFT_OUT_FIELDS)
    writer.writerows([item.get(name, "") for name in _LEFT_OUT_FIELDS] for item in left_out)
    return sink.getvalue()


# --- reading


def read_corpus(folder: Path) -> Corpus:
    """The corpus in `folder`, held to the same contract as when it was written.

    Raises CorpusError (missing file, missing or wrongly typed column, files that do not belong together) or RowError,
    each with the command that rebuilds the folder.
    """
    record = _read_record(folder)
    cure = f"rebuild it with `{rebuild_command(folder, record)}`"
    root = folder if record["root"] == "." else Path(record["root"])
    try:
        data = (folder / CLIPS_FILE).read_bytes()
    except OSError as error:
        raise CorpusError(f"cannot be read: {error.strerror}", row=str(folder / CLIPS_FILE), cure=cure) from None
    fingerprint = hashlib.sha256(data).hexdigest()
    if not root.is_dir():
        raise CorpusError(f"audio root {root} does not exist", row=str(folder / INFO_FILE), field="root", cure=cure)
    info = _info(folder, record, cure)
    clips = _clips(data, folder / CLIPS_FILE, cure)
    try:
        check_clips(clips, info.emotions)
    except EquivoxError as error:
        raise type(error)(error.what, row=error.row, field=error.field, cure=error.cure or cure) from None
    if fingerprint != record["clips_sha256"]:
        what = "was changed after it was written (its sha256 is not the one in corpus.json)"
        raise CorpusError(what, row=str(folder / CLIPS_FILE), cure=cure)
    return Corpus(clips, info, root, fingerprint)


def reusable_corpus(
    out: Path, name: str, builder_version: str, tables: Mapping[str, str], root: Path | None = None
) -> Corpus | None:
    """The corpus in `out` if it is sound and the same builder wrote it from the same inputs, else None."""
    try:
        corpus = read_corpus(out)
    except EquivoxError:
        return None
    found = (corpus.info.name, corpus.info.builder_version, corpus.info.tables, corpus.root.resolve())
    return corpus if found == (name, builder_version, tables, (root or out).resolve()) else None


def rebuild_command(folder: Path, record: Mapping[str, Any]) -> str:
    """The command that makes `folder` again, as far as corpus.json tells."""
    root = record.get("root")
    source = "" if root in (None, ".") else f" --root {shlex.quote(str(root))}"
    return f"equivox prepare {record.get('name', 'CORPUS')}{source} --out {shlex.quote(str(folder))}"


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / INFO_FILE
    cure = f"build it with `{rebuild_command(folder, {})}`"
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise CorpusError("holds no corpus (no corpus.json)", row=str(folder), cure=cure) from None
    except (OSError, ValueError) as error:
        raise CorpusError(f"cannot be read: {error}", row=str(path), cure=cure) from None
    expected = ("root", "clips_sha256", *(field.name for field in fields(CorpusInfo)))
    for name in expected:
        if not isinstance(record, dict) or name not in record:
            raise CorpusError("is missing", row=str(path), field=name, cure=cure)
    return record


def _info(folder: Path, record: Mapping[str, Any], cure: str) -> CorpusInfo:
    path = folder / LEFT_OUT_FILE
    try:
        with path.open(newline="") as file:
            left_out = list(csv.DictReader(file, delimiter="\t"))
    except OSError as error:
        raise CorpusError(f"cannot be read: {error.strerror}", row=str(path), cure=cure) from None
    values = {field.name: record[field.name] for field in fields(CorpusInfo)}
    return CorpusInfo(**values | {"emotions": EmotionSet.from_dict(record["emotions"]), "left_out": left_out})


_FAMILIES: Mapping[pa.DataType, tuple[str, Callable[[pa.DataType], bool]]] = {
    # What the contract cares about is the family: pandas writes large_string and int32 where we write string and int64.
    _STRING: ("string", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)),
    _INT: ("integer", pa.types.is_integer),
    _FLOAT: ("float", pa.types.is_floating),
    _INTS: (
        "list of integers",
        lambda kind: (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_integer(kind.value_type),
    ),
}


def _clips(data: bytes, path: Path, cure: str) -> tuple[Clip, ...]:
    try:
        table = decode_table(data)
    except pa.ArrowException as error:
        raise CorpusError(f"is no parquet file: {error}", row=str(path), cure=cure) from None
    for name, (kind, nullable) in COLUMNS.items():
        if name not in table.column_names:
            extra = ", ".join(n for n in table.column_names if n not in COLUMNS)
            raise CorpusError(f"column is missing (other columns: {extra})", row=str(path), field=name, cure=cure)
        column, (family, belongs) = table[name], _FAMILIES[kind]
        empty = nullable and pa.types.is_null(column.type)  # a column of None only, as pandas writes it
        if not (belongs(column.type) or empty):
            raise CorpusError(f"column is {column.type}, expected {family}", row=str(path), field=name, cure=cure)
        if column.null_count and not nullable:
            raise CorpusError(f"column has {column.null_count} nulls", row=str(path), field=name, cure=cure)
    clips = []
    for row in table.to_pylist():
        known = {name: row.pop(name) for name in COLUMNS}
        if None in known["votes"]:
            raise RowError("hold a null", row=known["id"], field="votes", cure=cure)
        clips.append(Clip(**known | {"votes": tuple(known["votes"]), "extra": row}))
    return tuple(clips)


def split_clips(corpus: Corpus, fold: int, folds: int = FOLDS) -> dict[str, tuple[Clip, ...]]:
    """The clips of "train", "dev" and "test" when `fold` is held out; speakers never cross.

    test: the clips of fold `fold`. dev: a seeded half of the speakers of the next fold. train: everyone else. Fold 0's
    are what the `split` column stores. Raises CorpusError when the corpus has no such fold.
    """
    held = sorted({clip.fold for clip in corpus.clips})
    if held != list(range(folds)) or fold not in held:
        raise CorpusError(f"fold {fold} of {folds} was asked for, the corpus has folds {held}", field="fold")
    splits = split_of(corpus.clips, fold, folds)
    pairs = list(zip(corpus.clips, splits, strict=True))
    return {name: tuple(clip for clip, split in pairs if split == name) for name in ("train", "dev", "test")}
