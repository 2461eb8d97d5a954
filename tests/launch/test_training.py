"""What the training commands share: rows of the right speakers, and ranks that know of each other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from data_builders.rows import read_corpus
from launch.arguments import DataArguments
from launch.training import check_ranks, training_rows
from reasoning.errors import ConfigError


def test_rows_are_the_training_speakers_of_the_fold_and_no_others(tone_corpus):
    corpus = read_corpus(tone_corpus)
    for fold in range(5):
        _, rows = training_rows(DataArguments(data=str(tone_corpus), fold=fold))
        held_out = {c.speaker for c in corpus.clips if c.fold == fold}
        assert rows
        assert not held_out & {row["speaker"] for row in rows}
    assert len(training_rows(DataArguments(data=str(tone_corpus), limit=7))[1]) == 7


def test_runs_on_two_parts_of_the_speakers_share_none_of_them(tone_corpus):
    parts = [training_rows(DataArguments(data=str(tone_corpus), speakers=part))[1] for part in ("0:0.7", "0.7:1")]
    first, second = ({row["speaker"] for row in rows} for rows in parts)
    assert len(first) > len(second) > 0
    assert not first & second
    with pytest.raises(ConfigError, match="speakers: is '7', expected FROM:TO"):
        DataArguments(data=str(tone_corpus), speakers="7")


def test_a_rank_that_believes_it_is_alone_is_stopped(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_ranks(SimpleNamespace(world_size=2))
    with pytest.raises(ConfigError, match=r"2 ranks were launched, but this one sees 1\. To mend: set use_cpu: true"):
        check_ranks(SimpleNamespace(world_size=1))


def test_a_misspelt_option_is_named_before_any_value_is_judged():
    from launch.sft import main

    with pytest.raises(ConfigError, match=r"--confg: is not a known option\. To mend: did you mean --config\?"):
        main(["--confg", "launch/configs/sft.yaml"])
