"""Where GRPO's completions come from: the trainer's own model, or rollouts that are kept at its weights.

Seeds of rollouts: one for each (run's seed, step, clip), and sample j of the clip's group adds j, which is how vLLM
seeds the n samples of one request. So a sample depends neither on its neighbours, nor on which rank asks for it, nor on
what was sampled before, and a run that is resumed asks with the same seeds again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor

from reasoning.inference.asking import request_seed
from reasoning.models.generating import generate_ids
from reasoning.models.loading import Loaded
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.rollouts.rollouts import Prompt, Rollouts, Sampling, Synced

Drawn = tuple[list[list[int]], list[list[float]] | None]
"""Token ids of each completion, end-of-turn token included, and their log-probabilities as drawn, where known."""


class Source(Protocol):
    """Draws completions by the weights of the present step."""

    def draw(self, prompts: Sequence[Prompt], step: int) -> Drawn:
        """A completion for each prompt, which stands there once for each of its samples, one after the other."""
        ...


class FromTransformers:
    """Completions by transformers' generate on the trainer's model, from the process's random state.

    whole: a context in which the model can be called outside of training. options: further ones of generate.
    """

    def __init__(
        self,
        loaded: Loaded,
        prompter: Prompter,
        sampling: Sampling,
        whole: Callable[[], AbstractContextManager[Any]],
        options: Mapping[str, Any],
    ) -> None:
        self.loaded, self.prompter, self.sampling, self.whole, self.options = loaded, prompter, sampling, whole, options

    def draw(self, prompts: Sequence[Prompt], step: int) -> Drawn:
        """Each clip's prompt is computed once for all its samples; log-probabilities are the trainer's own."""
        asked, n = once_each(prompts)
        with self.whole():
            ids = generate_ids(
                self.loaded,
                prompt_batch(self.prompter, [p.ids for p in asked], [p.heard for p in asked]),
                samples=n,
                max_new_tokens=self.sampling.max_new_tokens,
                do_sample=True,
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                top_k=self.sampling.top_k,
                min_p=self.sampling.min_p or None,
                repetition_penalty=self.sampling.repetition_penalty,
                **self.options,
            )
        return ids, None


class FromRollouts:
    """Completions by rollouts that get the trainer's weights whenever a step has changed them.

    tensors: what training touched (`weights.Touched`). group: samples of a clip over all ranks. synced: what this
    rank sent at the last draw, None where nothing had changed or another rank sends.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        tensors: Mapping[str, Tensor],
        sampling: Sampling,
        accelerator: Accelerator,
        *,
        seed: int,
        group: int,
    ) -> None:
        self.rollouts, self.tensors, self.sampling, self.accelerator = rollouts, tensors, sampling, accelerator
        self.seed, self.group = seed, group
        self.synced: Synced | None = None
        self._step, self._nth = -1, 0

    def draw(self, prompts: Sequence[Prompt], step: int) -> Drawn:
        """Each prompt is sent once, with its audio once. Raises what the rollouts raise."""
        self.synced = None
        self._nth = self._nth + 1 if step == self._step else 0
        if step != self._step:
            self.sync()
            self._step = step
        asked, n = once_each(prompts)
        first = self.accelerator.process_index * len(prompts)
        seeds = [
            request_seed(self.seed, f"{step}/{self._nth}/{prompt.row}") + (first + i * n) % self.group
            for i, prompt in enumerate(asked)
        ]
        samples = [s for drawn in self.rollouts.sample(asked, n, seeds, self.sampling) for s in drawn]
        return [s.ids for s in samples], [s.logps for s in samples]

    def sync(self) -> None:
        """Give the rollouts the trainer's present weights; called by all ranks."""
        self.synced = self.rollouts.sync(self.tensors)
        self.accelerator.wait_for_everyone()


def once_each(prompts: Sequence[Prompt]) -> tuple[list[Prompt], int]:
    """(prompts without their repetitions, how often each stands there); all of them and 1 where that differs."""
    runs = [len(list(same)) for _, same in groupby(prompt.row for prompt in prompts)]
    n = runs[0] if len(set(runs)) == 1 else 1
    return list(prompts[::n]), n


def sampling_of(args: Any) -> Sampling:
    """How a GRPOConfig says that completions are drawn."""
    return Sampling(
        int(args.max_completion_length or 0),
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p or 0.0,
        repetition_penalty=args.repetition_penalty,
    )
