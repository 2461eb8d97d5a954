"""What level think adds to GRPO's rows, and what is refused before anything is written."""

from __future__ import annotations

import pytest
from datasets import Dataset

from data_builders.traces.measured import corpus_cues
from data_builders.traces.trace_file import TraceRow, write_traces
from launch import HOME
from launch.arguments import DataArguments
from launch.grounding import check_thinking, gold_of, with_cue_levels
from launch.grpo import main
from launch.training import training_rows
from reasoning.cues import CUES
from reasoning.errors import ConfigError, CorpusError
from rewards.distribution import closeness
from rewards.grounding import grounding


def test_cues_join_the_rows_only_where_a_reward_asks_for_them(tone_corpus):
    data = DataArguments(data=str(tone_corpus), level="think", limit=6)
    corpus, rows = training_rows(data)
    assert with_cue_levels(rows, corpus, data, [closeness]) is rows
    assert with_cue_levels(rows, corpus, DataArguments(data=str(tone_corpus)), [closeness]) is rows
    cues = corpus_cues(corpus, tone_corpus)
    # As the trainer keeps its rows: columns that Arrow changed would be judged otherwise than they were measured.
    for row in Dataset.from_list(with_cue_levels(rows, corpus, data, [closeness, grounding])):
        assert row["cue_levels"] == {name: cues[row["id"]][name].level for name in CUES}
        for cue, shares in row["cue_shares"].items():
            met = [level for r in rows if (level := cues[r["id"]][cue].level) is not None]
            assert shares == [met.count(level) / len(met) for level in (-2, -1, 0, 1, 2)]


def test_a_clip_of_which_nothing_could_be_measured_has_no_cues_to_be_judged_by(tone_corpus, monkeypatch):
    from reasoning.cues import Cue

    data = DataArguments(data=str(tone_corpus), level="think", limit=2)
    corpus, rows = training_rows(data)
    gaps = {clip.id: dict.fromkeys(CUES, Cue(gap="no_speech")) for clip in corpus.clips}
    monkeypatch.setattr("launch.grounding.corpus_cues", lambda *_: gaps)
    assert [row["cue_levels"] for row in with_cue_levels(rows, corpus, data, [grounding])] == [None, None]


def test_verified_traces_of_the_rows_become_their_references(tone_corpus, tmp_path, capsys):
    data = DataArguments(data=str(tone_corpus), level="think", limit=6)
    corpus, rows = training_rows(data)
    file = tmp_path / "traces.parquet"
    verdicts = ["kept", "kept", "rejected"]
    write_traces(
        file, [TraceRow(r["id"], r["id"], "t", False, v, ()) for r, v in zip(rows, verdicts, strict=False)], corpus
    )
    assert gold_of(rows, corpus, "think", None) is None
    assert gold_of(rows, corpus, "think", str(file)) == {row["id"]: row["id"] for row in rows[:2]}
    assert "2 of 6 training clips have a verified trace in their group" in capsys.readouterr().out
    with pytest.raises(CorpusError, match="no verified trace of the 3 training clips"):
        gold_of(rows[3:], corpus, "think", str(file))


def test_an_answer_that_leaves_no_room_to_think_is_refused():
    check_thinking("no_think", 80)
    check_thinking("think", 320)
    with pytest.raises(ConfigError, match=r"max_completion_length: is 80.*--max_completion_length 320"):
        check_thinking("think", 80)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rewards": "rewards.grounding:grounding"}, "grounding judges what is said about the voice"),
        ({"gold_traces": "some.parquet"}, "gold_traces: is for level think, not no_think"),
        ({"level": "think"}, "max_completion_length: is 80"),
        ({"gold_traces": "some.parquet", "share_parts": "3"}, "share_parts: is 3"),
        ({"share_parts": "4"}, "share_parts: is for the reference of gold_traces"),
        ({"share_floor": "0.08"}, "share_floor: is for the reference of gold_traces"),
    ],
)  # fmt: skip
def test_what_would_not_do_what_it_says_is_refused_before_anything_is_written(tone_corpus, tmp_path, changes, says):
    out = tmp_path / "run"
    options = {"config": HOME / "launch/configs/grpo.yaml", "data": tone_corpus, "output_dir": out} | changes
    if "rewards" in changes:
        options["reward_weights"] = 0
    with pytest.raises(ConfigError, match=says):
        main([part for key, value in options.items() for part in (f"--{key}", str(value))])
    assert not out.exists()
