"""What every engine does in the same way, whoever computes the tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from reasoning.errors import ModelError
from reasoning.inference.engine import Request
from reasoning.response import THINK_CLOSE


def own_thinking(request: Request) -> tuple[str, bool]:
    """(the model's own thinking up to and with its closing tag, whether the tag had to be forced); none at no_think."""
    if request.level != "think":
        return "", False
    if request.written is None:
        raise ValueError(f"{request.id}: the label readout at level think stands on what the model wrote")
    before, tag, _ = request.written.partition(THINK_CLOSE)
    return f"{before.rstrip()}\n{THINK_CLOSE}\n", not tag


def request_seed(seed: int, row: str, sample: int = 0) -> int:
    """A seed in 0 .. 2**63 - 1 for one clip, so that its sample depends neither on its neighbours nor on the order.

    Further samples count on from it, which is how vLLM seeds the samples of one request.
    """
    first = int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:8], "big") >> 1
    return (first + sample) % 2**63


def refuse_too_long(row: str, prompt_tokens: int, new_tokens: int, limit: int) -> None:
    """Raise ModelError when a prompt and what may be written after it exceed `limit` tokens; nothing is truncated."""
    if prompt_tokens + new_tokens > limit:
        raise ModelError(
            f"needs {prompt_tokens} prompt tokens and up to {new_tokens} to answer, but the engine holds {limit}, and "
            "Equivox never truncates a prompt with audio",
            row=row,
            field="prompt",
            cure="leave this clip out, cut it into utterances, or give the engine a longer context",
        )


def one_placeholder(ids: Sequence[int], audio_id: int, audio_tokens: int) -> list[int]:
    """A prompt for vLLM, which puts the placeholders in itself: handed one where the model sees `audio_tokens`."""
    first = list(ids).index(audio_id)
    return [*ids[: first + 1], *ids[first + audio_tokens :]]


def refuse_other_prompt(engine: str, got: Sequence[int], expected: Sequence[int], row: str) -> None:
    """Raise ModelError when an engine's model saw other prompt tokens than ours."""
    if list(got) != list(expected):
        raise ModelError(
            f"{engine} made {len(got)} prompt tokens where the local checkpoint makes {len(expected)}, or other ones",
            row=row,
            field="prompt",
            cure="run the same checkpoint folder there, with the pinned version of vLLM (`equivox serve` does)",
        )
