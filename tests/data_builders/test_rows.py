"""The corpus folder keeps its contract when written, when read, and when the disk or a hand gets in the way."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_builders.folds import place
from data_builders.rows import COLUMNS, CorpusInfo, check_clips, describe, read_corpus, split_clips, write_corpus
from reasoning.clips import Clip
from reasoning.emotions import CREMA_D
from reasoning.errors import CorpusError, RowError, StorageError


def made_up_clips() -> list[Clip]:
    """Six speakers with two clips each; one value of every optional column is None."""
    clips = [
        Clip(
            id=f"s{speaker}-{take}",
            audio=f"audio/s{speaker}-{take}.flac",
            duration_s=1.5 + take,
            transcript=None if take else "The surface is slick.",
            language="en",
            speaker=f"s{speaker}",
            sex=None if speaker == 5 else ("male", "female")[speaker % 2],
            age=None if speaker == 0 else 20 + speaker,
            split="train",
            fold=0,
            votes=(1, 0, 2, 0, take, 4),
            n_votes=7 + take,
            intended="sad" if take else None,
            source="human",
            extra={"level": "HI", "take": take, "snr_db": None if take else 20.5},
        )
        for speaker in range(6)
        for take in range(2)
    ]
    return place(clips)


@pytest.fixture
def clips() -> list[Clip]:
    return made_up_clips()


@pytest.fixture
def info(clips) -> CorpusInfo:
    return CorpusInfo(
        name="made_up",
        emotions=CREMA_D,
        licence="CC0",
        citation="nobody (2026)",
        rater_task="voice only",
        builder_version="1",
        tables={"votes.csv": "00ff"},
        counts=describe(clips),
        left_out=[{"row": f"x{i}", "reason": "no audio file", "detail": 'tab\t"quote"'} for i in range(9)],
        statement="human votes",
    )


def rewrite(folder: Path, change) -> None:
    """Apply `change` to the parquet table, as a hand-made edit would."""
    table = pq.read_table(folder / "clips.parquet")
    pq.write_table(change(table), folder / "clips.parquet")


def test_a_corpus_reads_back_as_it_was_written(tmp_path, clips, info):
    write_corpus(tmp_path, clips, info)
    corpus = read_corpus(tmp_path)
    assert corpus.clips == tuple(clips)
    assert corpus.info == info
    assert corpus.root == tmp_path


def test_the_same_rows_make_the_same_bytes(tmp_path, clips, info):
    for name in ("a", "b"):
        write_corpus(tmp_path / name, clips, info)
    for file in ("clips.parquet", "corpus.json", "left_out.tsv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_rows_are_flat_and_typed(tmp_path, clips, info):
    write_corpus(tmp_path, clips, info)
    schema = pq.read_schema(tmp_path / "clips.parquet")
    assert schema.names == [*COLUMNS, "level", "snr_db", "take"]
    assert not any(pa.types.is_struct(kind) or pa.types.is_null(kind) for kind in schema.types)


def test_corpus_json_counts_every_reason_and_stays_short(tmp_path, clips, info):
    write_corpus(tmp_path, clips, info)
    record = json.loads((tmp_path / "corpus.json").read_text())
    assert record["left_out"] == [{"reason": "no audio file", "count": 9, "examples": ["x0", "x1", "x2", "x3", "x4"]}]


def test_audio_is_found_under_the_recorded_root(tmp_path, clips, info):
    (tmp_path / "raw").mkdir()
    write_corpus(tmp_path / "out", clips, info, root=tmp_path / "raw")
    assert read_corpus(tmp_path / "out").root == tmp_path / "raw"
    (tmp_path / "raw").rmdir()
    with pytest.raises(
        CorpusError, match=r"audio root .*raw does not exist.*equivox prepare made_up --root .*raw --out"
    ):
        read_corpus(tmp_path / "out")


def test_every_fold_splits_the_whole_corpus_without_sharing_a_speaker(tmp_path, clips, info):
    write_corpus(tmp_path, clips, info)
    corpus = read_corpus(tmp_path)
    tested: set[str] = set()
    for fold in range(5):
        splits = split_clips(corpus, fold)
        assert sorted(c.id for part in splits.values() for c in part) == sorted(c.id for c in clips)
        speakers = [{c.speaker for c in part} for part in splits.values()]
        assert all(speakers)
        assert sum(map(len, speakers)) == 6
        tested |= {c.id for c in splits["test"]}
        if fold == 0:
            assert all(clip.split == name for name, part in splits.items() for clip in part)
    assert tested == {c.id for c in clips}
    with pytest.raises(CorpusError, match="fold 5 of 5"):
        split_clips(corpus, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"votes": (0, 0, 0, 0, 0, 0), "n_votes": 0}, r"\[s0-0\] n_votes"),
        ({"votes": (1, 1, 1, 1, 1, 1)}, "sum to 6 but n_votes is 7"),
        ({"votes": (8, -1, 0, 0, 0, 0)}, "not counts"),
        ({"votes": (7,)}, "1 counts for 6 emotions"),
        ({"id": "s1-0"}, r"\[s1-0\] id: is used by two rows"),
        ({"audio": "/etc/a.wav"}, "not a path inside the corpus root"),
        ({"audio": "../a.wav"}, "not a path inside the corpus root"),
        ({"duration_s": float("inf")}, "duration_s: is inf"),
        ({"fold": -1}, "fold: is -1"),
    ],
)
def test_a_row_that_breaks_the_contract_is_named_and_nothing_is_written(tmp_path, clips, info, change, message):
    with pytest.raises(RowError, match=message):
        write_corpus(tmp_path / "out", [replace(clips[0], **change), *clips[1:]], info)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["fold", "split"])
def test_a_speaker_in_two_folds_or_splits_is_refused(clips, where):
    moved = replace(
        clips[0],
        **{where: (clips[0].fold + 1) % 5 if where == "fold" else "dev" if clips[0].split != "dev" else "train"},
    )
    with pytest.raises(RowError, match="speaker s0 is in"):
        check_clips([moved, *clips[1:]], CREMA_D)


def test_extra_columns_of_mixed_kind_are_refused(tmp_path, clips, info):
    with pytest.raises(CorpusError, match=r"level: mixes \['int', 'str'\]"):
        write_corpus(tmp_path, [replace(clips[0], extra={"level": 3}), *clips[1:]], info)
    with pytest.raises(CorpusError, match="votes: is a column of the contract"):
        write_corpus(tmp_path, [replace(clips[0], extra={"votes": 3}), *clips[1:]], info)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named_with_the_command_that_rebuilds(tmp_path, clips, info, column):
    write_corpus(tmp_path, clips, info)
    rewrite(tmp_path, lambda t: t.rename_columns([f"{n}_old" if n == column else n for n in t.column_names]))
    with pytest.raises(
        CorpusError, match=rf"{column}: column is missing .*{column}_old.*equivox prepare made_up --out"
    ):
        read_corpus(tmp_path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("votes", pa.array(["7"] * 12), "votes: column is string, expected list of integers"),
        ("votes", pa.array([[1.0] * 6] * 12), "expected list of integers"),
        ("age", pa.array([1.5] * 12), "age: column is double, expected integer"),
        ("duration_s", pa.array(["1"] * 12), "expected float"),
        ("speaker", pa.array([None] + ["a"] * 11), "speaker: column has 1 nulls"),
    ],
)
def test_a_column_of_the_wrong_type_is_named_with_the_type_expected(tmp_path, clips, info, column, values, message):
    write_corpus(tmp_path, clips, info)
    rewrite(tmp_path, lambda t: t.set_column(t.column_names.index(column), column, values))
    with pytest.raises(CorpusError, match=message):
        read_corpus(tmp_path)


def test_rows_changed_by_hand_are_noticed(tmp_path, clips, info):
    write_corpus(tmp_path, clips, info)
    rewrite(tmp_path, lambda t: t.slice(1))
    with pytest.raises(CorpusError, match="was changed after it was written"):
        read_corpus(tmp_path)


def test_an_edit_that_breaks_a_row_names_the_row(tmp_path, clips, info):
    write_corpus(tmp_path, clips, info)
    rewrite(tmp_path, lambda t: t.set_column(t.column_names.index("n_votes"), "n_votes", pa.array([9] * 12)))
    with pytest.raises(RowError, match=r"\[s0-0\] votes: sum to 7 but n_votes is 9.*equivox prepare made_up"):
        read_corpus(tmp_path)


def test_a_folder_without_a_corpus_says_how_to_build_one(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no corpus \(no corpus.json\).*equivox prepare CORPUS --out"):
        read_corpus(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}'])
def test_a_broken_corpus_json_is_named(tmp_path, text):
    (tmp_path / "corpus.json").write_text(text)
    with pytest.raises(CorpusError, match=r"corpus\.json"):
        read_corpus(tmp_path)


@pytest.mark.parametrize("file", ["clips.parquet", "left_out.tsv"])
def test_a_corpus_that_lost_a_file_says_how_to_rebuild_it(tmp_path, clips, info, file):
    write_corpus(tmp_path, clips, info)
    (tmp_path / file).unlink()
    with pytest.raises(CorpusError, match=rf"{file}.*equivox prepare made_up"):
        read_corpus(tmp_path)


def test_a_full_disk_leaves_the_old_corpus_and_no_scraps(tmp_path, clips, info, monkeypatch):
    write_corpus(tmp_path, clips, info)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device.*free space"):
        write_corpus(tmp_path, clips[:-2], info)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_killed_between_the_two_files_is_never_read_as_a_corpus(tmp_path, clips, info, monkeypatch):
    write_corpus(tmp_path, clips, info)
    replace_file = Path.replace

    def killed(self, target):
        if Path(target).name == "corpus.json":
            raise KeyboardInterrupt
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path, clips[2:], info)
    with pytest.raises(CorpusError, match="was changed after it was written"):
        read_corpus(tmp_path)
    assert not list(tmp_path.glob(".*.part"))
