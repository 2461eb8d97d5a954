"""Guided decoding: which tokens the answer grammar allows next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import LogitsProcessor

from reasoning.answer_grammar import answer_grammar
from reasoning.emotions import EmotionSet
from reasoning.errors import ConfigError


class Guide:
    """The answer grammar over one tokenizer's tokens. Raises ConfigError on emotions that no grammar can be made of."""

    def __init__(self, tokenizer: Any, emotions: EmotionSet, level: str) -> None:
        self._tokenizer: LLTokenizer = from_tokenizer(tokenizer)
        self._matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(answer_grammar(emotions, level)))
        if self._matcher.is_error():
            raise ConfigError(f"make no grammar: {self._matcher.get_error()}", field="emotions")

    def start(self) -> GuideState:
        """Where an answer has not begun."""
        return GuideState(self._matcher.deep_copy(), self._tokenizer.vocab_size)


class GuideState:
    """How far one answer has come."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher, self._words = matcher, -(-vocabulary // 32)
        self.ended = False
        """Whether the answer's end-of-turn token was taken, or a token that the grammar does not allow."""

    def fill(self, mask: Tensor) -> None:
        """Write the allowed tokens' bits into `mask`, int32 (words,), contiguous."""
        mask.zero_()
        self._matcher.unsafe_compute_mask_ptr(mask.data_ptr(), self._words * mask.element_size())

    def take(self, token: int) -> None:
        """Go on by one token."""
        # The matcher stops with the last token of text; the end-of-turn token, all that it allows then, comes after.
        self.ended = self._matcher.is_stopped() or not self._matcher.try_consume_tokens([token])


def unpack(masks: Tensor, vocabulary: int) -> Tensor:
    """Bits (..., words) of int32 as bool (..., vocabulary)."""
    bits = (masks[..., None] >> torch.arange(32, dtype=torch.int32, device=masks.device)) & 1
    return bits.flatten(-2)[..., :vocabulary].bool()


class GuidedLogits(LogitsProcessor):
    """For transformers' generate: minus infinity on every token that the grammar does not allow next."""

    def __init__(self, guide: Guide, prompt_length: int, rows: int) -> None:
        self._states: Sequence[GuideState] = [guide.start() for _ in range(rows)]
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        masks = torch.full((len(scores), -(-scores.shape[1] // 32)), -1, dtype=torch.int32)
        begun = input_ids.shape[1] > self._prompt_length
        for row, state in enumerate(self._states):
            if begun and not state.ended:
                state.take(int(input_ids[row, -1]))
            if not state.ended:
                state.fill(masks[row])
        return scores.masked_fill(~unpack(masks, scores.shape[1]).to(scores.device), float("-inf"))
