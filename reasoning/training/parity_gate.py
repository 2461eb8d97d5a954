"""No GRPO step before trainer and rollouts agree, and none after they have parted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reasoning.errors import RolloutParityError
from reasoning.rollouts.parity import check_parity, swaps
from reasoning.rollouts.policy import Policy


class ParityGate(TrainerCallback):
    """Checks a trainer that samples from rollouts before its first step, at every resumption, and every `every` steps.

    rows: the training clips. every: 0 checks before the first step only. trained: whether the adapter was trained to
    hear before this run. Raises RolloutParityError in all ranks; figures go to the log as `parity/...`, and the table
    is printed at the first check and at one that fails.
    """

    def __init__(self, trainer: Any, rows: Sequence[Mapping[str, Any]], *, every: int, trained: bool) -> None:
        self.trainer, self.every, self.trained = trainer, every, trained
        self.policy = Policy(trainer._loaded, trainer._prompter, trainer._memory, trainer._level)
        self.cases = self.policy.cases(rows, swaps(rows))
        self._last = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check(state.global_step, show=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.every and state.global_step % self.every == 0 and state.global_step != self._last:
            self._check(state.global_step, show=False)

    def _sync(self) -> None:
        # Ranks that share one server must all have asked before one of them changes its weights.
        self.trainer.accelerator.wait_for_everyone()
        self.trainer._source.sync()

    def _check(self, step: int, *, show: bool) -> None:
        self._last = step
        source = self.trainer._source
        found = check_parity(
            self.policy, source.rollouts, self.cases, source.sampling, sync=self._sync, trained=self.trained, seed=step
        )
        for name, value in found.figures().items():
            self.trainer._metrics["train"][name].append(value)
        failure = None
        try:
            found.require()
        except RolloutParityError as error:
            failure = error
        failures = [error for error in gather_object([failure]) if error is not None]
        if (show and self.trainer.is_world_process_zero()) or failure:
            print(found.table(), flush=True)
        if failures:
            raise failure or failures[0]
