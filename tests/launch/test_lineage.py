"""No speaker who is held out may have been heard: folds are checked along the runs that an adapter came by."""

from __future__ import annotations

import shutil

import pytest
import yaml

from data_builders.folds import some_speakers
from data_builders.rows import read_corpus, split_clips
from launch import evaluate
from launch.arguments import DataArguments
from launch.lineage import check_held_out, heard_speakers
from launch.training import training_rows
from reasoning.errors import ConfigError


@pytest.fixture
def run(tmp_path, tone_corpus):
    """run(name, fold, adapter): the folder of a run on the tones, as far as its options tell."""

    def make(name, fold, adapter=None, data=tone_corpus, speakers=None, **more):
        folder = tmp_path / name
        folder.mkdir()
        config = {"data": str(data), "fold": fold, "folds": 5, "adapter": None if adapter is None else str(adapter)}
        config |= {"speakers": speakers, **more}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return folder

    return make


def test_an_adapter_of_the_same_fold_passes_and_one_of_another_is_refused(run, tone_corpus):
    corpus, adapter = read_corpus(tone_corpus), run("sft", 1)
    check_held_out(adapter, corpus, 1, 5)
    check_held_out(None, corpus, 0, 5)
    with pytest.raises(
        ConfigError, match=r"sft\] adapter: was trained on fold 1 of 5: .*fold 0 of 5 holds out.*--fold 1"
    ):
        check_held_out(adapter, corpus, 0, 5)
    with pytest.raises(ConfigError, match="was trained on fold 1 of 5"):
        check_held_out(adapter, corpus, 1, 4)


def test_what_an_adapter_began_from_counts_and_so_does_the_run_of_a_checkpoint(run, tone_corpus):
    sft = run("sft", 1)
    grpo = run("grpo", 0, adapter=sft)
    (grpo / "checkpoint-6").mkdir()
    for adapter in (grpo, grpo / "checkpoint-6"):
        with pytest.raises(ConfigError, match=r"sft\] adapter: was trained on fold 1"):
            check_held_out(adapter, read_corpus(tone_corpus), 0, 5)


def test_speakers_that_an_adapter_was_trained_on_are_those_of_all_its_runs(run, tone_corpus):
    corpus = read_corpus(tone_corpus)
    train = split_clips(corpus, 0)["train"]
    first, second = ({clip.speaker for clip in some_speakers(train, part)} for part in ("0:0.4", "0.4:0.7"))
    sft = run("sft", 0, speakers="0:0.4")
    assert heard_speakers(sft, corpus) == first
    assert heard_speakers(run("dpo", 0, adapter=sft, speakers="0.4:0.7"), corpus) == first | second
    assert heard_speakers(None, corpus) == set()


def test_an_adapter_that_claims_to_have_begun_from_itself_ends_nothing(run, tone_corpus, tmp_path):
    check_held_out(run("self", 0, adapter=tmp_path / "self"), read_corpus(tone_corpus), 0, 5)


def test_another_corpus_and_an_adapter_that_nothing_tells_of_pass(run, tone_corpus, tmp_path):
    corpus = read_corpus(tone_corpus)
    elsewhere = shutil.copytree(tone_corpus, tmp_path / "elsewhere")
    check_held_out(run("gone", 1, data=tmp_path / "gone"), corpus, 0, 5)
    check_held_out(tmp_path / "downloaded", corpus, 0, 5)
    with pytest.raises(ConfigError, match="was trained on fold 1"):  # the same clips in another folder
        check_held_out(run("copied", 1, data=elsewhere), corpus, 0, 5)


def test_what_was_heard_is_known_by_the_clips_wherever_the_command_is_given(run, tone_corpus, tmp_path, monkeypatch):
    corpus = read_corpus(tone_corpus)
    told = {"data": "data/tones", "clips_sha256": corpus.fingerprint}
    run("sft", 1, **told)
    grpo = run("grpo", 0, adapter="sft", **told)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"sft.* was trained on fold 1"):
        check_held_out(grpo, corpus, 0, 5)


def test_an_adapter_from_before_the_corpus_was_prepared_anew_is_refused(run, tone_corpus):
    adapter = run("sft", 0, clips_sha256="of other clips")
    with pytest.raises(ConfigError, match=r"held other clips.*train anew"):
        check_held_out(adapter, read_corpus(tone_corpus), 0, 5)


def test_training_and_evaluation_refuse_before_a_model_is_loaded(run, tone_corpus, tmp_path):
    adapter = run("sft", 1)
    with pytest.raises(ConfigError, match="was trained on fold 1"):
        training_rows(DataArguments(data=str(tone_corpus), fold=0), str(adapter))
    out = tmp_path / "out"
    asked = [
        "--model",
        str(tmp_path / "none"),
        "--adapter",
        str(adapter),
        "--data",
        str(tone_corpus),
        "--out",
        str(out),
    ]
    with pytest.raises(ConfigError, match="was trained on fold 1"):
        evaluate.main(asked)
    assert not out.exists()
