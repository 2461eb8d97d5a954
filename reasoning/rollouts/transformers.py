"""Rollouts by transformers' generate in the trainer's own process and on its own weights.

Training samples with the same `generate_ids`, all prompts of a step at once. This class asks prompt by prompt and
listens in, so that the parity gate can hold what generate draws from, step by step through its cache, against the
answer head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from reasoning.models.generating import generate_ids, stop_ids
from reasoning.models.loading import Loaded
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.rollouts.parity import Received
from reasoning.rollouts.rollouts import Prompt, Sample, Sampling, Synced


class TransformersRollouts:
    """Rollouts on a loaded model. It samples from the trainer's weights as they are: nothing has to be synced."""

    name = "transformers"
    hears = False
    lora_rank = 0

    def __init__(self, loaded: Loaded, prompter: Prompter) -> None:
        self.loaded, self.prompter = loaded, prompter
        self.dtype = str(loaded.base.dtype).removeprefix("torch.")
        self.max_tokens: int = loaded.base.config.get_text_config().max_position_embeddings

    def sample(self, prompts: Sequence[Prompt], n: int, seeds: Sequence[int], sampling: Sampling) -> list[list[Sample]]:
        """n completions of each prompt, drawn together from its seed. logps: before top_p, top_k and min_p."""
        ends = stop_ids(self.loaded)
        drawn = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            heard = _Drawn(sampling.temperature)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                rows = generate_ids(
                    self.loaded,
                    prompt_batch(self.prompter, [prompt.ids], [prompt.heard]),
                    samples=n,
                    max_new_tokens=sampling.max_new_tokens,
                    do_sample=True,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    min_p=sampling.min_p or None,
                    repetition_penalty=sampling.repetition_penalty,
                    logits_processor=LogitsProcessorList([heard]),
                )
            logps = heard.logps(rows)
            drawn.append([Sample(ids, lp, ids[-1] not in ends) for ids, lp in zip(rows, logps, strict=True)])
        return drawn

    def logps(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """Nats of each completion's tokens by the model's ordinary forward: one whole row, no cache, no answer head."""
        return [self._logps(p, list(c)) for p, c in zip(prompts, completions, strict=True)]

    @torch.no_grad()
    def _logps(self, prompt: Prompt, completion: list[int]) -> list[float]:
        base = cast(Any, self.loaded.base)
        batch = prompt_batch(self.prompter, [prompt.ids + completion], [prompt.heard])
        logits = base(**{k: v.to(base.device) for k, v in batch.items()}, use_cache=False).logits[0]
        before = logits[len(prompt.ids) - 1 : -1].float().log_softmax(-1)
        return before.gather(1, torch.tensor(completion, device=before.device)[:, None])[:, 0].tolist()

    @torch.no_grad()
    def received(self, prompts: Sequence[Prompt]) -> list[Received]:
        """Each prompt's ids and what stands in the placeholders' places where the language model begins."""
        return [Received(prompt.ids, self._audio_rows(prompt)) for prompt in prompts]

    def _audio_rows(self, prompt: Prompt) -> Tensor | None:
        if prompt.heard is None:
            return None
        base = cast(Any, self.loaded.base)
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            seen.append(kwargs["inputs_embeds"])

        hook = base.base_model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            batch = prompt_batch(self.prompter, [prompt.ids], [prompt.heard])
            base.base_model(**{k: v.to(base.device) for k, v in batch.items()}, use_cache=False)
        finally:
            hook.remove()
        placeholder = self.loaded.tokenizer.convert_tokens_to_ids(self.loaded.family.audio_token)
        return seen[0][0][torch.tensor(prompt.ids, device=seen[0].device) == placeholder].float().cpu()

    def sync(self, tensors: Mapping[str, Tensor]) -> Synced:
        """Nothing: the weights are the trainer's."""
        return Synced(0, 0, 0.0, None)

    def close(self) -> None:
        """Nothing was started."""


class _Drawn(LogitsProcessor):
    """Notes the log-probability of each token that generate draws, one step late, without keeping any logits."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._ahead: Tensor | None = None
        self._columns: list[Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self._ahead is not None:
            self._columns.append(self._ahead.gather(1, input_ids[:, -1:])[:, 0].cpu())
        self._ahead = (scores.float() / self.temperature).log_softmax(-1)
        return scores

    def logps(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Of the completions that were written, each up to its own end."""
        assert self._ahead is not None
        steps = len(self._columns) + 1
        last = torch.tensor([[ids[-1]] for ids in rows], device=self._ahead.device)
        table = torch.stack([*self._columns, self._ahead.gather(1, last)[:, 0].cpu()], dim=1)
        # The last column is of the last token of those rows that were still being written when generate stopped.
        assert max(len(ids) for ids in rows) == steps
        return [table[i, : len(ids)].tolist() for i, ids in enumerate(rows)]
