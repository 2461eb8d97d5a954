"""The text of a completion, in either form that TRL hands to rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def texts(completions: Sequence[Any]) -> list[str]:
    """Plain strings, or conversations whose last message is the answer -> strings."""
    return [c if isinstance(c, str) else c[-1]["content"] for c in completions]
