"""Emotion sets: the ordered names that votes, shares and label readouts refer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reasoning.errors import ConfigError


@dataclass(frozen=True)
class EmotionSet:
    """Ordered emotion names and the spellings that mean them.

    names: lower-case ASCII words (what the answer grammar can read), in the order of every votes, shares and
    probabilities array. aliases: other lower-case spellings -> one of `names`. Raises ConfigError on anything else.
    """

    names: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.names) < 2 or len(set(self.names)) != len(self.names):
            raise ConfigError(f"needs at least two different names, got {self.names}", field="emotions")
        for name in self.names:
            if not (name.isascii() and name.isalpha() and name.islower()):
                raise ConfigError(f"{name!r} is not one lower-case ASCII word", field="emotions")
        for alias, name in self.aliases.items():
            if name not in self.names or alias in self.names:
                raise ConfigError(f"{alias!r} -> {name!r} does not lead from a new word to a name", field="aliases")
            if alias != alias.strip().lower():
                raise ConfigError(f"{alias!r} is not lower-case, so no word would match it", field="aliases")

    def __len__(self) -> int:
        return len(self.names)

    def resolve(self, word: str) -> str | None:
        """The name that `word` spells (case and outer spaces ignored), or None."""
        word = word.strip().lower()
        return word if word in self.names else self.aliases.get(word)

    def index(self, word: str) -> int:
        """Position of the emotion that `word` spells. Raises ConfigError when it spells none."""
        name = self.resolve(word)
        if name is None:
            raise ConfigError(f"{word!r} is none of {', '.join(self.names)}", field="emotion")
        return self.names.index(name)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe form; `from_dict` reads it back."""
        return {"names": list(self.names), "aliases": dict(self.aliases)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EmotionSet:
        """The set that `to_dict` wrote."""
        return cls(tuple(data["names"]), dict(data.get("aliases", {})))


CREMA_D = EmotionSet(
    ("anger", "disgust", "fear", "happy", "neutral", "sad"),
    {
        "angry": "anger",
        "disgusted": "disgust",
        "fearful": "fear",
        "afraid": "fear",
        "happiness": "happy",
        "joy": "happy",
        "sadness": "sad",
    },
)
