"""equivox dpo --config launch/configs/dpo.yaml --data DATA --adapter runs/my/sft --pairs FILE --output_dir runs/my/dpo

On several GPUs: equivox dpo --config_file accelerate_configs/ddp.yaml --config ... (docs/scale.md).
Trains an adapter further on pairs of answers, as `equivox prepare preferences` makes them (docs/preferences.md); the
same command resumes an interrupted run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.cli import run
from reasoning.errors import ConfigError


@dataclass
class PreferenceArguments:
    """What is preferred, and the vote distribution's weight."""

    pairs: str = field(default="", metadata={"help": "Parquet file of pairs written by `equivox prepare preferences`."})
    kl_weight: float = field(
        default=0.0, metadata={"help": "Weight of KL(votes || label readout) at the vote slot of the chosen answers."}
    )

    def __post_init__(self) -> None:
        if self.kl_weight < 0:
            raise ConfigError(f"is {self.kl_weight}, expected 0 or more", field="kl_weight")


def main(argv: list[str] | None = None) -> int:
    from trl import DPOConfig

    from launch.arguments import DataArguments, ModelArguments, parse

    train(*parse((DataArguments, ModelArguments, PreferenceArguments, DPOConfig), argv, "equivox dpo", __doc__))
    return 0


def train(data: Any, model: Any, preference: PreferenceArguments, args: Any) -> None:
    """Train and leave the adapter in args.output_dir; do nothing where it is already there."""
    from data_builders.pair_file import made_of, preference_rows
    from launch.training import load_for_training, open_run, training_rows
    from reasoning.models.prompter import Prompter
    from reasoning.training.dpo import AudioDPOTrainer, refuse_unserved
    from reasoning.training.pairs import PairCollator
    from reasoning.training.run_folder import RunRecorder, run_to_end

    if not preference.pairs:
        cure = "--pairs FILE.parquet, as `equivox prepare preferences` wrote it"
        raise ConfigError("is missing", field="pairs", cure=cure)
    refuse_unserved(args)
    folder = Path(args.output_dir)
    corpus, clip_rows = training_rows(replace(data, limit=0), model.adapter)
    rows = preference_rows(Path(preference.pairs), clip_rows, made_of(corpus, data.level))
    some = {row["id"] for row in clip_rows[: data.limit or None]}
    rows = [row for row in rows if row["id"] in some]
    if not rows:
        raise ConfigError(f"none of the pairs is about the first {data.limit} clips", field="limit")
    if not open_run(args, corpus, data, model, preference):
        return
    loaded = load_for_training(model, args)
    collator = PairCollator(
        Prompter(loaded, corpus.info.emotions),
        loaded.memory(data.memory_gib),
        level=data.level,
        max_length=args.max_length,
    )
    collator.refuse_unfit(rows)
    trainer = AudioDPOTrainer(
        loaded,
        collator,
        rows=rows,
        kl_weight=preference.kl_weight,
        args=args,
        callbacks=[RunRecorder(folder, loaded)],
    )
    run_to_end(trainer, folder, loaded)
    if trainer.is_world_process_zero():
        print(f"adapter in {folder}; next: equivox grpo --adapter {folder}, or equivox evaluate --adapter {folder}")


if __name__ == "__main__":
    run(main)
