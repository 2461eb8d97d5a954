"""Where a GRPO run can be resumed, held against TRL's own buffering and its own order of clips."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import RandomSampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from reasoning.training.schedule import EpochSampler, RolloutSchedule, same_when_resumed


class Trainer(SimpleNamespace):
    """What TRL's `_prepare_inputs` touches, with rollouts that are only counted."""

    def __init__(self, steps_per_generation: int, num_iterations: int) -> None:
        super().__init__(
            model=SimpleNamespace(training=True),
            args=SimpleNamespace(steps_per_generation=steps_per_generation),
            num_iterations=num_iterations,
            _step=0,
            _buffered_inputs=None,
            rollouts=0,
        )

    def _generate_and_score_completions(self, batch):
        self.rollouts += 1
        return {"ids": torch.zeros(self.args.steps_per_generation, 1)}

    def micro_step(self) -> bool:
        """TRL's own decision; whether it sampled."""
        before = self.rollouts
        GRPOTrainer._prepare_inputs.__wrapped__(self, {})
        self._step += 1
        return self.rollouts > before


def sampling(trainer: Trainer, schedule: RolloutSchedule, first: int) -> list[tuple[int, int]]:
    """(step, micro-step in it) of each rollout from step `first` on, walking epochs as transformers' Trainer does."""
    found, in_epoch = [], schedule.rollouts * schedule.reuse
    for step in range(first, schedule.steps):
        done = step % schedule.epoch_steps * schedule.accumulation
        for micro in range(min(schedule.accumulation, in_epoch - done)):
            if trainer.micro_step():
                found.append((step, micro))
    return found


schedules = st.builds(
    lambda accumulation, per_generation, iterations, rollouts, extra: (
        per_generation,
        iterations,
        RolloutSchedule(accumulation, per_generation * iterations, rollouts, extra),
    ),
    *(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 5), st.integers(1, 40)),
)


@given(schedules)
@settings(max_examples=300)
def test_a_step_is_a_boundary_exactly_where_a_resumed_run_samples_as_the_uninterrupted_one_does(case):
    per_generation, iterations, schedule = case
    whole = sampling(Trainer(per_generation, iterations), schedule, 0)
    for step in range(1, schedule.steps):
        resumed = sampling(Trainer(per_generation, iterations), schedule, step)
        same = resumed == [place for place in whole if place[0] >= step]
        assert schedule.is_boundary(step) == same, step


@given(schedules, st.integers(1, 45))
def test_the_values_offered_instead_are_the_nearest_that_cut_no_rollout(case, save_steps):
    schedule = case[2]
    cut = [s for s in range(save_steps, schedule.steps, save_steps) if not schedule.is_boundary(s)]
    assert schedule.between(save_steps) == (cut[0] if cut else None)
    assume(cut)
    offered = schedule.nearest(save_steps)
    assert offered, "saving at the last step only cuts nothing"
    for value in range(1, schedule.steps + 1):
        if schedule.between(value) is None:
            assert any(abs(o - save_steps) <= abs(value - save_steps) for o in offered)
    assert all(schedule.between(o) is None for o in offered)


def test_a_schedule_counts_as_trl_and_trainer_do(tmp_path):
    args = GRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, num_generations=4, per_device_train_batch_size=8, num_iterations=2,
        gradient_accumulation_steps=2, steps_per_generation=4, num_train_epochs=3,
    )  # fmt: skip
    schedule = RolloutSchedule.of(args, 19)  # 8 clips a rollout of 32 completions: 2 rollouts, 3 clips left out
    assert (schedule.reuse, schedule.rollouts, schedule.epoch_steps, schedule.steps) == (8, 2, 8, 24)
    assert [step for step in range(1, 24) if schedule.is_boundary(step)] == [4, 8, 12, 16, 20]


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epochs_order_is_its_own_whatever_came_before(shuffle):
    now = {"epoch": 0}

    def sampler():
        trl = RepeatSampler(range(20), 2, batch_size=5, repeat_count=2, shuffle=shuffle, seed=7)
        return EpochSampler(trl, int(trl.seed), lambda: now["epoch"])

    went_on, orders = sampler(), []
    for now["epoch"] in range(3):
        orders.append(list(went_on))
        assert list(sampler()) == orders[-1]
        assert len(orders[-1]) == len(went_on) == 80
    assert (orders[0] != orders[1]) == shuffle
    assert orders[0] == list(RepeatSampler(range(20), 2, batch_size=5, repeat_count=2, shuffle=shuffle, seed=7))


def test_clips_of_a_length_together_come_in_an_epochs_own_order_too():
    lengths, now = [i % 7 for i in range(40)], {"epoch": 0}

    def sampler():
        return same_when_resumed(LengthGroupedSampler(4, lengths=lengths), 7, lambda: now["epoch"])

    went_on, orders = sampler(), []
    for now["epoch"] in range(3):
        orders.append(list(went_on))
        torch.rand(3)  # what training draws meanwhile
        assert list(sampler()) == orders[-1]
        assert sorted(orders[-1]) == list(range(40))
    assert orders[0] != orders[1] != orders[2]
    shuffled = RandomSampler(range(40))
    assert same_when_resumed(shuffled, 7, lambda: 0) is shuffled
