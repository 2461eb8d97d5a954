"""A small honest server: the documented answers of vLLM's chat API, computed by transformers' ordinary path."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import soundfile
import torch

from data_builders.rows import read_corpus, split_clips
from reasoning.emotions import EmotionSet
from reasoning.inference.engine import Request
from reasoning.inference.transformers_engine import TransformersEngine
from reasoning.models.loading import load_model

SHARED = EmotionSet(("sad", "sadness", "fear", "fearful", "neutral", "happy"))
"""The small tokenizer begins some of these with the same token, and two of them begin another: scored over a trie."""


@dataclass(frozen=True)
class Tones:
    """What the trained checkpoint is asked in every engine's tests: 12 tones of speakers it has not heard."""

    engine: TransformersEngine
    requests: list[Request]
    votes: list[tuple[int, ...]]
    emotions: EmotionSet

    def shifted(self) -> list[Request]:
        """Every request with another emotion's tone of the same speaker."""
        others = self.requests[1:] + self.requests[:1]
        return [Request(r.id, o.audio, r.transcript) for r, o in zip(self.requests, others, strict=True)]


@pytest.fixture(scope="session")
def tones(trained_checkpoint) -> Tones:
    corpus = read_corpus(trained_checkpoint.corpus)
    clips = split_clips(corpus, 0)["test"]
    engine = TransformersEngine(load_model(trained_checkpoint.model), corpus.info.emotions)
    requests = [Request(c.id, corpus.root / c.audio, c.transcript) for c in clips]
    return Tones(engine, requests, [c.votes for c in clips], corpus.info.emotions)


@pytest.fixture(scope="session")
def shared_first_tokens(trained_checkpoint) -> TransformersEngine:
    """The reference engine asked about labels that begin with the same tokens."""
    engine = TransformersEngine(load_model(trained_checkpoint.model), SHARED)
    assert len(engine.prompter.labels.steps) > 1
    return engine


@dataclass
class ReferenceServer:
    """Answers as `vllm serve` documents: the processor's own prompt and features, one row at a time."""

    model: Any
    processor: Any
    url: str = ""
    asked: list[dict] = field(default_factory=list)
    extras: bool = True
    limit: int = 1024

    def reply(self, path: str, body: Any, headers: Any) -> tuple[int, str, dict[str, str]]:
        if path == "/v1/models":
            return 200, json.dumps({"data": [{"id": "tones", "max_model_len": self.limit}]}), {}
        self.asked.append(body)
        inputs = self.inputs(body)
        choice = self.label_choice(body, inputs) if body.get("logprobs") else self.text_choice(body, inputs)
        answer = {"choices": [choice], "usage": {"completion_tokens": len(choice["token_ids"])}}
        if body.get("return_token_ids") and self.extras:
            answer["prompt_token_ids"] = inputs["input_ids"][0].tolist()
        return 200, json.dumps(answer), {}

    def inputs(self, body: dict) -> dict[str, torch.Tensor]:
        waves, messages = [], []
        for message in body["messages"]:
            parts = message["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            for part in parts:
                if part["type"] == "input_audio":
                    data = base64.b64decode(part["input_audio"]["data"])
                    waves.append(soundfile.read(io.BytesIO(data), dtype="float32")[0])
            kinds = [{"type": "audio"} if p["type"] == "input_audio" else p for p in parts]
            messages.append({"role": message["role"], "content": kinds})
        text = self.processor.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=body.get("add_generation_prompt", True),
            continue_final_message=body.get("continue_final_message", False),
        )
        return self.processor(text=[text], audio=waves or None, sampling_rate=16_000, return_tensors="pt")

    @torch.no_grad()
    def text_choice(self, body: dict, inputs: Any) -> dict:
        assert body["temperature"] == 0
        never = [self.processor.tokenizer.convert_tokens_to_ids(word) for word in body["bad_words"]]
        out = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=body["max_tokens"], eos_token_id=body["stop_token_ids"],
            suppress_tokens=never,
        )  # fmt: skip
        ids = out[0, inputs["input_ids"].shape[1] :].tolist()
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        reason = "stop" if ids[-1] in body["stop_token_ids"] else "length"
        return {"message": {"content": text}, "finish_reason": reason, "token_ids": ids}

    @torch.no_grad()
    def label_choice(self, body: dict, inputs: Any) -> dict:
        logps = self.model(**inputs).logits[0, -1].log_softmax(-1)
        wanted = body["logprob_token_ids"] if self.extras else logps.topk(3).indices.tolist()
        top = [{"token": f"token_id:{token}", "logprob": logps[token].item()} for token in wanted]
        logprobs = {"content": [{"token": top[0]["token"], "top_logprobs": top}]}
        return {"message": {"content": ""}, "logprobs": logprobs, "finish_reason": "length", "token_ids": [0]}


@pytest.fixture
def reference_server(trained_checkpoint, http_server: Callable[..., str]) -> ReferenceServer:
    loaded = load_model(trained_checkpoint.model)
    server = ReferenceServer(loaded.base, loaded.processor)
    server.url = http_server(server.reply)
    return server
