"""What a stopped run keeps; that it resumes to the same adapter is tested in test_grpo.py."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

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
