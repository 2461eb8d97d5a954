"""Traces for a corpus: cues measured, a trace written for each clip, each judged by the verifier.

made = prepare(corpus, Path("data/crema_d"), TemplateWriter(corpus.info.emotions, seed=0), workers=2)
made.rows, made.rejected, made.unwritten
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_builders.rows import Corpus
from data_builders.traces.measured import corpus_cues
from data_builders.traces.trace_file import TraceRow
from reasoning.clips import Clip
from reasoning.cues import Cue
from reasoning.grounding import levels_of
from reasoning.verifier import verify

CuesOf = Mapping[str, Mapping[str, Cue]]
"""Clip id -> cue -> what was measured."""


@dataclass(frozen=True)
class Draft:
    """What a writer has for a clip: the text of a think block, or None and why there is none."""

    id: str
    thinking: str | None
    problem: str | None = None


class Writer(Protocol):
    """Writes traces. name: with a version, stored with every trace. saw_votes: whether it is shown the votes."""

    @property
    def name(self) -> str: ...
    @property
    def saw_votes(self) -> bool: ...
    def write(self, clips: Sequence[Clip], cues: CuesOf) -> Iterator[Draft]:
        """A draft for every clip, in any order."""
        ...


@dataclass(frozen=True)
class Made:
    """rows: a trace for every clip that got one, in the corpus's order. rejected: reason -> traces (one may have
    several). unwritten: why there is no trace -> clips. gaps: (cue, gap) -> clips. with_others: clips of which at least
    one cue is said relative to other speakers' clips too (reasoning.cues.relative)."""

    rows: tuple[TraceRow, ...]
    rejected: Mapping[str, int]
    unwritten: Mapping[str, int]
    gaps: Mapping[tuple[str, str], int]
    with_others: int

    @property
    def kept(self) -> tuple[TraceRow, ...]:
        return tuple(row for row in self.rows if row.verdict == "kept")


def prepare(corpus: Corpus, folder: Path, writer: Writer, workers: int = 1, progress: bool = True) -> Made:
    """Measure (through the cache in `folder`), write and judge. Every clip is in `rows` or counted in `unwritten`."""
    cues = corpus_cues(corpus, folder, workers, progress)
    drafts = {draft.id: draft for draft in writer.write(corpus.clips, cues)}
    rows, rejected, unwritten = [], Counter(), Counter()
    for clip in corpus.clips:
        draft = drafts[clip.id]
        if draft.thinking is None:
            unwritten[draft.problem or "no reason given"] += 1
            continue
        reasons = verify(draft.thinking, levels_of(cues[clip.id]), clip.votes, corpus.info.emotions).reasons
        rejected.update(reasons)
        verdict = "rejected" if reasons else "kept"
        rows.append(TraceRow(clip.id, draft.thinking, writer.name, writer.saw_votes, verdict, reasons))
    gaps = Counter((name, cue.gap) for found in cues.values() for name, cue in found.items() if cue.gap)
    return Made(
        rows=tuple(rows),
        rejected=dict(rejected.most_common()),
        unwritten=dict(unwritten.most_common()),
        gaps=dict(gaps.most_common()),
        with_others=sum(any(cue.reference in ("sex", "corpus") for cue in of.values()) for of in cues.values()),
    )
