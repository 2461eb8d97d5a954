"""`equivox preflight` on the shipped options: an estimate, the gate's table, and one error where not to train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import launch.preflight
import launch.rollouts
from launch import HOME
from launch.preflight import estimate_table, main
from reasoning.errors import ConfigError, RolloutParityError
from reasoning.models.prompter import Prompter
from reasoning.rollouts.transformers import TransformersRollouts
from reasoning.training.memory_estimate import Need

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
    found = {}

    def small(needed, args):
        found["peak"] = launch.preflight.peak(needed)
        return {"memory": (0.6 * found["peak"], found["peak"])}

    monkeypatch.setattr(launch.preflight, "memories", small)
    with pytest.raises(ConfigError, match=r"memory: .* GiB of memory are needed .*per_device_train_batch_size [421] "):
        main(options(trained_checkpoint, tmp_path / "run"))
    out = capsys.readouterr().out
    assert "DOES NOT FIT" in out
    assert "to lower it, any of:" in out
    assert "what the audio is worth" in out


@pytest.mark.parametrize(("free", "says"), [(16.0, "fits"), (11.0, "tight"), (9.9, "DOES NOT FIT")])
def test_the_verdict_allows_for_what_the_estimate_can_be_off(free, says):
    table = estimate_table([Need("all", 10 * 2**30, "always")], {"memory": (free * 2**30, 10.0 * 2**30)}, 0.0)
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
