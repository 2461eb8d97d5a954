"""Rollouts from vLLM in the trainer's process: it is handed what the trainer's tower heard, projected.

So both sides hear the same numbers, a projector that trains needs no sync, and no cache can serve what it made
yesterday: vLLM knows an embedding by its content. Only the language model's part is sent: its adapter, where vLLM has
LoRA for the model, else its merged weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from reasoning.inference.asking import refuse_too_long
from reasoning.inference.local_vllm import Embedded, LocalVllm, embed, prepare_local
from reasoning.models.loading import Loaded
from reasoning.rollouts.adapters import is_lora, known_ranks, lora_options, lora_request, takes_lora
from reasoning.rollouts.parity import Received
from reasoning.rollouts.receiving import receive
from reasoning.rollouts.rollouts import Prompt, Sample, Sampling, Synced
from reasoning.rollouts.weights import Touched


class Colocate:
    """vLLM over the checkpoint of `loaded`, whose live projector it uses; the adapter comes with the first sync.

    dtype: "float32" or "bfloat16", what the trainer computes in. max_num_seqs: completions under way at once.
    sleep: leave the GPU to the trainer between rollouts; the weights wait in the machine's memory, since those that
    training did not touch are never sent again. tensor_parallel_size: neighbouring ranks that hold one vLLM between
    them. options: of vLLM's engine. Raises ConfigError without vLLM.
    """

    name = "colocate"
    hears = False

    def __init__(
        self,
        loaded: Loaded,
        *,
        dtype: str,
        max_num_seqs: int,
        sleep: bool = False,
        tensor_parallel_size: int = 1,
        **options: Any,
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # tensors are handed over by reference, not sent
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if ranks > 1:
            options["distributed_executor_backend"] = "external_launcher"  # its ranks are those of the trainer
        self._group: Any = None
        if tensor_parallel_size > 1:
            parts = [list(range(i, i + tensor_parallel_size)) for i in range(0, ranks, tensor_parallel_size)]
            self._group, _ = torch.distributed.new_subgroups_by_enumeration(parts)
        self.projector, self.dtype = loaded.projector, dtype
        prepare_local()
        asked = {name: options[name] for name in ("model_impl", "trust_remote_code") if name in options}
        rank = _rank_of(loaded)
        self.lora_rank = rank if 0 < rank <= known_ranks()[-1] and takes_lora(loaded.path, dtype, **asked) else 0
        self._adapter: Any = None
        self.vllm = LocalVllm(
            loaded,
            dtype=dtype,
            max_num_seqs=max_num_seqs * tensor_parallel_size,
            tensor_parallel_size=tensor_parallel_size,
            enable_sleep_mode=sleep,
            logprobs_mode="processed_logprobs",  # of what was drawn from: after temperature and what is never sampled
            **lora_options(self.lora_rank),
            **options,
        )
        # One token is kept back: vLLM scores a text only where there is room to write another token after it.
        self.max_tokens = self.vllm.max_tokens - 1
        self.sleeps = sleep
        self._rest()

    def sample(self, prompts: Sequence[Prompt], n: int, seeds: Sequence[int], sampling: Sampling) -> list[list[Sample]]:
        """n completions of each prompt; vLLM gives sample j the seed of its prompt plus j."""
        for prompt in prompts:
            refuse_too_long(prompt.row, len(prompt.ids), sampling.max_new_tokens, self.max_tokens)
        outputs = self._ask(self._embed(prompts), [sampling.for_vllm(n, seed) for seed in seeds])
        return [[_sample(completion) for completion in output.outputs] for output in outputs]

    def logps(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """Nats of each completion's tokens after its prompt, at temperature 1, over the whole vocabulary."""
        for prompt, completion in zip(prompts, completions, strict=True):
            refuse_too_long(prompt.row, len(prompt.ids) + len(completion), 1, self.max_tokens + 1)
        asked = [
            Embedded(e.row, [*e.ids, *completion], e.audio)
            for e, completion in zip(self._embed(prompts), completions, strict=True)
        ]
        outputs = self._ask(asked, [{"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}] * len(asked))
        return [
            [output.prompt_logprobs[len(prompt.ids) + i][token].logprob for i, token in enumerate(completion)]
            for prompt, completion, output in zip(prompts, completions, outputs, strict=True)
        ]

    def received(self, prompts: Sequence[Prompt]) -> list[Received]:
        """The token ids and the embeddings that vLLM took for each prompt."""
        asked = self._embed(prompts)
        outputs = self._ask(asked, [{"max_tokens": 1}] * len(asked))
        return [Received(list(o.prompt_token_ids), e.audio) for o, e in zip(outputs, asked, strict=True)]

    def sync(self, tensors: Mapping[str, Tensor]) -> Synced:
        """Replace what the language model was given before by this, and forget what that made."""
        started = time.perf_counter()
        self._wake()
        counted = _Counted(tensors)
        self.vllm.llm.collective_rpc(receive, args=(counted,))
        self._adapter = lora_request("trained", "handed over in memory") if any(map(is_lora, tensors)) else None
        self.vllm.llm.reset_prefix_cache()
        # The worker forgets its encoder outputs when it reloads; the scheduler must not believe that they are there.
        self.vllm.llm.llm_engine.reset_encoder_cache()
        self.vllm.llm.reset_mm_cache()
        return Synced(len(tensors), counted.bytes, time.perf_counter() - started, None)

    def close(self) -> None:
        """Shut vLLM down and free its memory."""
        self.vllm.llm.llm_engine.engine_core.shutdown()

    def _embed(self, prompts: Sequence[Prompt]) -> list[Embedded]:
        return [embed(prompt.row, prompt.ids, prompt.heard, self.projector) for prompt in prompts]

    def _ask(self, prompts: Sequence[Embedded], options: Sequence[dict[str, Any]]) -> list[Any]:
        self._wake()
        try:
            if self._group is None:
                return self.vllm.ask(prompts, options, self._adapter)
            # Ranks that hold one vLLM between them must compute the same at once: each asks for all, and keeps its own.
            asked: list[Any] = [None] * torch.distributed.get_world_size(self._group)
            torch.distributed.all_gather_object(asked, (prompts, options), self._group)
            every, each = [p for part, _ in asked for p in part], [o for _, part in asked for o in part]
            answers = self.vllm.ask(every, each, self._adapter)
            before = sum(len(part) for part, _ in asked[: torch.distributed.get_rank(self._group)])
            return answers[before : before + len(prompts)]
        finally:
            self._rest()

    def _wake(self) -> None:
        if self.sleeps and self.vllm.llm.llm_engine.is_sleeping():
            self.vllm.llm.wake_up()

    def _rest(self) -> None:
        if self.sleeps:
            self.vllm.llm.sleep(level=1)


class _Counted(Mapping[str, Tensor]):
    """The tensors, and how many bytes of them were asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.bytes = tensors, 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        self.bytes += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def _rank_of(loaded: Loaded) -> int:
    """Highest rank of the language model's adapter, 0 where none could be taken as it is."""
    model = loaded.model
    return Touched(model, without=loaded.family.projector, lora=True).rank if isinstance(model, PeftModel) else 0


def _sample(completion: Any) -> Sample:
    ids = list(completion.token_ids)
    logps = [place[token].logprob for place, token in zip(completion.logprobs, ids, strict=True)]
    return Sample(ids, logps, truncated=completion.finish_reason == "length")
