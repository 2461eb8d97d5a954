"""The Engine on vLLM, offline: the language model runs in vLLM, the clips are heard here and once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from reasoning.answer_grammar import answer_grammar
from reasoning.emotions import EmotionSet
from reasoning.inference.asking import own_thinking, refuse_too_long, request_seed
from reasoning.inference.engine import PREFIX, Generation, LabelScores, Request
from reasoning.inference.local_vllm import Embedded, LocalVllm, embed
from reasoning.models.label_trie import Step
from reasoning.models.loading import best_device, load_model
from reasoning.models.prompter import Prompter
from reasoning.response import ANSWER_PREFIX


class VllmEngine:
    """Engine over a checkpoint folder in vLLM. batch_size: clips handed over at once. fingerprint: of the checkpoint.

    dtype: "float32" or "bfloat16". memory: the encode-once memory, which others may use too. Raises ConfigError when
    vLLM is not installed.
    """

    name = "vllm"

    def __init__(
        self,
        checkpoint: Path,
        emotions: EmotionSet,
        *,
        dtype: str = "float32",
        batch_size: int = 64,
    ) -> None:
        # Loaded whole, kept in part: the tower and the projector. The rest is freed when this function returns.
        loaded = load_model(checkpoint, dtype=getattr(torch, dtype))
        loaded.family.tower_of(loaded.base).to(best_device())
        self.memory = loaded.memory()
        self.projector = loaded.projector
        self.prompter = Prompter(loaded, emotions)
        self.batch_size = batch_size
        self.vllm = LocalVllm(loaded, dtype=dtype, max_num_seqs=batch_size)

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
        """`samples` texts for each request, which vLLM is sent once; temperature 0 is greedy.

        One seed samples the same for a clip in any batch.
        """
        for part in self._batches(requests):
            prompts = self._prompts(part, [""] * len(part), max_new_tokens)
            always = {"temperature": temperature, "max_tokens": max_new_tokens, "n": samples}
            options = [
                {**always, "seed": request_seed(seed, r.id)}
                | self.vllm.guiding(answer_grammar(self.prompter.emotions, r.level) if guided else None)
                for r in part
            ]
            for request, output in zip(part, self.vllm.ask(prompts, options), strict=True):
                for completion in output.outputs:
                    ids = list(completion.token_ids)
                    text = self.prompter.tokenizer.decode(ids, skip_special_tokens=True)
                    yield Generation(request.id, text, len(ids), truncated=completion.finish_reason == "length")

    def score_labels(self, requests: Sequence[Request]) -> Iterator[LabelScores]:
        """The label readout: after the bare answer prefix (no_think), or after the model's own thinking (own_think)."""
        labels = self.prompter.labels
        options = [{"temperature": 0.0, "max_tokens": 1, "logprob_token_ids": list(s.tokens)} for s in labels.steps]
        for part in self._batches(requests):
            thoughts = [own_thinking(request) for request in part]
            bare = self._prompts(part, [text + ANSWER_PREFIX for text, _ in thoughts], labels.depth)
            prompts = [Embedded(p.row, [*p.ids, *step.prefix], p.audio) for p in bare for step in labels.steps]
            answers = (output.outputs[0] for output in self.vllm.ask(prompts, options * len(part)))
            for request, (_, forced) in zip(part, thoughts, strict=True):
                logps = [_logps_of(next(answers), step) for step in labels.steps]
                row = torch.softmax(torch.tensor(labels.sums(logps), dtype=torch.float64), dim=-1).tolist()
                yield LabelScores(request.id, tuple(row), PREFIX[request.level], forced)

    def _batches(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        for start in range(0, len(requests), self.batch_size):
            yield requests[start : start + self.batch_size]

    def _prompts(self, requests: Sequence[Request], prefixes: Sequence[str], new_tokens: int) -> list[Embedded]:
        sources = [(r.audio, r.id) for r in requests if r.audio is not None]
        heard = iter(self.memory.hear(*zip(*sources, strict=True)) if sources else ())
        prompts = []
        for request, prefix in zip(requests, prefixes, strict=True):
            of_clip = next(heard) if request.audio is not None else None
            ids = self.prompter.prompt_ids(request.transcript, of_clip, request.level) + self.prompter.encode(prefix)
            refuse_too_long(request.id, len(ids), new_tokens, self.vllm.max_tokens)
            prompts.append(embed(request.id, ids, of_clip, self.projector))
        return prompts


def _logps_of(completion: Any, step: Step) -> list[float]:
    return [completion.logprobs[0][token].logprob for token in step.tokens]
