"""equivox sft --config launch/configs/sft.yaml --data data/crema_d --output_dir runs/mine/sft

On several GPUs: equivox sft --config_file accelerate_configs/ddp.yaml --config ... (docs/scale.md).
Trains a LoRA adapter on written answers and on the votes; the same command resumes an interrupted run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.cli import run
from reasoning.errors import ConfigError


@dataclass
class AmbiguityArguments:
    """How the votes enter the loss and the written answer."""

    kl_weight: float = field(
        default=1.0, metadata={"help": "Weight of KL(votes || label readout) beside the cross-entropy on the answer."}
    )

    vote_target: str = field(
        default="any_label",
        metadata={
            "help": "What the cross-entropy asks for at the vote slot: any_label, whichever the KL wants, or "
            "drawn_vote, the one listener's vote that is written."
        },
    )

    share_digits: int = field(
        default=2,
        metadata={"help": "Digits that written shares are rounded to, 1 or 2. One is easier to keep to a sum of 1."},
    )

    traces: str | None = field(
        default=None,
        metadata={"help": "File of `equivox prepare cot`: the verified thinking that level think is trained to write."},
    )
    trace_weight: float = field(
        default=1.0, metadata={"help": "Weight of the thinking's tokens in the cross-entropy; the answer's weigh 1."}
    )

    def __post_init__(self) -> None:
        if not self.trace_weight >= 0:
            raise ConfigError(f"is {self.trace_weight}, expected 0 or more", field="trace_weight")
        from reasoning.training.objective import VOTE_TARGETS

        if self.vote_target not in VOTE_TARGETS:
            what = f"is {self.vote_target!r}, expected one of {', '.join(VOTE_TARGETS)}"
            raise ConfigError(what, field="vote_target")
        if self.share_digits not in (1, 2):
            raise ConfigError(f"is {self.share_digits}, expected 1 or 2", field="share_digits")
        if self.kl_weight < 0:
            raise ConfigError(f"is {self.kl_weight}, expected 0 or more", field="kl_weight")


def main(argv: list[str] | None = None) -> int:
    from trl import SFTConfig

    from launch.arguments import DataArguments, ModelArguments, parse

    train(*parse((DataArguments, ModelArguments, AmbiguityArguments, SFTConfig), argv, "equivox sft", __doc__))
    return 0


def train(data: Any, model: Any, ambiguity: AmbiguityArguments, args: Any) -> None:
    """Train and leave the adapter in args.output_dir; do nothing where it is already there."""
    from datasets import Dataset

    from launch.training import load_for_training, open_run, training_rows, with_thinking
    from reasoning.models.prompter import Prompter
    from reasoning.training.collate import AnswerCollator
    from reasoning.training.run_folder import RunRecorder, run_to_end
    from reasoning.training.sft import AmbiguitySFTTrainer

    folder = Path(args.output_dir)
    corpus, rows = training_rows(data)
    rows = with_thinking(rows, corpus, data.level, ambiguity.traces)
    if not open_run(args, data, model, ambiguity):
        return
    loaded = load_for_training(model, args)
    collator = AnswerCollator(
        Prompter(loaded, corpus.info.emotions),
        loaded.memory(data.memory_gib),
        level=data.level,
        seed=args.seed,
        share_digits=ambiguity.share_digits,
        vote_target=ambiguity.vote_target,
        max_length=args.max_length,
    )
    trainer = AmbiguitySFTTrainer(
        loaded,
        collator,
        kl_weight=ambiguity.kl_weight,
        trace_weight=ambiguity.trace_weight,
        args=args,
        train_dataset=Dataset.from_list(rows),
        callbacks=[RunRecorder(folder, loaded)],
    )
    run_to_end(trainer, folder, loaded)
    if trainer.is_world_process_zero():
        print(f"adapter in {folder}; next: equivox grpo --adapter {folder}, or equivox evaluate --adapter {folder}")


if __name__ == "__main__":
    run(main)
