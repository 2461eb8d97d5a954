"""The Engine on a server that speaks the OpenAI API: audio as base64 `input_audio`, several clips under way at once.

With a local copy of the checkpoint it holds the server to it: prompt token ids must be equal, and the label readout is
exact, by vLLM's `logprob_token_ids`. Without one, any server can be asked to write, and nothing is read off labels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
import torch
from transformers import AutoConfig, AutoProcessor, GenerationConfig

from reasoning.answer_grammar import answer_grammar
from reasoning.audio import SAMPLE_RATE, read_audio
from reasoning.emotions import EmotionSet
from reasoning.errors import EvaluationError
from reasoning.inference.asking import own_thinking, refuse_other_prompt, refuse_too_long, request_seed
from reasoning.inference.endpoint import Endpoint, odd_answer, served_model
from reasoning.inference.engine import PREFIX, Generation, LabelScores, Request
from reasoning.inference.under_way import in_order
from reasoning.models.families import Family, family_of
from reasoning.models.generating import end_ids
from reasoning.models.label_trie import Step
from reasoning.models.memory import Heard, mel_frames
from reasoning.models.prompter import Prompter
from reasoning.prompts import conversation
from reasoning.response import ANSWER_PREFIX

Question = TypeVar("Question")
Answer = TypeVar("Answer", Generation, LabelScores)

NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sent so that no default of the server or of the checkpoint's generation config bends the distribution."""


@dataclass(frozen=True)
class LocalCheckpoint:
    """The words of the checkpoint that a server serves, without its weights. stop_ids: tokens that end a turn."""

    processor: Any
    family: Family
    stop_ids: list[int]

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @classmethod
    def read(cls, path: Path) -> LocalCheckpoint:
        """From a checkpoint folder."""
        processor = AutoProcessor.from_pretrained(path)
        generation = (path / "generation_config.json").is_file() and GenerationConfig.from_pretrained(path)
        return cls(processor, family_of(AutoConfig.from_pretrained(path)), end_ids(processor.tokenizer, generation))


