"""When GRPO samples a new rollout, and so after which steps a checkpoint can be resumed to the same adapter.

TRL 1.16 (`GRPOTrainer._prepare_inputs`) keeps a rollout in memory for steps_per_generation x num_iterations
micro-steps, counted from the start of the process. A checkpoint holds no rollout: a resumed process counts from 0 and
samples at once. It repeats the run that it continues only where that one sampled anew as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.utils import RepeatSampler

WORKERS = "would encode each clip again, and go on with the votes of the first epoch"
"""Why data loaders of SFT and DPO run in the main process: the collator and its audio memory live there."""


@dataclass(frozen=True)
class RolloutSchedule:
    """Optimizer steps against rollouts.

    accumulation: micro-steps that one optimizer step adds up. reuse: micro-steps that one rollout serves.
    rollouts: whole rollouts in an epoch. steps: optimizer steps of the run.
    """

    accumulation: int
    reuse: int
    rollouts: int
    steps: int

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps in an epoch; the last adds up fewer micro-steps where they do not divide evenly."""
        return math.ceil(self.rollouts * self.reuse / self.accumulation)

    @classmethod
    def of(cls, args: Any, clips: int) -> RolloutSchedule:
        """The schedule that a GRPOConfig gives this many training clips."""
        reuse = args.steps_per_generation * args.num_iterations
        rollouts = clips // (args.generation_batch_size // args.num_generations)
        epoch = cls(args.gradient_accumulation_steps, reuse, rollouts, 0)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch.epoch_steps)
        return replace(epoch, steps=steps)

    def is_boundary(self, step: int) -> bool:
        """Whether a new rollout is sampled right after this step. An epoch ends with its last rollout used up."""
        return step % self.epoch_steps * self.accumulation % self.reuse == 0

    def between(self, save_steps: int) -> int | None:
        """The first step at which saving every `save_steps` would cut a rollout; None where it never does.

        The last step cuts nothing: there is no step left to resume.
        """
        return next((s for s in range(save_steps, self.steps, save_steps) if not self.is_boundary(s)), None)

    def nearest(self, save_steps: int) -> list[int]:
        """The nearest values of save_steps below and above this one that never cut a rollout."""
        below = next((s for s in range(save_steps - 1, 0, -1) if self.between(s) is None), None)
        above = next((s for s in range(save_steps + 1, self.steps + 1) if self.between(s) is None), None)
        return [s for s in (below, above) if s is not None]


class EpochSampler(Sampler[int]):
    """The order of clips of a sampler with a generator of its own, drawn for each epoch from seed + epoch.

    TRL's and transformers' samplers draw all epochs from one generator whose state no checkpoint holds in time: a run
    resumed in its second epoch would go through the clips in the order of the first.
    """

    def __init__(self, sampler: RepeatSampler | LengthGroupedSampler, seed: int, epoch: Callable[[], int]) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, epoch

    def __iter__(self) -> Iterator[int]:
        generator = getattr(self.sampler, "generator", None)  # TRL's has none where it does not shuffle
        if generator is not None:
            generator.manual_seed(self.seed + self.epoch())
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def same_when_resumed(sampler: Any, seed: int, epoch: Callable[[], int]) -> Any:
    """transformers' sampler, of clips of a length together the one whose order a resumed run repeats."""
    if not isinstance(sampler, LengthGroupedSampler):
        return sampler
    sampler.generator = torch.Generator()
    return EpochSampler(sampler, seed, epoch)
