"""The trainer's side of the parity gate: prompts, features, log-probabilities, and a passing change of its adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from reasoning.models.answer_head import Completions
from reasoning.models.loading import Loaded
from reasoning.models.memory import AudioMemory
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.rollouts.rollouts import Prompt

CHANGE = 0.2
"""How far `Policy.changed` moves a weight, as a share of the weight's own size: felt, without wrecking the model."""


@dataclass(frozen=True)
class Case:
    """A clip's question with its own sound, and the same words with another clip's sound."""

    true: Prompt
    swapped: Prompt


class Policy:
    """What training computes with: the answer head, each prompt once for its completions, nothing autocast.

    The loaded model must have the answer head. dtype: of its weights.
    """

    def __init__(self, loaded: Loaded, prompter: Prompter, memory: AudioMemory, level: str) -> None:
        self.loaded, self.prompter, self.memory, self.level = loaded, prompter, memory, level
        self.dtype = str(loaded.base.dtype).removeprefix("torch.")

    def cases(self, rows: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[int, int]]) -> list[Case]:
        """A case for each (clip, whose sound takes the place of its own)."""
        return [Case(self._prompt(rows[i], rows[i]), self._prompt(rows[i], rows[j])) for i, j in pairs]

    def _prompt(self, row: Mapping[str, Any], sound: Mapping[str, Any]) -> Prompt:
        path = Path(sound["audio"])
        (heard,) = self.memory.hear([path], [sound["id"]])
        ids = self.prompter.prompt_ids(row["transcript"], heard, self.level)
        return Prompt(row["id"], ids, row["transcript"], self.level, path, heard)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens written out."""
        return self.prompter.tokenizer.decode(list(ids))

    @torch.no_grad()
    def audio(self, prompt: Prompt) -> Tensor:
        """(tokens, hidden), float32 on the CPU: what the projector makes of what the tower heard."""
        assert prompt.heard is not None
        projector = self.loaded.projector
        weight = next(projector.parameters())
        return projector(prompt.heard.features.to(weight)).float().cpu()

    @torch.no_grad()
    def logps(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[list[float]]:
        """Nats of each completion's tokens after its prompt. Neighbours with one prompt share its pass."""
        found: list[list[float]] = []
        # The base and not what accelerate wrapped around it: that would autocast, and hide an error behind rounding.
        base = cast(Any, self.loaded.base)
        training = base.training
        base.eval()
        try:
            for _, same in groupby(zip(prompts, completions, strict=True), key=lambda pair: id(pair[0])):
                pairs = list(same)
                found += self._share(base, pairs[0][0], [list(ids) for _, ids in pairs], temperature)
        finally:
            base.train(training)
        return found

    def _share(self, base: Any, prompt: Prompt, completions: list[list[int]], temperature: float) -> list[list[float]]:
        rows = [torch.tensor(ids) for ids in completions]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.prompter.pad_id)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        ids, mask = ids.to(base.device), mask.to(base.device)
        batch = prompt_batch(self.prompter, [prompt.ids], [prompt.heard])
        with torch.autocast(base.device.type, enabled=False):
            output = base(
                **{k: v.to(base.device) for k, v in batch.items()},
                completions=Completions(ids, mask, torch.zeros(len(rows), dtype=torch.long, device=base.device)),
                labels=ids.masked_fill(mask == 0, -100),
                temperature=temperature,
                answer_head=True,
            )
        return [row[: len(c)].tolist() for row, c in zip(output.logps, completions, strict=True)]

    @contextmanager
    def changed(self, seed: int) -> Iterator[None]:
        """Every trained weight moved at random by CHANGE of its size; put back bit by bit on leaving.

        A fresh LoRA, whose B is zero, moves as far: what is measured is the product beside the weight it is added to.
        """
        model = self.loaded.model
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and ".lora_A." not in name}
        kept = {name: p.detach().clone() for name, p in trained.items()}
        generator = torch.Generator().manual_seed(seed)
        try:
            with torch.no_grad():
                for name, p in trained.items():
                    noise = torch.randn(p.shape, generator=generator).to(p)
                    p.add_(noise * _scale(model, name, p))
            yield
        finally:
            with torch.no_grad():
                for name, p in trained.items():
                    p.copy_(kept[name])


def _scale(model: nn.Module, name: str, p: Tensor) -> float:
    """Standard deviation of the noise on a parameter."""
    layer, is_lora, adapter = name.partition(".lora_B.")
    if not is_lora:
        return CHANGE * float(p.square().mean().sqrt())
    of = cast(Any, model.get_submodule(layer))
    adapter = adapter.removesuffix(".weight")
    lora_a = of.lora_A[adapter].weight
    whole = float(of.get_base_layer().weight.norm())
    # The Frobenius norm of N A, N of independent entries of size s, is s * sqrt(rows of N) * |A|.
    return CHANGE * whole / (of.scaling[adapter] * p.shape[0] ** 0.5 * max(float(lora_a.norm()), 1e-12))
