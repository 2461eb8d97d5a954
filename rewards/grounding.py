"""Whether the thinking hears what it says it hears: the Voice line against the measured cues of the clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reasoning.verifier import grounded_share
from rewards.completions import readings


def grounding(
    completions: Sequence[Any],
    emotions: Sequence[Sequence[str]],
    cue_levels: Sequence[Mapping[str, int | None] | None],
    **columns: Any,
) -> list[float | None]:
    """The share of the Voice line's claims that are true of the clip (`reasoning.grounding.share_true`), 0 to 1.

    cue_levels: each clip's measured cues, cue -> level or None for a gap; `equivox grpo` adds the column where a reward
    asks for it. None for a clip of which nothing could be measured. At level think only: without the four lines of
    thinking there is nothing to hold against the sound, and the answer earns 0. Prior: 0.000, for it does not
    think; the constant Voice line that is most often true earns what docs/reward.md says, by calling three cues usual
    that mostly are. So it is gamed: by a safe line about any voice. Ceiling: 1. It pays for hearing, not for answering:
    give it a small weight beside a distance, or 0 to log it.
    """
    return [
        None if levels is None else grounded_share(reading, levels)
        for reading, levels in zip(readings(completions, emotions), cue_levels, strict=True)
    ]


def grounding_above_chance(
    completions: Sequence[Any],
    emotions: Sequence[Sequence[str]],
    cue_levels: Sequence[Mapping[str, int | None] | None],
    cue_shares: Sequence[Mapping[str, Sequence[float]]],
    **columns: Any,
) -> list[float | None]:
    """`grounding` with each claim's truth counted above the share of training clips that it is true of, -1 to 1.

    cue_shares: `reasoning.grounding.level_shares` of the training clips, the same for each; `equivox grpo` adds the
    column where a reward asks for it. Prior: 0.000, for it does not think; neither does any line that is the same for
    every clip earn more on average, nor less, so a deaf policy has nothing to gain by it. Still gamed: by what words,
    speaker and sex give away about a voice. Ceiling: 1 less what chance is right about; what true lines earn is in
    docs/reward.md. None for a clip of which nothing could be measured; 0 where `grounding` pays 0 for no thinking.
    """
    return [
        None if levels is None else grounded_share(reading, levels, shares)
        for reading, levels, shares in zip(readings(completions, emotions), cue_levels, cue_shares, strict=True)
    ]
