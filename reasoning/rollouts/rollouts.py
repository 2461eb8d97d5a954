"""What the trainer asks of whoever samples its rollouts: an engine in this process, or a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from reasoning.models.memory import AudioSource, Heard


@dataclass(frozen=True)
class Prompt:
    """One clip's question. row: the clip's id. ids: as the model sees them, one audio placeholder for each feature.

    source: the sound, for a server that hears it itself; heard: what the trainer's tower returned for it, for an engine
    that is handed features. Both None without audio.
    """

    row: str
    ids: list[int]
    transcript: str | None
    level: str
    source: AudioSource | None
    heard: Heard | None


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. top_k 0: from the whole vocabulary. Modality tokens are never drawn."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def for_vllm(self, n: int, seed: int) -> dict[str, Any]:
        """n completions from one seed as vLLM's SamplingParams names it, each with its tokens' log-probabilities."""
        return {
            "n": n,
            "seed": seed,
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "logprobs": 0,
        }


@dataclass(frozen=True)
class Sample:
    """A completion. ids: its tokens, the end-of-turn token included. logps: nats, of each, as it was drawn.

    truncated: stopped by max_new_tokens before the end-of-turn token.
    """

    ids: list[int]
    logps: list[float]
    truncated: bool


@dataclass(frozen=True)
class Synced:
    """What a weight sync moved. checksum: of what arrived, None where nothing travelled."""

    tensors: int
    bytes: int
    seconds: float
    checksum: str | None


class Rollouts(Protocol):
    """Samples completions from the weights it was last given.

    max_tokens: of prompt and completion together. hears: encodes the sound itself, so a projector that was trained is
    part of its weights. dtype: what it computes in, "float32" or "bfloat16". lora_rank: of the adapters that it takes
    as they are, at most; 0 where it takes merged weights only.
    """

    name: str
    dtype: str
    max_tokens: int
    hears: bool
    lora_rank: int

    def sample(self, prompts: Sequence[Prompt], n: int, seeds: Sequence[int], sampling: Sampling) -> list[list[Sample]]:
        """n completions of each prompt, which is sent once with its audio. seeds: one a prompt; sample j adds j."""
        ...

    def logps(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """Nats of each completion's tokens after its prompt, at temperature 1, over the whole vocabulary."""
        ...

    def sync(self, tensors: Mapping[str, Tensor]) -> Synced | None:
        """Replace what it got before by what training touched (`weights.to_send`); called by all ranks.

        None where one engine serves them all and another rank sends.
        """
        ...

    def close(self) -> None:
        """Free what was started; what was found running stays."""
        ...
