"""What is kept when a reward stops a run: the rollout it failed on, every metric so far, and a checkpoint to resume."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import gather_object

from reasoning.errors import RewardError
from reasoning.files import write_atomic
from reasoning.response import Reading


@dataclass(frozen=True)
class RandomState:
    """Where the generators stood: a checkpoint written after a rollout holds those from before it."""

    python: Any
    numpy: Any
    torch: torch.Tensor
    cuda: list[torch.Tensor]

    @classmethod
    def now(cls) -> RandomState:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)  # noqa: NPY002

    def restore(self) -> None:
        """Put the generators back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


def rollout_rows(
    inputs: Sequence[Mapping[str, Any]],
    completions: Sequence[str],
    readings: Sequence[Reading],
    paid: Mapping[str, Sequence[float | None] | None],
) -> list[dict[str, Any]]:
    """A row a completion: its clip, text and reading, and what each reward paid, None for a reward that did not."""
    return [
        {
            "clip": row["id"],
            "audio": row["audio"],
            "votes": row["votes"],
            "completion": text,
            "shares": reading.probabilities,
            "problems": ", ".join(reading.problems),
            **{name: values and values[i] for name, values in paid.items()},
        }
        for i, (row, text, reading) in enumerate(zip(inputs, completions, readings, strict=True))
    ]


def stopped(trainer: Any, failure: RewardError, rows: list[dict[str, Any]], before_rollout: RandomState) -> RewardError:
    """The error to raise, once this rank's rows, the metrics not yet logged and a checkpoint are on disk.

    Called by all ranks. The rows of all go to completions/failed_STEP.parquet, STEP being the one that did not happen.
    A line of metrics written here also counts the failed rollout's lengths and problems, but not its rewards.
    """
    path = Path(trainer.args.output_dir) / "completions" / f"failed_{trainer.state.global_step + 1:05d}.parquet"
    rows = gather_object(rows)
    if trainer.accelerator.is_main_process:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        write_atomic(path, buffer.getvalue())
    if trainer._metrics["train"].get("reward"):
        trainer.log({})
    checkpoint = save_where_it_stands(trainer, before_rollout)
    cure = f"{failure.cure or 'look at the completion and the reward'}; the rollout is in {path}"
    cure += f", and the same command goes on from {checkpoint.name}" if checkpoint else ""
    return RewardError(failure.what, row=failure.row, field=failure.field, cure=cure)


def save_where_it_stands(trainer: Any, before_rollout: RandomState) -> Path | None:
    """A checkpoint of the last finished step, as if no rollout had begun since; None where nothing is finished.

    Called by all ranks at the start of a rollout. Where a rollout begins between two optimizer steps there is no state
    that a run can resume from, and the last regular checkpoint stays the newest.
    """
    step, folder = trainer.state.global_step, Path(trainer.args.output_dir)
    checkpoint = folder / f"checkpoint-{step}"
    if not trainer.model.training or step == 0 or trainer._step % trainer.args.gradient_accumulation_steps:
        return None
    there = (checkpoint / "trainer_state.json").is_file()
    trainer.accelerator.wait_for_everyone()  # no rank may write it before the last has looked
    if not there:
        before_rollout.restore()
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    return checkpoint
