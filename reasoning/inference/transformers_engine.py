"""The Engine on transformers: batches, encode-once audio, greedy or seeded sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from reasoning.emotions import EmotionSet
from reasoning.inference.asking import own_thinking
from reasoning.inference.engine import PREFIX, Generation, LabelScores, Request
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
    """Engine over a loaded model. batch_size: clips at a time."""

    name = "transformers"

    def __init__(
        self,
        loaded: Loaded,
        emotions: EmotionSet,
        *,
        batch_size: int = 8,
        memory: AudioMemory | None = None,
    ) -> None:
        self.loaded, self.batch_size = loaded, batch_size
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
            thoughts = [own_thinking(request) for request in part]
            rows = self._after(part, [text for text, _ in thoughts]).tolist()
            for request, row, (_, forced) in zip(part, rows, thoughts, strict=True):
                yield LabelScores(request.id, tuple(row), PREFIX[request.level], forced)

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

    @torch.no_grad()
    def _label_probabilities(self, prompts: Sequence[Sequence[int]], heard: Sequence[Heard | None]) -> Tensor:
        model = self.loaded.base
        batch = {k: v.to(model.device) for k, v in prompt_batch(self.prompter, prompts, heard).items()}
        mask = batch["attention_mask"]
        slots = torch.full((len(prompts),), mask.shape[1], device=model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        output = model(**batch, position_ids=positions, answer_head=True, slots=slots)
        return torch.softmax(output.label_logits.double(), dim=-1)
