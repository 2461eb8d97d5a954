"""`equivox preflight` on the shipped options: an estimate, the gate's table, and one error where not to train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import launch.preflight
import launch.rollouts
from data_builders.rows import read_corpus, split_clips
from launch import HOME
from launch.grpo import prepare, read_options
from launch.preflight import Place, a_second, estimate_table, main, run_shape
from launch.training import load_for_training
from reasoning.errors import ConfigError, RolloutParityError
from reasoning.inference.server_engine import LocalCheckpoint
from reasoning.models.loading import load_model
from reasoning.models.prompter import Prompter
from reasoning.rollouts.transformers import TransformersRollouts
from reasoning.training.memory_estimate import ModelShape, Need, RunShape, needs, peak

CONFIG = str(HOME / "launch" / "configs" / "grpo.yaml")


def options(trained, out: Path, *more: str) -> list[str]:
    chosen = {
        "config": CONFIG, "model_name_or_path": trained.model, "data": trained.corpus, "output_dir": out, "lora_r": 4,
        "num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 60,
    }  # fmt: skip
    return [part for key, value in chosen.items() for part in (f"--{key}", str(value))] + list(more)


def test_a_sound_setup_prints_estimate_and_table_and_trains_nothing(trained_checkpoint, tmp_path, capsys):
    assert main(options(trained_checkpoint, tmp_path / "run")) == 0
    out = capsys.readouterr().out
    for part in (
        "weights of the base",
        "activations: 8 completions of 60 tokens, 4 prompts of ",
        "cache of generate: 16 completions",
    ):
        assert part in out
    assert "GiB free: fits" in out
    assert "each second of audio more" in out
    assert out.count("  pass") == 7
    assert "DIFFERS" not in out
    assert not (tmp_path / "run").exists()


def shape_of(given: list[str]) -> RunShape:
    data, model, reward, _, args = read_options(given, "equivox preflight", "")
    _, corpus, rows, _ = prepare(data, model, reward, args)
    prompter = Prompter(LocalCheckpoint.read(Path(model.model_name_or_path)), corpus.info.emotions)
    return run_shape(data, model, args, prompter, rows)


def test_the_projector_is_counted_as_trained_exactly_where_it_is(trained_checkpoint, tmp_path):
    """A fresh adapter and one that brings a projector, each frozen and trained: what the loaded run would train."""
    folder = tmp_path / "adapter"
    fresh = options(trained_checkpoint, tmp_path / "run")
    _, model, *_, args = read_options([*fresh, "--train_projector", "true"], "equivox preflight", "")
    load_for_training(model, args).model.save_pretrained(folder)
    for more in ([], ["--adapter", str(folder)]):
        for train_projector in ("false", "true"):
            given = [*fresh, *more, "--train_projector", train_projector]
            _, model, *_, args = read_options(given, "equivox preflight", "")
            parameters = load_for_training(model, args).model.parameters()
            assert shape_of(given).adapter == sum(p.numel() for p in parameters if p.requires_grad), given


def test_the_longest_prompt_is_that_of_the_trainer_to_one_token(trained_checkpoint, tmp_path):
    corpus = read_corpus(trained_checkpoint.corpus)
    loaded = load_model(trained_checkpoint.model)
    prompter, memory = Prompter(loaded, corpus.info.emotions), loaded.memory()
    clips = split_clips(corpus, 0)["train"]
    heard = memory.hear([corpus.root / clip.audio for clip in clips])
    lengths = [len(prompter.prompt_ids(c.transcript, h, "no_think")) for c, h in zip(clips, heard, strict=True)]
    shape = shape_of(options(trained_checkpoint, tmp_path / "run"))
    assert 0 <= shape.prompt - max(lengths) <= 1
    assert 0 <= shape.clip_tokens - sum(len(h.features) for h in heard) <= len(clips)


def test_a_second_of_audio_is_as_many_tokens_as_the_family_makes_of_it(trained_checkpoint, tmp_path):
    shape = shape_of(options(trained_checkpoint, tmp_path / "run"))
    model = ModelShape.read(trained_checkpoint.model)
    loaded = load_model(trained_checkpoint.model)
    waves = [np.zeros(seconds * 16_000, np.float32) for seconds in (2, 3)]
    two, three = (len(heard.features) for heard in loaded.memory().hear(waves))
    longer = replace(shape, prompt=shape.prompt + three - two)
    prompter = Prompter(loaded, read_corpus(trained_checkpoint.corpus).info.emotions)
    assert a_second(model, shape, prompter) == peak(needs(model, longer)) - peak(needs(model, shape))


class Deaf(TransformersRollouts):
    def logps(self, prompts, completions):
        silent = [
            replace(p, heard=replace(p.heard, features=torch.zeros_like(p.heard.features))) if p.heard else p
            for p in prompts
        ]
        return super().logps(silent, completions)


def test_a_broken_engine_is_one_error_that_names_the_part(trained_checkpoint, tmp_path, capsys, monkeypatch):
    def deaf(loaded, rollout, args):
        from reasoning.emotions import CREMA_D

        return Deaf(loaded, Prompter(loaded, CREMA_D))

    monkeypatch.setattr(launch.rollouts, "open_rollouts", deaf)
    with pytest.raises(RolloutParityError, match=r"log-probabilities, own audio: transformers and the trainer differ"):
        main(options(trained_checkpoint, tmp_path / "run"))
    assert "DIFFERS" in capsys.readouterr().out


def test_too_little_memory_is_an_error_after_the_gate_with_what_to_lower(
    trained_checkpoint, tmp_path, capsys, monkeypatch
):
    given = options(trained_checkpoint, tmp_path / "run")
    needed = peak(needs(ModelShape.read(trained_checkpoint.model), shape_of(given)))
    monkeypatch.setattr(launch.preflight, "memories", lambda args: [Place("memory", 0.6 * needed)])
    with pytest.raises(ConfigError, match=r"memory: .* GiB of memory are needed .*per_device_train_batch_size [421] "):
        main(given)
    out = capsys.readouterr().out
    assert "DOES NOT FIT" in out
    assert "to need less memory, any of:" in out
    assert "what the audio is worth" in out


@pytest.mark.parametrize(("free", "says"), [(16.0, "fits"), (11.0, "tight"), (9.9, "DOES NOT FIT")])
def test_the_verdict_allows_for_what_the_estimate_can_be_off(free, says):
    table = estimate_table([Need("all", 10 * 2**30, "always")], [Place("memory", free * 2**30)], 0.0)
    assert f"10.0 GiB at the worst moment, {free:.1f} GiB free: {says}\n" in table


def test_what_training_would_refuse_is_refused(trained_checkpoint, tmp_path):
    for more, says in (
        (("--max_completion_length", "1000"), r"\[.+\] prompt: needs \d+ prompt tokens"),
        (("--reward_weights", "1"), "1 weights for 2 rewards"),
        (("--limit", "1"), "one rollout"),
        (("--rewards", "nowhere.py:pay", "--reward_weights", "1"), "nowhere.py"),
        (("--report_to", "trackio"), "trackio"),
    ):
        with pytest.raises(Exception, match=says):
            main(options(trained_checkpoint, tmp_path / "run", *more))
