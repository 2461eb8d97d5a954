"""Errors a user can act on: each names the row, the field, what was wrong, and what mends it."""

from collections.abc import Mapping
from typing import Any


class EquivoxError(Exception):
    """Base of every error that Equivox raises on purpose; commands print it as one line and exit with status 2.

    what: what was found and what was expected. row: the clip id, line or file it concerns. field: the column, key or
    argument. cure: the command or edit that mends it.
    """

    def __init__(self, what: str, *, row: str | None = None, field: str | None = None, cure: str | None = None) -> None:
        self.what, self.row, self.field, self.cure = what, row, field, cure
        place = " ".join(part for part in (f"[{row}]" if row else "", f"{field}:" if field else "") if part)
        problem = f"{what.rstrip('.')}. To mend: {cure}" if cure else what
        super().__init__(f"{place} {problem}".strip())

    def __reduce__(self) -> tuple:
        # Keyword-only arguments do not survive the default pickling, and worker processes send errors home by pickle.
        return _rebuild, (type(self), self.what, self.row, self.field, self.cure)


def _rebuild(kind: type[EquivoxError], what: str, row: str | None, field: str | None, cure: str | None) -> EquivoxError:
    return kind(what, row=row, field=field, cure=cure)


class AudioError(EquivoxError):
    """A clip's audio is missing, is no audio, or cannot be used."""


class RowError(EquivoxError):
    """A clip row breaks the clip contract."""


class CorpusError(EquivoxError):
    """A corpus folder is not what its reader expects."""


class DistributionError(EquivoxError):
    """Numbers that should be a probability distribution are not."""


class ConfigError(EquivoxError):
    """A configuration key or value cannot be used."""


class ModelError(EquivoxError):
    """A checkpoint or adapter cannot be used as asked."""


class DownloadError(EquivoxError):
    """Weights could not be fetched, or are not the ones that were pinned."""


class EvaluationError(EquivoxError):
    """Predictions cannot be made or scored as asked."""


class StorageError(EquivoxError):
    """A file cannot be written."""


class RolloutError(EquivoxError):
    """Whoever samples the rollouts cannot be reached, or cannot be given the trainer's weights."""


class RolloutParityError(EquivoxError):
    """Trainer and rollouts do not agree on what was asked, heard or written."""


class RewardError(EquivoxError):
    """A reward function cannot be loaded or failed on a completion."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two settings, for an error: "kl_weight was 0.3, is 0.5, ..."; at most three, or ''."""
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed[:3])
