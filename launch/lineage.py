"""What an adapter was trained on, by the run folders that it came from: nobody who is held out may have been heard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data_builders.folds import some_speakers
from data_builders.rows import INFO_FILE, Corpus, split_clips
from reasoning.errors import ConfigError
from reasoning.training.run_reader import CONFIG


def check_held_out(adapter: Path | str | None, corpus: Corpus, fold: int, folds: int) -> None:
    """Raise ConfigError where the adapter, or one that it began from, was trained on another fold of this corpus.

    One that was trained before the corpus was prepared anew from other clips is refused too. An adapter that no run
    folder tells of passes.
    """
    for path, run in lineage(adapter, corpus):
        trained = (run["fold"], run["folds"])
        if trained != (fold, folds):
            raise ConfigError(
                f"was trained on fold {trained[0]} of {trained[1]}: it has heard speakers whom fold {fold} of {folds} "
                "holds out",
                row=str(path),
                field="adapter",
                cure=f"name an adapter of fold {fold}, or give --fold {trained[0]}",
            )


def heard_speakers(adapter: Path | str | None, corpus: Corpus) -> set[str]:
    """Speakers of this corpus whose clips the adapter, or one that it began from, was trained on, as far as is told."""
    found: set[str] = set()
    for _, run in lineage(adapter, corpus):
        train = split_clips(corpus, run["fold"], run["folds"])["train"]
        found |= {clip.speaker for clip in some_speakers(train, run.get("speakers"))}
    return found


def lineage(adapter: Path | str | None, corpus: Corpus) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(adapter, the options it was trained with) of the adapter and of each that it began from, on this corpus."""
    seen: set[Path] = set()
    while adapter and (folder := Path(adapter).resolve()) not in seen:
        seen.add(folder)
        run = run_of(folder)
        if run is None:
            return
        here = fingerprint_at(Path(run["data"]))
        trained_on = run.get("clips_sha256") or here
        if trained_on == corpus.fingerprint:
            yield Path(adapter), run
        elif here == corpus.fingerprint:
            raise ConfigError(
                f"was trained when {run['data']} held other clips: their folds were others, and it may have heard "
                "speakers who are held out now",
                row=str(adapter),
                field="adapter",
                cure="prepare the corpus as it was, or train anew",
            )
        adapter = began_from(folder, run.get("adapter"))


def began_from(run: Path, adapter: str | None) -> Path | None:
    """The adapter that a run began from. A relative path is looked for from here, then from the run's own parents."""
    if adapter is None:
        return None
    return next((base / adapter for base in (Path(), *run.parents) if (base / adapter).is_dir()), Path(adapter))


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
