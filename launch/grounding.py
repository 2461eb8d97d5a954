"""What level think adds to GRPO: measured cues for rewards that ask for them, reference traces for groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_builders.rows import Corpus
from data_builders.traces.measured import corpus_cues
from data_builders.traces.trace_file import read_traces
from launch.arguments import DataArguments
from reasoning.errors import ConfigError, CorpusError
from reasoning.grounding import is_measured, level_shares, levels_of
from reasoning.prompts import MAX_NEW_TOKENS

CUE_LEVELS = "cue_levels"
"""The column of measured cues: cue -> level or None."""
CUE_SHARES = "cue_shares"
"""The column of how often each level is met among the training clips, the same in every row: `level_shares` of them."""


def check_thinking(level: str, max_completion_length: int | None) -> None:
    """Raise ConfigError where no thinking would fit: every answer would be cut off and earn nothing."""
    least = MAX_NEW_TOKENS["no_think"]
    if level == "think" and max_completion_length and max_completion_length <= least:
        what = f"is {max_completion_length}: an answer without thinking takes up to {least} tokens"
        cure = "--max_completion_length 320, or more where traces are longer"
        raise ConfigError(what, field="max_completion_length", cure=cure)


def with_cue_levels(
    rows: list[dict[str, Any]], corpus: Corpus, data: DataArguments, rewards: Sequence[Callable[..., Any]]
) -> list[dict[str, Any]]:
    """The rows with CUE_LEVELS and CUE_SHARES where a reward asks for the first by name, else as they are.

    Measured through the cache in the corpus folder; relative to all of a speaker's clips, as traces are. None for a
    clip of which nothing could be measured. Raises ConfigError unless the level is think: no Voice line, nothing to
    hold against the cues.
    """
    asking = [reward.__name__ for reward in rewards if CUE_LEVELS in inspect.signature(reward).parameters]
    if not asking:
        return rows
    if data.level != "think":
        what = f"{asking[0]} judges what is said about the voice, and at level {data.level} nothing is said"
        raise ConfigError(what, field="rewards", cure="--level think, or leave this reward out")
    cues = corpus_cues(corpus, Path(data.data))
    levels = [levels_of(cues[row["id"]]) for row in rows]
    shares = level_shares(levels)
    return [
        {**row, CUE_LEVELS: own if is_measured(own) else None, CUE_SHARES: shares}
        for row, own in zip(rows, levels, strict=True)
    ]


def gold_of(rows: Sequence[Mapping[str, Any]], corpus: Corpus, level: str, traces: str | None) -> dict[str, str] | None:
    """Clip id -> verified thinking of those rows that a trace file has one for; None without a file.

    Raises ConfigError unless the level is think, CorpusError when none of the rows has a trace.
    """
    if traces is None:
        return None
    if level != "think":
        cure = "leave it out, or add --level think"
        raise ConfigError(f"is for level think, not {level}", field="gold_traces", cure=cure)
    thinking = read_traces(Path(traces), corpus)
    gold = {row["id"]: thinking[row["id"]] for row in rows if row["id"] in thinking}
    if not gold:
        raise CorpusError(f"has no verified trace of the {len(rows)} training clips", row=traces, field="gold_traces")
    print(f"{len(gold)} of {len(rows)} training clips have a verified trace in their group")
    return gold
