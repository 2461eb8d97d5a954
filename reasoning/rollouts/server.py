"""Rollouts from a server that `equivox serve --rollouts FOLDER` started: token ids out, token ids back.

vLLM's /inference/v1/generate takes the prompt as token ids and the sound as a wav file, so nothing is tokenized or
templated twice, and the answer says which prompt tokens the model saw: they must be ours.

A server that was restarted has the checkpoint's weights, not those of the last sync. So before and after each answer it
says which process it is and which weights it holds. An answer counts when both times it was the same process with the
last sync's weights; else they are sent again, and so is the question.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from reasoning.audio import read_audio
from reasoning.errors import EvaluationError, RolloutError
from reasoning.inference.asking import one_placeholder, refuse_other_prompt, refuse_too_long
from reasoning.inference.endpoint import Endpoint, served_model
from reasoning.inference.server_engine import LocalCheckpoint, as_wav
from reasoning.inference.under_way import in_order
from reasoning.rollouts.adapters import adapter_name
from reasoning.rollouts.rollouts import Prompt, Sample, Sampling, Synced
from reasoning.rollouts.transport import SERVED, FileTransport, Transport, ask_workers, other_training, post

Answer = TypeVar("Answer")

State = list[tuple[str, str | None]]
"""Of each of the server's workers: which process it is, and the checksum of the weights that it was given."""

LOG = logging.getLogger(__name__)

RETRIES = 11
"""Attempts after the first: some six minutes, in which a server with a large model can be restarted."""

LOST_ANSWERS = 5
"""How often the answer to one request may be lost to a restart of the server."""


