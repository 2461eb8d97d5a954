"""equivox grpo --config launch/configs/grpo.yaml --data data/crema_d --adapter runs/my/sft --output_dir runs/my/grpo

On several GPUs: equivox grpo --config_file accelerate_configs/ddp.yaml --config ... (docs/scale.md).
Trains an adapter further on rewards of its own sampled answers; the same command resumes an interrupted run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.cli import run
from launch.rollouts import RolloutArguments, check_vllm, open_rollouts
from reasoning.errors import ConfigError
from reasoning.response import ShareGrid


@dataclass
class RewardArguments:
    """What is rewarded, and the vote distribution's weight."""

    rewards: list[str] = field(
        default_factory=lambda: ["rewards.distribution:closeness", "rewards.format:format"],
        metadata={"help": "Reward functions: file.py:function or package.module:function; weigh with reward_weights."},
    )
    kl_weight: float = field(
        default=0.0, metadata={"help": "Weight of KL(votes || label readout) at the vote slot of sampled answers."}
    )
    min_reward_spread: float = field(
        default=0.02, metadata={"help": "Groups whose rewards differ by less teach nothing and are left out."}
    )

    agreement_weight: float = field(
        default=0.0,
        metadata={
            "help": "0 to 1: how much less a clip's advantages count, the less its listeners agree; 0 weighs all alike."
        },
    )

    gold_traces: str | None = field(
        default=None,
        metadata={"help": "File of `equivox prepare cot`: at level think, one verified trace joins each clip's group."},
    )
    share_parts: int = field(
        default=100, metadata={"help": "Shares after such a trace are written in so many parts, as SFT wrote them."}
    )
    share_floor: float = field(default=0.0, metadata={"help": "The smallest of these Shares, as SFT wrote them."})

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ConfigError("is empty", field="rewards", cure="name at least one function")
        if self.kl_weight < 0:
            raise ConfigError(f"is {self.kl_weight}, expected 0 or more", field="kl_weight")
        if self.min_reward_spread < 0:
            raise ConfigError(f"is {self.min_reward_spread}, expected 0 or more", field="min_reward_spread")
        if not 0 <= self.agreement_weight <= 1:
            raise ConfigError(f"is {self.agreement_weight}, expected 0 to 1", field="agreement_weight")
        for name, default in (("share_parts", 100), ("share_floor", 0)):
            if self.gold_traces is None and getattr(self, name) != default:
                cure = "leave it out, or add --gold_traces FILE: sampled answers are written as SFT taught"
                raise ConfigError("is for the reference of gold_traces, which is not given", field=name, cure=cure)


def main(argv: list[str] | None = None) -> int:
    train(*read_options(argv, "equivox grpo", __doc__))
    return 0


def read_options(argv: list[str] | None, command: str, doc: str | None) -> tuple[Any, ...]:
    """(data, model, reward, rollout, args), checked, as `equivox grpo` and `equivox preflight` take them."""
    from trl import GRPOConfig

    from launch.arguments import DataArguments, ModelArguments, parse

    kinds = (DataArguments, ModelArguments, RewardArguments, RolloutArguments, GRPOConfig)
    options = parse(kinds, argv, command, doc)
    check_vllm(options[-1], options[-2])
    return options


def prepare(data: Any, model: Any, reward: RewardArguments, args: Any) -> tuple[Any, Any, list[dict[str, Any]], Any]:
    """(reward functions, corpus, rows with every column that they ask for, gold or None), all options checked."""
    from launch.grounding import check_thinking, gold_of, with_cue_levels
    from launch.training import check_grpo, check_saving, check_trackers, training_rows
    from reasoning.training.rewarding import asked_columns
    from rewards.loading import load_rewards

    functions = load_rewards(reward.rewards)
    check_trackers(args.report_to)
    check_grpo(args, len(functions))
    check_thinking(data.level, args.max_completion_length)
    corpus, rows = training_rows(data, model.adapter)
    check_saving(args, len(rows))
    with args.main_process_first(desc="measuring cues"):
        rows = with_cue_levels(rows, corpus, data, functions)
    grid_of(reward).check(len(corpus.info.emotions))
    gold = gold_of(rows, corpus, data.level, reward.gold_traces)
    for function in functions:
        asked_columns(function, rows[0].keys())
    return functions, corpus, rows, gold


def grid_of(reward: RewardArguments) -> ShareGrid:
    """Which Shares a reference is written with."""
    return ShareGrid(reward.share_parts, reward.share_floor)


def train(data: Any, model: Any, reward: RewardArguments, rollout: RolloutArguments, args: Any) -> None:
    """Train and leave the adapter in args.output_dir; do nothing where it is already there."""
    from launch.training import load_for_training, open_run
    from reasoning.models.prompter import Prompter
    from reasoning.training.gold import GoldGRPOTrainer
    from reasoning.training.grpo import AudioGRPOTrainer
    from reasoning.training.parity_gate import ParityGate
    from reasoning.training.run_folder import RunRecorder, run_to_end

    folder = Path(args.output_dir)
    functions, corpus, rows, gold = prepare(data, model, reward, args)
    if not open_run(args, corpus, data, model, reward, rollout):
        return
    loaded = load_for_training(model, args)
    rollouts = open_rollouts(loaded, rollout, args)
    trainer_class, extra = AudioGRPOTrainer, {}
    if gold is not None:
        trainer_class, extra = GoldGRPOTrainer, {"gold": gold, "grid": grid_of(reward)}
    try:
        trainer = trainer_class(
            loaded,
            Prompter(loaded, corpus.info.emotions),
            loaded.memory(data.memory_gib),
            functions,
            rows=rows,
            level=data.level,
            kl_weight=reward.kl_weight,
            min_reward_spread=reward.min_reward_spread,
            agreement_weight=reward.agreement_weight,
            rollouts=rollouts,
            args=args,
            callbacks=[RunRecorder(folder, loaded)],
            **extra,
        )
        if rollouts is not None:
            trained = model.adapter is not None
            trainer.add_callback(ParityGate(trainer, rows, every=rollout.parity_every, trained=trained))
        run_to_end(trainer, folder, loaded)
    finally:
        if rollouts is not None:
            rollouts.close()
    if trainer.is_world_process_zero():
        print(f"adapter in {folder}; next: equivox evaluate --adapter {folder}")


if __name__ == "__main__":
    run(main)
