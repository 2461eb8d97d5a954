"""The Engine on vLLM, offline: the language model runs in vLLM, the clips are heard here and once.

vLLM 0.30 takes `audio_embeds`, what the projector returns, so its own tower is not even loaded: a clip passes the tower
once for all its prompts, unpadded, and both engines hear the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from reasoning.emotions import EmotionSet
from reasoning.errors import ConfigError, ModelError
from reasoning.inference.asking import close_thinking, refuse_too_long, request_seed
from reasoning.inference.engine import Generation, LabelScores, Request
from reasoning.models.generating import stop_ids
from reasoning.models.label_trie import Step
from reasoning.models.loading import best_device, load_model
from reasoning.models.prompter import Prompter
from reasoning.response import ANSWER_PREFIX


def require_vllm() -> None:
    """Raise ConfigError when vLLM is not installed; otherwise prepare this process's environment for it.

    What the user has set is kept. Without a size, vLLM takes most of a CPU machine's memory for its cache; and it
    reports usage to its makers unless it is told not to.
    """
    if find_spec("vllm") is None:
        raise ConfigError("vLLM is not installed", field="engine", cure="see docs/engines.md, `Installing vLLM`")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if best_device().type == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


@dataclass(frozen=True)
class _Prompt:
    """ids: as the model sees them, one placeholder for each row of audio (tokens, hidden), which is None for text."""

    row: str
    ids: list[int]
    audio: Tensor | None


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
        max_thinking_tokens: int = 400,
    ) -> None:
        require_vllm()
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        on_cpu = best_device().type == "cpu"
        if on_cpu:  # two more processes would only start later; threads are then this process's, OMP_NUM_THREADS
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        # Loaded whole, kept in part: the tower and the projector. The rest is freed when this function returns.
        loaded = load_model(checkpoint, dtype=getattr(torch, dtype))
        loaded.family.tower_of(loaded.base).to(best_device())
        self.memory = loaded.memory()
        self.projector = next(m for n, m in loaded.base.named_modules() if n.endswith(loaded.family.projector))
        self.prompter = Prompter(loaded, emotions)
        self.audio_id: int = self.prompter.tokenizer.convert_tokens_to_ids(loaded.family.audio_token)
        self.never = list(loaded.family.modality_tokens)
        self.stop_ids = stop_ids(loaded)
        self.batch_size, self.max_thinking_tokens = batch_size, max_thinking_tokens
        self.llm: Any = LLM(
            str(checkpoint),
            dtype=cast(Any, dtype),
            max_num_seqs=batch_size,
            enforce_eager=on_cpu,
            enable_mm_embeds=True,
            limit_mm_per_prompt={"audio": 0},  # of audio that vLLM would have to encode itself: its tower stays out
            generation_config="vllm",  # no sampling options from the checkpoint
        )
        self.max_tokens: int = self.llm.model_config.max_model_len

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[Generation]:
        """A text for each request; temperature 0 is greedy. One seed samples the same for a clip in any batch."""
        for part in self._batches(requests):
            prompts = self._prompts(part, [""] * len(part), max_new_tokens)
            options = [
                {"temperature": temperature, "seed": request_seed(seed, r.id), "max_tokens": max_new_tokens}
                for r in part
            ]
            for request, completion in zip(part, self._run(prompts, options), strict=True):
                ids = list(completion.token_ids)
                text = self.prompter.tokenizer.decode(ids, skip_special_tokens=True)
                yield Generation(request.id, text, len(ids), truncated=completion.finish_reason == "length")

    def score_labels(self, requests: Sequence[Request]) -> Iterator[LabelScores]:
        """The label readout: after the bare answer prefix (no_think), or after the model's own thinking (own_think)."""
        labels = self.prompter.labels
        options = [{"temperature": 0.0, "max_tokens": 1, "logprob_token_ids": list(s.tokens)} for s in labels.steps]
        for part in self._batches(requests):
            thinking = [r for r in part if r.level == "think"]
            written = self.generate(thinking, max_new_tokens=self.max_thinking_tokens)
            thoughts = {g.id: close_thinking(g.text) for g in written}
            prefixes = [thoughts.get(r.id, ("", False))[0] + ANSWER_PREFIX for r in part]
            bare = self._prompts(part, prefixes, labels.depth)
            prompts = [_Prompt(p.row, [*p.ids, *step.prefix], p.audio) for p in bare for step in labels.steps]
            answers = iter(self._run(prompts, options * len(part)))
            for request in part:
                logps = [_logps_of(next(answers), step) for step in labels.steps]
                row = torch.softmax(torch.tensor(labels.sums(logps), dtype=torch.float64), dim=-1).tolist()
                forced = request.id in thoughts and thoughts[request.id][1]
                yield LabelScores(request.id, tuple(row), "own_think" if request.id in thoughts else "no_think", forced)

    def _batches(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        for start in range(0, len(requests), self.batch_size):
            yield requests[start : start + self.batch_size]

    @torch.no_grad()
    def _prompts(self, requests: Sequence[Request], prefixes: Sequence[str], new_tokens: int) -> list[_Prompt]:
        sources = [(r.audio, r.id) for r in requests if r.audio is not None]
        heard = iter(self.memory.hear(*zip(*sources, strict=True)) if sources else ())
        prompts = []
        for request, prefix in zip(requests, prefixes, strict=True):
            of_clip = next(heard) if request.audio is not None else None
            ids = self.prompter.prompt_ids(request.transcript, of_clip, request.level) + self.prompter.encode(prefix)
            refuse_too_long(request.id, len(ids), new_tokens, self.max_tokens)
            prompts.append(_Prompt(request.id, ids, None if of_clip is None else self.projector(of_clip.features)))
        return prompts

    def _run(self, prompts: Sequence[_Prompt], options: Sequence[dict[str, Any]]) -> list[Any]:
        """vLLM's completion of each prompt."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        always = {"stop_token_ids": self.stop_ids, "bad_words": self.never, "detokenize": False}
        outputs = self.llm.generate(
            [self._as_input(p) for p in prompts], [SamplingParams(**always, **o) for o in options], use_tqdm=False
        )
        for prompt, output in zip(prompts, outputs, strict=True):
            if list(output.prompt_token_ids) != prompt.ids:
                what = f"vLLM made {len(output.prompt_token_ids)} prompt tokens of its {len(prompt.ids)}, or others"
                raise ModelError(what, row=prompt.row, field="prompt", cure="install the pinned version of vLLM")
        return [output.outputs[0] for output in outputs]

    def _as_input(self, prompt: _Prompt) -> dict[str, Any]:
        """vLLM puts the placeholders in itself, so it is handed one where the model sees many."""
        if prompt.audio is None:
            return {"prompt_token_ids": prompt.ids}
        first = prompt.ids.index(self.audio_id)
        ids = prompt.ids[: first + 1] + prompt.ids[first + len(prompt.audio) :]
        return {"prompt_token_ids": ids, "multi_modal_data": {"audio": {"audio_embeds": [prompt.audio]}}}


def _logps_of(completion: Any, step: Step) -> list[float]:
    return [completion.logprobs[0][token].logprob for token in step.tokens]