class ServerRollouts:
    """Rollouts over the server at `url` (ending in /v1), whose own tower hears the clips' sound.

    model: the name under which it must serve, which holds the base's fingerprint. checkpoint: the words of that base.
    folder: where the server takes weights from; transport, if given, brings them in another way. concurrency: prompts
    under way at once. sends: whether this rank is the one that syncs for all. Raises RolloutError when the server
    cannot be reached, serves another model, or was not started for training.
    """

    name = "server"
    hears = True

    def __init__(
        self,
        url: str,
        model: str,
        checkpoint: LocalCheckpoint,
        folder: Path,
        *,
        concurrency: int = 64,
        retries: int = RETRIES,
        api_key: str | None = None,
        transport: Callable[[Endpoint], Transport] | None = None,
        sends: bool = True,
    ) -> None:
        self.checkpoint, self.concurrency = checkpoint, concurrency
        self.audio_id: int = checkpoint.tokenizer.convert_tokens_to_ids(checkpoint.family.audio_token)
        api = Endpoint(url, retries=retries, api_key=api_key)
        self.server = Endpoint(api.url.removesuffix("/v1"), retries=retries, api_key=api_key)
        self._once = Endpoint(self.server.url, retries=0, api_key=api_key)
        self._sends, self._seen = sends, State()
        try:
            self.model, limit = served_model(api, model)
        except EvaluationError as error:
            raise RolloutError(error.what, field=error.field, cure=SERVED) from None
        report = ask_workers(self.server, "report_weights")[0]
        self.dtype: str = report["dtype"]
        self.lora_rank: int = report["lora_rank"]
        if self.lora_rank:  # by this name it answers with whatever it was sent; its first adapter changes nothing
            self.model = adapter_name(self.model)
        self.transport = transport(self.server) if transport else FileTransport(folder, self.server)
        # One token is kept back: vLLM scores a text only where there is room to write another token after it.
        self.max_tokens: int = (limit or 0) - 1

    def sample(self, prompts: Sequence[Prompt], n: int, seeds: Sequence[int], sampling: Sampling) -> list[list[Sample]]:
        """n completions of each prompt by one request. logps: after temperature, top_k, top_p and min_p."""

        def drawn(asked: tuple[Prompt, int]) -> list[Sample]:
            prompt, seed = asked
            params = {
                **sampling.for_vllm(n, seed),
                "stop_token_ids": self.checkpoint.stop_ids,
                "bad_words": list(self.checkpoint.family.modality_tokens),
            }
            return self._ask(prompt, prompt.ids, params, _samples)

        self._restore(prompts[0].row if prompts else None)
        asked = zip(prompts, seeds, strict=True)
        return list(in_order(asked, drawn, self.concurrency, self.server.hurry))

    def logps(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """As the protocol says; each completion is sent with its prompt's audio, as token ids."""

        def scored(asked: tuple[Prompt, Sequence[int]]) -> list[float]:
            prompt, completion = asked
            ids = [*prompt.ids, *completion]
            params = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
            return self._ask(prompt, ids, params, lambda answer: _logps(answer, ids, len(prompt.ids)))

        self._restore(prompts[0].row if prompts else None)
        asked = zip(prompts, completions, strict=True)
        return list(in_order(asked, scored, self.concurrency, self.server.hurry))

    def sync(self, tensors: Mapping[str, Tensor]) -> Synced | None:
        """Raises StorageError when the disk refuses, RolloutError when the server refuses or is gone."""
        if not self._sends:
            self.transport.follow(tensors)
            return None
        start = time.monotonic()
        with self.transport.lock:
            moved = self._paused(lambda: self.transport.send(tensors))
        return Synced(len(tensors), moved, time.monotonic() - start, self.transport.expected())

    def close(self) -> None:
        """The server stays; what lies in the folder for it goes."""
        self.transport.close()

    def _ask(
        self, prompt: Prompt, ids: list[int], sampling: Mapping[str, Any], read: Callable[[Any], Answer]
    ) -> Answer:
        """What `read` makes of the server's answer to the token ids, by the weights of the last sync."""
        refuse_too_long(prompt.row, len(ids), sampling["max_tokens"], self.max_tokens + 1)
        body: dict[str, Any] = {
            "model": self.model,
            "token_ids": ids,
            "sampling_params": {**sampling, "detokenize": False},
            "return_token_ids": True,
        }
        if prompt.source is not None:
            samples = read_audio(prompt.source, row=prompt.row) if isinstance(prompt.source, Path) else prompt.source
            body["token_ids"] = one_placeholder(ids, self.audio_id, prompt.ids.count(self.audio_id))
            body["content_parts"] = [{"type": "audio_url", "url": f"data:audio/wav;base64,{as_wav(samples)}"}]
        for _ in range(LOST_ANSWERS):
            before = self._seen
            answer = post(self.server, "/inference/v1/generate", body, prompt.row)
            self._seen = after = self._state(prompt.row)
            if before == after and self._is_synced(after) and not _given_up(answer):
                break
            self._restore(prompt.row)
        else:
            what = f"{self.server.url} lost {LOST_ANSWERS} answers to one request"
            raise RolloutError(what, row=prompt.row, field="url", cure="look at the server's log")
        try:
            refuse_other_prompt(self.server.url, answer["prompt_token_ids"], ids, prompt.row)
            return read(answer)
        except (TypeError, KeyError, IndexError):
            what = f"{self.server.url} answers what vLLM 0.30 does not: {str(answer)[:120]!r}"
            raise RolloutError(what, row=prompt.row, field="url", cure=SERVED) from None

    def _restore(self, row: str | None) -> None:
        """See that the server holds the weights of the last sync: one that was restarted gets them again."""
        with self.transport.lock:
            self._seen = self._state(row)
            if self._is_synced(self._seen):
                return
            if any(held is not None for _, held in self._seen):
                raise other_training(self.server, row)
            LOG.warning("%s was restarted: it gets the weights of the last sync again", self.server.url)
            self._paused(self.transport.send_again)
            self._seen = self._state(row)

    def _paused(self, send: Callable[[], Any]) -> Any:
        """`send()` while the server computes nothing. What is under way is given up, every cache is emptied."""
        post(self.server, "/pause", {})
        try:
            done = send()
        except BaseException:
            with contextlib.suppress(RolloutError):  # it may be gone
                post(self._once, "/resume", {})
            raise
        post(self.server, "/resume", {})
        return done

    def _state(self, row: str | None) -> State:
        return [(report["boot"], report["held"]) for report in ask_workers(self.server, "report_weights", row=row)]

    def _is_synced(self, state: State) -> bool:
        expected = self.transport.expected()
        return all(held == expected for _, held in state)


def _given_up(answer: Any) -> bool:
    """Whether the server was paused, by whomever, before it had finished."""
    return any(choice.get("finish_reason") == "abort" for choice in answer["choices"])


def _samples(answer: Any) -> list[Sample]:
    return [
        Sample(
            choice["token_ids"],
            [token["logprob"] for token in choice["logprobs"]["content"]],
            truncated=choice["finish_reason"] == "length",
        )
        for choice in sorted(answer["choices"], key=lambda choice: choice["index"])
    ]


def _logps(answer: Any, ids: Sequence[int], start: int) -> list[float]:
    """Of the tokens from `start` on."""
    return [answer["prompt_logprobs"][place][str(ids[place])]["logprob"] for place in range(start, len(ids))]
