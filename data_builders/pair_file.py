"""The file of preference pairs: one row a pair, what it was made from in its metadata.

write_pairs(Path("pairs.parquet"), pairs, made_of(corpus, "no_think"))
rows = preference_rows(Path("pairs.parquet"), training_rows, corpus_name, level)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_builders.rows import Corpus
from data_builders.tables import read_records, write_records
from reasoning.errors import ConfigError, CorpusError, RowError

COMMAND = "equivox prepare preferences"


@dataclass(frozen=True)
class Pair:
    """Two answers to one clip, `chosen` nearer to its votes or truer of its sound than `rejected`.

    id: the clip's. kind: how the pair was made, one of those of data_builders.preferences. chosen_bits, rejected_bits:
    jsd_bits of the written Shares to the votes, 1 where they cannot be read. tokens: of each answer, for the balance of
    lengths. votes: the clip's, by which a reader knows that the pair belongs to its corpus.
    """

    id: str
    kind: str
    chosen: str
    rejected: str
    chosen_bits: float
    rejected_bits: float
    chosen_tokens: int
    rejected_tokens: int
    votes: tuple[int, ...]


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "kind", "chosen", "rejected")),
        *((name, pa.float64()) for name in ("chosen_bits", "rejected_bits")),
        *((name, pa.int64()) for name in ("chosen_tokens", "rejected_tokens")),
        ("votes", pa.list_(pa.int64())),
    ]
)


def made_of(corpus: Corpus, level: str) -> dict[str, Any]:
    """What a pairs file says of itself: the corpus, its emotions in order, and the prompt level of its answers."""
    return {"corpus": corpus.info.name, "emotions": list(corpus.info.emotions.names), "level": level}


def write_pairs(path: Path, pairs: Sequence[Pair], made_from: Mapping[str, Any]) -> None:
    """Write the pairs, whole or not at all. made_from: as `made_of` gives it."""
    write_records(path, pairs, _SCHEMA, made_from)


def read_pairs(path: Path) -> tuple[list[Pair], dict[str, Any]]:
    """(the pairs, what they were made of). Raises CorpusError when the file is missing, empty or something else."""
    cure = f"make one with `{COMMAND} ... --out {path}`"
    rows, made_from = read_records(path, _SCHEMA, "preference pairs", "pairs", cure)
    pairs = [Pair(**{**row, "votes": tuple(row["votes"])}) for row in rows]
    if not pairs:
        cure = "see the .json beside it for why every pair was left out; lower a margin or take more clips"
        raise CorpusError("holds no pair", row=str(path), field="pairs", cure=cure)
    return pairs, made_from


def preference_rows(
    path: Path, clip_rows: Sequence[Mapping[str, Any]], made_from: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The training rows of the pairs in `path`: each clip's row with `chosen`, `rejected` and `kind`.

    clip_rows: the clips that may be trained on. Raises ConfigError when the file was made of another corpus or level
    than `made_from`; RowError when a pair is about a clip that is not among clip_rows, has other votes or is empty.
    """
    pairs, found = read_pairs(path)
    for key, expected in made_from.items():
        if found.get(key) != expected:
            what = f"{path} was made for {key} {found.get(key)!r}, this run has {expected!r}"
            raise ConfigError(what, field="pairs", cure=f"give the same --data and level as to `{COMMAND}`")
    by_id = {row["id"]: row for row in clip_rows}
    rows = []
    for pair in pairs:
        row = by_id.get(pair.id)
        if row is None:
            what = f"is not among the {len(by_id)} clips that this run may train on, but {path} has a pair about it"
            raise RowError(
                what, row=pair.id, field="id", cure="give the same --fold and --data as the pairs were made of"
            )
        if tuple(row["votes"]) != pair.votes:
            what = f"are {list(row['votes'])} here and {list(pair.votes)} in {path}"
            raise RowError(what, row=pair.id, field="votes", cure=f"run `{COMMAND}` on this corpus again")
        for side in ("chosen", "rejected"):
            if not getattr(pair, side).strip():
                raise RowError("is empty", row=pair.id, field=side, cure="drop the pair")
        rows.append({**row, "chosen": pair.chosen, "rejected": pair.rejected, "kind": pair.kind})
    return rows