class ServerEngine:
    """Engine over `endpoint`. checkpoint: what the server is held to, or None to ask it blindly.

    model: the name to ask for; None takes the only one that is served. concurrency: clips under way at once. Raises
    EvaluationError when the server cannot be reached or does not serve the model.
    """

    name = "server"

    def __init__(
        self,
        endpoint: Endpoint,
        emotions: EmotionSet,
        *,
        model: str | None = None,
        checkpoint: LocalCheckpoint | None = None,
        concurrency: int = 16,
    ) -> None:
        self.endpoint, self.emotions, self.checkpoint = endpoint, emotions, checkpoint
        self.concurrency = concurrency
        self.model, self.max_tokens = served_model(endpoint, model)
        self.prompter = Prompter(checkpoint, emotions) if checkpoint else None

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
        """`samples` texts for each request, each a question of its own; temperature 0 is greedy."""

        def write(sample: tuple[Request, int]) -> Generation:
            request, k = sample
            return self._written(request, max_new_tokens, temperature, request_seed(seed, request.id, k), guided)

        return self._stream([(request, k) for request in requests for k in range(samples)], write)

    def score_labels(self, requests: Sequence[Request]) -> Iterator[LabelScores]:
        """The label readout for each request. Raises EvaluationError when this server cannot give it exactly."""
        if self.prompter is None:
            raise EvaluationError(
                "the label readout needs the token ids of the labels, and no local checkpoint is named",
                field="engine",
                cure="name the checkpoint's folder with --model, or ask for --readouts verbalized",
            )
        return self._stream(requests, self._label_scores)

    def _stream(self, questions: Sequence[Question], ask: Callable[[Question], Answer]) -> Iterator[Answer]:
        return in_order(questions, ask, self.concurrency, self.endpoint.hurry)

    def _written(
        self, request: Request, max_new_tokens: int, temperature: float, seed: int, guided: bool = False
    ) -> Generation:
        body: dict[str, Any] = {
            "temperature": temperature,
            "seed": seed,
            "max_tokens": max_new_tokens,
        }
        if guided:
            body["structured_outputs"] = {"grammar": answer_grammar(self.emotions, request.level)}
        answer, choice = self._ask(request, "", body)
        try:
            text, tokens = choice["message"]["content"] or "", answer["usage"]["completion_tokens"]
            if self.prompter and choice.get("token_ids") is not None:
                text = self.prompter.tokenizer.decode(choice["token_ids"], skip_special_tokens=True)
            return Generation(request.id, text, tokens, truncated=choice["finish_reason"] == "length")
        except (TypeError, KeyError):
            raise odd_answer(self.endpoint, answer, request.id) from None

    def _label_scores(self, request: Request) -> LabelScores:
        assert self.prompter is not None
        thinking, forced = own_thinking(request)
        labels = self.prompter.labels
        logps = [self._next_logps(request, thinking + ANSWER_PREFIX, step) for step in labels.steps]
        row = torch.softmax(torch.tensor(labels.sums(logps), dtype=torch.float64), dim=-1).tolist()
        return LabelScores(request.id, tuple(row), PREFIX[request.level], forced)

    def _next_logps(self, request: Request, prefix: str, step: Step) -> list[float]:
        """Log-probabilities of the step's tokens after `prefix` and what the step stands on."""
        body = {
            "temperature": 0.0,
            "max_tokens": 1,
            "logprobs": True,
            "logprob_token_ids": list(step.tokens),
            "return_tokens_as_token_ids": True,
        }
        answer, choice = self._ask(request, prefix, body, step.prefix)
        if "prompt_token_ids" not in answer:
            raise self._inexact("does not say which prompt tokens it scored", request.id)
        try:
            found = {top["token"]: top["logprob"] for top in choice["logprobs"]["content"][0]["top_logprobs"]}
            return [found[f"token_id:{token}"] for token in step.tokens]
        except (TypeError, KeyError, IndexError):
            raise self._inexact("does not give the log-probability of every label", request.id) from None

    def _ask(
        self, request: Request, prefix: str, body: dict[str, Any], tokens: Sequence[int] = ()
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(the server's whole answer, its first choice); the model is made to have written `prefix` and `tokens`."""
        samples = read_audio(request.audio, row=request.id) if isinstance(request.audio, Path) else request.audio
        messages = conversation(request.transcript, samples is not None, request.level, self.emotions)
        for part in messages[0]["content"]:
            if part["type"] == "audio" and samples is not None:
                part |= {"type": "input_audio", "input_audio": {"data": as_wav(samples), "format": "wav"}}
        if prefix:
            written = prefix + (self.prompter.tokenizer.decode(list(tokens)) if self.prompter and tokens else "")
            messages.append({"role": "assistant", "content": written})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        expected = self._prompt_ids(request, samples, prefix, tokens)
        if expected is not None and self.max_tokens is not None:
            refuse_too_long(request.id, len(expected), body["max_tokens"], self.max_tokens)
        if self.checkpoint is not None:
            never = list(self.checkpoint.family.modality_tokens)
            body |= NEUTRAL | {
                "stop_token_ids": [*self.checkpoint.stop_ids],
                "bad_words": never,
                "return_token_ids": True,
            }
        answer = self.endpoint.post(
            "/chat/completions", {"model": self.model, "messages": messages, **body}, request.id
        )
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or not answer["choices"]:
            raise odd_answer(self.endpoint, answer, request.id)
        got = answer.get("prompt_token_ids")
        if expected is not None and got is not None:
            refuse_other_prompt(self.endpoint.url, got, expected, request.id)
        return answer, answer["choices"][0]

    def _prompt_ids(
        self, request: Request, samples: np.ndarray | None, prefix: str, tokens: Sequence[int]
    ) -> list[int] | None:
        """What the prompt's token ids must be, by the local checkpoint; None without one."""
        if self.prompter is None:
            return None
        heard = None
        if samples is not None:
            _, (frames,) = mel_frames(self.prompter.processor.feature_extractor, [(samples, request.id)])
            heard = Heard(torch.empty(0), frames)
        prompt = self.prompter.prompt_ids(request.transcript, heard, request.level)
        return [*prompt, *self.prompter.encode(prefix), *tokens]

    def _inexact(self, what: str, row: str) -> EvaluationError:
        cure = "serve the checkpoint with `equivox serve` (vLLM 0.30 or newer), or ask for --readouts verbalized"
        return EvaluationError(
            f"{self.endpoint.url} {what}, so it has no label readout", row=row, field="url", cure=cure
        )


def as_wav(samples: np.ndarray) -> str:
    """Base64 of a wav file that holds the samples exactly: 16-bit where that loses nothing, else 32-bit floats."""
    steps = samples * 32768.0
    exact = bool(np.all((steps == np.round(steps)) & (steps >= -32768) & (steps <= 32767)))
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16" if exact else "FLOAT")
    return base64.b64encode(file.getvalue()).decode()
