"""What an adapter was trained on, by the run folders that it came from: nobody who is held out may have been heard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from data_builders.rows import INFO_FILE, Corpus
from reasoning.errors import ConfigError
from reasoning.training.run_reader import CONFIG


def check_held_out(adapter: Path | str | None, corpus: Corpus, fold: int, folds: int) -> None:
    """Raise ConfigError where the adapter, or one that it began from, was trained on another fold of this corpus.

    An adapter that no run folder tells of, or whose corpus is no longer where it was, passes.
    """
    seen: set[Path] = set()
    while adapter and (folder := Path(adapter).resolve()) not in seen:
        seen.add(folder)
        run = run_of(folder)
        if run is None:
            return
        trained = (run["fold"], run["folds"])
        if fingerprint_at(Path(run["data"])) == corpus.fingerprint and trained != (fold, folds):
            raise ConfigError(
                f"was trained on fold {trained[0]} of {trained[1]}: it has heard speakers whom fold {fold} of {folds} "
                "holds out",
                row=str(adapter),
                field="adapter",
                cure=f"name an adapter of fold {fold}, or give --fold {trained[0]}",
            )
        adapter = run.get("adapter")


def run_of(adapter: Path) -> dict[str, Any] | None:
    """The options of the run that made an adapter, which may be one of its checkpoints; None where none is told."""
    for folder in (adapter, adapter.parent):
        if (folder / CONFIG).is_file():
            found = yaml.safe_load((folder / CONFIG).read_text())
            return found if isinstance(found, dict) and {"data", "fold", "folds"} <= found.keys() else None
    return None


def fingerprint_at(folder: Path) -> str | None:
    """The fingerprint of the corpus in a folder, unchecked; None without one."""
    try:
        return json.loads((folder / INFO_FILE).read_text())["clips_sha256"]
    except (OSError, ValueError, KeyError):
        return None
