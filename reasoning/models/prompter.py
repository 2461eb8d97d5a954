"""Token ids of prompts for one model, with as many audio placeholders as the clip has features.

The processor's tokenizer and feature extractor are called here and in models/memory.py only; tests compare the result
with the processor's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from reasoning.emotions import EmotionSet
from reasoning.models.families import Family
from reasoning.models.label_trie import LabelTrie
from reasoning.models.memory import Heard, batch_heard
from reasoning.prompts import conversation
from reasoning.response import ANSWER_PREFIX


class Wording(Protocol):
    """What a Prompter needs of a checkpoint: not its weights."""

    @property
    def processor(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def family(self) -> Family: ...


class Prompter:
    """Token ids of prompts and responses for one model and one EmotionSet."""

    def __init__(self, loaded: Wording, emotions: EmotionSet) -> None:
        self.processor, self.tokenizer, self.family = loaded.processor, loaded.tokenizer, loaded.family
        self.emotions = emotions
        self.labels = LabelTrie.of(self.tokenizer, emotions)
        self.answer_prefix_ids = self.encode(ANSWER_PREFIX)
        self.pad_id: int = self.tokenizer.pad_token_id
        self.eos_id: int = self.tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prompt_ids(self, transcript: str | None, heard: Heard | None, level: str) -> list[int]:
        """The prompt up to where the model begins to answer; audio placeholders as many as `heard` has features."""
        messages = conversation(transcript, heard is not None, level, self.emotions)
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if heard is not None:
            token = self.family.audio_token
            text = text.replace(token, token * self.family.audio_tokens(heard.frames))
        return self.encode(text)

    def slot_of(self, completion_ids: Sequence[int]) -> int | None:
        """Index of the vote's token in a completion, right after the first ANSWER_PREFIX; None without one."""
        prefix = self.answer_prefix_ids
        for start in range(len(completion_ids) - len(prefix)):
            if list(completion_ids[start : start + len(prefix)]) == prefix:
                return start + len(prefix)
        return None


def pad_left(sequences: Sequence[Sequence[int]], value: int) -> Tensor:
    """(B, longest) with `value` in front of the shorter ones."""
    longest = max(len(s) for s in sequences)
    return torch.tensor([[value] * (longest - len(s)) + list(s) for s in sequences])


def prompt_batch(
    prompter: Prompter, prompts: Sequence[Sequence[int]], heard: Sequence[Heard | None]
) -> dict[str, Tensor]:
    """Left-padded model inputs for generation or scoring: token ids, mask, and the audio of those that have it."""
    batch = {
        "input_ids": pad_left(prompts, prompter.pad_id),
        "attention_mask": pad_left([[1] * len(p) for p in prompts], 0),
    }
    present = [h for h in heard if h is not None]
    return {**batch, **(batch_heard(present, prompter.family) if present else {})}
