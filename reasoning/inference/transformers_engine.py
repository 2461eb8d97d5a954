"""The Engine on transformers: batches, encode-once audio, greedy or seeded sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from reasoning.emotions import EmotionSet
from reasoning.inference.asking import close_thinking
from reasoning.inference.engine import Generation, LabelScores, Request
from reasoning.models.answer_head import add_answer_head
from reasoning.models.generating import generate_ids, stop_ids
from reasoning.models.guide import Guide
from reasoning.models.loading import Loaded
from reasoning.models.memory import AudioMemory, Heard
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.response import ANSWER_PREFIX, THINK_CLOSE, THINK_OPEN

WHOLE = {"top_k": 0, "top_p": 1.0}
"""Sample from the whole distribution: unless told, transformers keeps 50 tokens, or what a checkpoint says."""


class TransformersEngine:
    """Engine over a loaded model. batch_size: clips at a time. max_thinking_tokens: for the own_think label readout."""

    name = "transformers"

    def __init__(
        self,
        loaded: Loaded,
        emotions: EmotionSet,
        *,
        batch_size: int = 8,
        memory: AudioMemory | None = None,
        max_thinking_tokens: int = 400,
    ) -> None:
        self.loaded, self.batch_size, self.max_thinking_tokens = loaded, batch_size, max_thinking_tokens
        self.prompter = Prompter(loaded, emotions)
        self.memory = memory or loaded.memory()
        self.stop_ids = stop_ids(loaded)
        add_answer_head(loaded.base, self.prompter.labels)

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        guided: bool = False,
        samples: int = 1,
    ) -> Iterator[Generation]:
        """`samples` texts for each request, whose prompt is computed once; temperature 0 is greedy.

        The same seed, requests and batch size give the same; the batch size counts texts.
        """
        sampling = {"do_sample": True, "temperature": temperature, **WHOLE} if temperature > 0 else {"do_sample": False}
        levels = {r.level for r in requests} if guided else set()
        guides = {level: Guide(self.prompter.tokenizer, self.prompter.emotions, level) for level in levels}
        for number, part in enumerate(self._batches(requests, max(1, self.batch_size // samples))):
            with torch.random.fork_rng():
                torch.manual_seed(seed + number)
                prompts, heard = self._prompts(part)
                rows = generate_ids(
                    self.loaded,
                    prompt_batch(self.prompter, prompts, heard),
                    samples=samples,
                    max_new_tokens=max_new_tokens,
                    guide=guides.get(part[0].level),
                    repetition_penalty=1.0,
                    **sampling,
                )
            for i, ids in enumerate(rows):
                text = self.prompter.tokenizer.decode(ids, skip_special_tokens=True)
                yield Generation(part[i // samples].id, text, len(ids), truncated=ids[-1] not in self.stop_ids)

    def score_labels(self, requests: Sequence[Request]) -> Iterator[LabelScores]:
        """The label readout: after the bare answer prefix (no_think), or after the model's own thinking (own_think)."""
        for part in self._batches(requests, self.batch_size):
            thoughts = self._own_thinking([r for r in part if r.level == "think"])
            prefixes = [thoughts[r.id][0] if r.level == "think" else "" for r in part]
            for request, row in zip(part, self._after(part, prefixes).tolist(), strict=True):
                if request.level == "think":
                    yield LabelScores(request.id, tuple(row), "own_think", thoughts[request.id][1])
                else:
                    yield LabelScores(request.id, tuple(row), "no_think")

    def score_labels_after(self, requests: Sequence[Request], thinking: Mapping[str, str]) -> Iterator[LabelScores]:
        """The label readout after thinking that is given, by request id: `label_teacher_forced`, a diagnostic only."""
        for part in self._batches(requests, self.batch_size):
            prefixes = [f"{THINK_OPEN}\n{thinking[r.id].strip()}\n{THINK_CLOSE}\n" for r in part]
            for request, row in zip(part, self._after(part, prefixes).tolist(), strict=True):
                yield LabelScores(request.id, tuple(row), "label_teacher_forced")

    def _after(self, requests: Sequence[Request], prefixes: Sequence[str]) -> Tensor:
        """The labels' probabilities after each request's prefix and the answer's, (B, K)."""
        prompts, heard = self._prompts(requests)
        prefixed = zip(prompts, prefixes, strict=True)
        encode = self.prompter.encode
        return self._label_probabilities([ids + encode(text + ANSWER_PREFIX) for ids, text in prefixed], heard)

    @staticmethod
    def _batches(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
        """Consecutive requests that all have audio or all have none: a batch cannot mix the two."""
        start = 0
        while start < len(requests):
            has_audio = requests[start].audio is not None
            stop = start
            while stop < len(requests) and stop - start < size and (requests[stop].audio is not None) == has_audio:
                stop += 1
            yield requests[start:stop]
            start = stop

    def _prompts(self, requests: Sequence[Request]) -> tuple[list[list[int]], list[Heard | None]]:
        heard: list[Heard | None] = [None] * len(requests)
        if requests[0].audio is not None:
            sources = [r.audio for r in requests if r.audio is not None]
            heard = list(self.memory.hear(sources, [r.id for r in requests]))
        prompts = [self.prompter.prompt_ids(r.transcript, h, r.level) for r, h in zip(requests, heard, strict=True)]
        return prompts, heard

    def _own_thinking(self, requests: Sequence[Request]) -> dict[str, tuple[str, bool]]:
        """id -> (own thinking up to and with its closing tag, whether the tag had to be forced)."""
        written = self.generate(requests, max_new_tokens=self.max_thinking_tokens) if requests else ()
        return {generation.id: close_thinking(generation.text) for generation in written}

    @torch.no_grad()
    def _label_probabilities(self, prompts: Sequence[Sequence[int]], heard: Sequence[Heard | None]) -> Tensor:
        model = self.loaded.base
        batch = {k: v.to(model.device) for k, v in prompt_batch(self.prompter, prompts, heard).items()}
        mask = batch["attention_mask"]
        slots = torch.full((len(prompts),), mask.shape[1], device=model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        output = model(**batch, position_ids=positions, answer_head=True, slots=slots)
        return torch.softmax(output.label_logits.double(), dim=-1)
