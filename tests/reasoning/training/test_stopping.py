"""What a stopped run keeps; that it resumes to the same adapter is tested in test_grpo.py."""

from __future__ import annotations

import inspect
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trl
from trl import GRPOTrainer

from reasoning.training.stopping import RandomState, save_where_it_stands


def draws():
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


def test_restored_generators_draw_again_what_they_drew():
    state = RandomState.now()
    first = draws()
    assert draws() != first
    state.restore()
    assert draws() == first


@pytest.mark.parametrize(
    ("step", "micro_step", "training"),
    [(0, 0, True), (2, 5, True), (2, 4, False)],  # nothing done yet; between two optimizer steps; evaluation
)
def test_no_checkpoint_is_written_where_none_could_be_resumed(tmp_path, step, micro_step, training):
    trainer = SimpleNamespace(
        state=SimpleNamespace(global_step=step),
        args=SimpleNamespace(output_dir=str(tmp_path), gradient_accumulation_steps=2),
        model=SimpleNamespace(training=training),
        _step=micro_step,
    )
    assert save_where_it_stands(trainer, RandomState.now()) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "text", "why"),
    [
        ("training_step", "self._step += 1", "a rollout that begins between two optimizer steps is told by _step"),
        ("_calculate_rewards", "if is_async_callable(reward_func)", "async rewards are awaited"),
        ("_calculate_rewards", "reward if reward is not None else torch.nan", "None leaves the sum of rewards"),
        ("_calculate_rewards", "rewards_per_func = gather(rewards_per_func)", "a rank must not raise before it"),
        ("_generate_and_score_completions", "self._pending_extra_logs.get(column", "what is read enters the table"),
        ("_save_checkpoint", "super()._save_checkpoint(model, trial)", "a checkpoint can be written on demand"),
        ("log", "metrics[key] = sum(valid) / len(valid)", "metrics not yet logged are means of what was appended"),
    ],
)
def test_trl_still_does_inside_what_stopping_and_the_guard_rely_on(method, text, why):
    source = " ".join(inspect.getsource(getattr(GRPOTrainer, method)).split())
    assert text in source, f"TRL {trl.__version__}: {method} no longer holds {text!r}, so: {why}"
