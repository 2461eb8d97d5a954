"""What completions say, in either form that TRL hands to rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reasoning.readings import read_once
from reasoning.response import Reading


def texts(completions: Sequence[Any]) -> list[str]:
    """Plain strings, or conversations whose last message is the answer -> strings."""
    return [c if isinstance(c, str) else c[-1]["content"] for c in completions]


def readings(completions: Sequence[Any], emotions: Sequence[Sequence[str]]) -> list[Reading]:
    """What each completion says about its clip's emotions; a text is parsed once for all rewards."""
    return [read_once(text, names) for text, names in zip(texts(completions), emotions, strict=True)]
