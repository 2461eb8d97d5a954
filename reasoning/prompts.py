"""How a model is asked: conversations of typed content parts, built in memory and never stored."""

from __future__ import annotations

from typing import Any

from reasoning.emotions import EmotionSet
from reasoning.errors import ConfigError

LEVELS = ("no_think", "think")
"""no_think: answer at once. think: reason inside a think block first."""

MAX_NEW_TOKENS = {"no_think": 96, "think": 512}
"""Tokens that an answer may take at each level, unless asked otherwise."""

_TASK = "How would listeners vote on the emotion of this voice: {names}?"
_HOW = {"no_think": "Answer at once.", "think": "Think about words, voice and ambiguity first, then answer."}
# Short on purpose: every word is computed again for every clip, and what is asked for is taught, not described.


def conversation(transcript: str | None, has_audio: bool, level: str, emotions: EmotionSet) -> list[dict[str, Any]]:
    """The conversation that asks for one clip's distribution, as a chat template takes it.

    transcript: the words, left out when None. has_audio: False drops the audio part (the text-only control). level:
    one of LEVELS. The audio itself is not in here: the collator hands it to the processor beside the text, so that
    no template ever sees an array. Raises ConfigError on an unknown level.
    """
    if level not in LEVELS:
        raise ConfigError(f"is {level!r}, expected one of {', '.join(LEVELS)}", field="level")
    words = f'Words: "{transcript}"\n' if transcript else ""
    question = f"{words}{_TASK.format(names=', '.join(emotions.names))} {_HOW[level]}"
    audio = [{"type": "audio"}] if has_audio else []
    return [{"role": "user", "content": [*audio, {"type": "text", "text": question}]}]
