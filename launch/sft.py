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
from reasoning.response import ShareGrid

SHARE_TARGETS = ("votes", "readout")


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

    share_target: str = field(
        default="votes",
        metadata={
            "help": "What the written Shares say: votes, the clip's own, or readout, what the label readout of "
            "--adapter says of the clip (self-distillation)."
        },
    )

    share_parts: int = field(
        default=100,
        metadata={
            "help": "Written shares divide 1, or what the floors leave of it, into so many parts: 100, 20, 10, 5, 4 "
            "and so on. Few are easier to add up to 1."
        },
    )

    share_floor: float = field(
        default=0.0,
        metadata={"help": "The smallest share that is written; share_parts divides what the floors leave of 1."},
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
        if self.trace_weight != 1 and self.traces is None:
            cure = "leave it out, or add --level think --traces FILE"
            raise ConfigError("weighs thinking, and no traces are given", field="trace_weight", cure=cure)
        from reasoning.training.objective import VOTE_TARGETS

        for name, known in (("vote_target", VOTE_TARGETS), ("share_target", SHARE_TARGETS)):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"is {value!r}, expected one of {', '.join(known)}", field=name)
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

    from launch.own_shares import check_own_shares, with_own_shares
    from launch.training import load_for_training, open_run, training_rows, with_thinking
    from reasoning.models.prompter import Prompter
    from reasoning.training.collate import AnswerCollator
    from reasoning.training.run_folder import RunRecorder, run_to_end
    from reasoning.training.sft import AmbiguitySFTTrainer, refuse_unserved

    refuse_unserved(args)
    folder = Path(args.output_dir)
    corpus, rows = training_rows(data, model.adapter)
    grid = ShareGrid(ambiguity.share_parts, ambiguity.share_floor)
    grid.check(len(corpus.info.emotions))
    rows = with_thinking(rows, corpus, data.level, ambiguity.traces)
    own_shares = ambiguity.share_target == "readout"
    if own_shares:
        check_own_shares(model.adapter)
    if not open_run(args, corpus, data, model, ambiguity):
        return
    loaded = load_for_training(model, args)
    memory = loaded.memory(data.memory_gib)
    if own_shares:
        rows = with_own_shares(rows, loaded, memory, corpus.info.emotions, data.level, args)
    collator = AnswerCollator(
        Prompter(loaded, corpus.info.emotions),
        memory,
        level=data.level,
        seed=args.seed,
        grid=grid,
        vote_target=ambiguity.vote_target,
        max_length=args.max_length,
    )
    collator.refuse_unfit(rows)
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
