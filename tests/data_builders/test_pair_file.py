"""The pairs file comes back as written, and what does not fit a run is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_builders.pair_file import Pair, made_of, preference_rows, read_pairs, write_pairs
from data_builders.rows import read_corpus
from reasoning.errors import ConfigError, CorpusError, RowError

PAIR = Pair("s0_sad", "own", "<answer>Vote: sad", "no", 0.1, 1.0, 40, 3, (2, 0, 0, 0, 0, 6))
MADE = {"corpus": "tones", "emotions": ["sad", "other"], "level": "no_think"}
CLIP = {"id": "s0_sad", "votes": [2, 0, 0, 0, 0, 6], "audio": "/a.wav", "transcript": "a tone"}


@pytest.fixture
def path(tmp_path):
    write_pairs(tmp_path / "pairs.parquet", [PAIR, replace(PAIR, kind="contrast")], MADE)
    return tmp_path / "pairs.parquet"


def test_pairs_come_back_as_they_were_written_and_join_their_clips(path, tone_corpus):
    assert read_pairs(path) == ([PAIR, replace(PAIR, kind="contrast")], MADE)
    rows = preference_rows(path, [CLIP], MADE)
    assert rows[0] == {**CLIP, "chosen": PAIR.chosen, "rejected": "no", "kind": "own"}
    assert len(rows) == 2
    corpus = read_corpus(tone_corpus)
    assert made_of(corpus, "think") == {
        "corpus": "tones", "emotions": list(corpus.info.emotions.names), "level": "think"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("clip", "made", "error", "says"),
    [
        ({"id": "s1_sad"}, {}, RowError, r"\[s0_sad\] id: is not among the 1 clips"),
        ({"votes": [6, 0, 0, 0, 0, 2]}, {}, RowError, r"\[s0_sad\] votes: are \[6, 0, 0, 0, 0, 2\] here"),
        ({}, {"corpus": "crema_d"}, ConfigError, "made for corpus 'tones', this run has 'crema_d'"),
        ({}, {"level": "think"}, ConfigError, "made for level 'no_think', this run has 'think'"),
        ({}, {"emotions": ["other", "sad"]}, ConfigError, "made for emotions"),
    ],
)
def test_pairs_of_another_corpus_level_or_clip_are_refused(path, clip, made, error, says):
    with pytest.raises(error, match=says):
        preference_rows(path, [CLIP | clip], MADE | made)


def test_an_empty_answer_is_refused_with_its_side(tmp_path):
    write_pairs(tmp_path / "p.parquet", [replace(PAIR, rejected=" \n")], MADE)
    with pytest.raises(RowError, match=r"\[s0_sad\] rejected: is empty"):
        preference_rows(tmp_path / "p.parquet", [CLIP], MADE)


def test_a_file_that_is_missing_empty_or_something_else_is_one_error(tmp_path):
    write_pairs(tmp_path / "empty.parquet", [], MADE)
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    for name, says in (
        ("none", "cannot be read"),
        ("empty", "holds no pair"),
        ("text", "is no parquet file"),
        ("other", r"is no file of preference pairs \(kind, chosen"),
    ):
        with pytest.raises(CorpusError, match=says):
            read_pairs(tmp_path / f"{name}.parquet")
