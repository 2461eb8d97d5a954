"""The gate in real GRPO runs on the trained checkpoint; rollouts come from a copy that knows only what it was sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from trl import GRPOConfig

from data_builders.rows import read_corpus, split_clips
from reasoning.errors import RolloutParityError
from reasoning.models.loading import add_adapter, load_model
from reasoning.models.prompter import Prompter
from reasoning.rollouts.rollouts import Synced
from reasoning.rollouts.transformers import TransformersRollouts
from reasoning.rollouts.weights import hub_name
from reasoning.training.grpo import AudioGRPOTrainer
from reasoning.training.parity_gate import ParityGate
from rewards.distribution import closeness


class Copy(TransformersRollouts):
    """generate() on another copy of the checkpoint. takes: how many syncs it follows before it ignores them."""

    takes = 1000

    def __init__(self, checkpoint, prompter) -> None:
        super().__init__(load_model(checkpoint), prompter)
        self.names = {hub_name(self.loaded.base, name): name for name, _ in self.loaded.base.named_parameters()}
        self.syncs = self.samples = 0

    def sync(self, tensors: Mapping[str, torch.Tensor]) -> Synced:
        self.syncs += 1
        if self.syncs <= self.takes:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    self.loaded.base.get_parameter(self.names[name]).copy_(tensor)
        return Synced(len(tensors), 0, 0.0, None)

    def sample(self, *args, **kwargs):
        self.samples += 1
        return super().sample(*args, **kwargs)


class NeverSynced(Copy):
    takes = 0


class LosesTrackAfterItsFirstRollout(Copy):
    """The gate syncs three times, the first step once more."""

    takes = 4


@pytest.fixture
def prepared(trained_checkpoint, tmp_path):
    corpus = read_corpus(trained_checkpoint.corpus)
    rows = [
        {
            "id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": list(c.votes),
            "emotions": list(corpus.info.emotions.names),
        }
        for c in split_clips(corpus, 0)["test"][:6]
    ]  # fmt: skip

    def prepare(engine: type[Copy], every: int) -> tuple[Any, Copy]:
        torch.manual_seed(0)
        loaded = add_adapter(load_model(trained_checkpoint.model), r=2, alpha=8, dropout=0.0, train_projector=False)
        prompter = Prompter(loaded, corpus.info.emotions)
        rollouts = engine(trained_checkpoint.model, prompter)
        args = GRPOConfig(
            str(tmp_path), max_steps=2, per_device_train_batch_size=8, num_generations=4, max_completion_length=60,
            use_cpu=True, bf16=False, activation_checkpointing=False, report_to=[], scale_rewards="none", seed=1,
            learning_rate=2e-2, logging_steps=1, save_strategy="no", temperature=1.5, disable_tqdm=True,
        )  # fmt: skip
        trainer = AudioGRPOTrainer(
            loaded, prompter, loaded.memory(), [closeness], rows=rows, level="no_think", kl_weight=0.3,
            min_reward_spread=0.0, rollouts=rollouts, args=args,
        )  # fmt: skip
        trainer.add_callback(ParityGate(trainer, rows, every=every, trained=True))
        return trainer, rollouts

    return prepare


def test_a_sound_engine_is_checked_before_every_step_logged_and_shown_once(prepared, capsys):
    trainer, _ = prepared(Copy, every=1)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "reward" in line]
    assert len(lines) == 2
    for line in lines:
        assert line["parity/log_probabilities_own_audio_mean"] < 1e-4
        assert line["parity/hearing_trainer"] > 3
        assert line["parity/change_gap"] < 1e-3
    assert capsys.readouterr().out.count("prompt token ids") == 1


def test_training_does_not_begin_with_rollouts_that_take_no_weights(prepared, capsys):
    trainer, rollouts = prepared(NeverSynced, every=0)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    with pytest.raises(RolloutParityError, match="a changed adapter, and back: transformers and the trainer differ"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert rollouts.samples == 1, "only the gate has sampled"
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters() if p.requires_grad)
    assert "DIFFERS" in capsys.readouterr().out


def test_training_stops_at_the_check_after_the_rollouts_lost_track(prepared):
    trainer, _ = prepared(LosesTrackAfterItsFirstRollout, every=1)
    with pytest.raises(RolloutParityError, match="differ"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_without_later_checks_a_run_goes_on(prepared):
    trainer, rollouts = prepared(LosesTrackAfterItsFirstRollout, every=0)
    trainer.train()
    assert trainer.state.global_step == 2
    assert rollouts.syncs == 5
