"""The report's clips: which are shown, in which orders, their audio as data URIs, and votes beside answers."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from reasoning.audio import SAMPLE_RATE, read_audio
from reasoning.distributions import entropy_bits, normalize_votes
from reasoning.errors import EvaluationError
from reasoning.evaluation.metrics import per_clip
from reasoning.evaluation.report.views import Answer, ClipAnswers, Scores, Series

AUDIO_BUDGET = 7_000_000
"""Bytes of base64 audio a page may hold, so that it stays under 10 MB and can be mailed."""

GROUPS = ("sample", "worst", "best", "ambiguous")
"""sample: evenly spaced from best to worst, so that nothing was picked by hand. ambiguous: highest vote entropy."""


@dataclass(frozen=True)
class Pick:
    """One clip to show. ranks: its place in each group that holds it, counted from 0."""

    id: str
    ranks: dict[str, int]


def pick_clips(ids: Sequence[str], jsd_bits: Sequence[float], entropy_bits: Sequence[float], limit: int) -> list[Pick]:
    """At most `limit` clips: a quarter for each of GROUPS (one clip may serve several), in order of first use.

    ids, jsd_bits (of the system the page leads with) and entropy_bits (of the votes) run side by side. Ties go to the
    smaller id, so that the same predictions give the same page. A limit under four serves the first of GROUPS.
    """
    n = len(ids)
    by_error = sorted(range(n), key=lambda i: (jsd_bits[i], ids[i]))
    size = min(n, max(limit // len(GROUPS), 1))
    last = max(size - 1, 1)
    chosen = {
        "sample": [by_error[round(k * (n - 1) / last)] for k in range(size)],
        "worst": sorted(range(n), key=lambda i: (-jsd_bits[i], ids[i]))[:size],
        "best": by_error[:size],
        "ambiguous": sorted(range(n), key=lambda i: (-entropy_bits[i], ids[i]))[:size],
    }
    ranks: dict[int, dict[str, int]] = {}
    for group in GROUPS:
        for rank, i in enumerate(chosen[group]):
            ranks.setdefault(i, {})[group] = rank
    return [Pick(ids[i], found) for i, found in ranks.items()][: max(limit, 0)]


def audio_uri(root: Path, relative: str, row: str) -> str:
    """The clip as a `data:` URI: mono 16 kHz as the model heard it, MP3 (FLAC where libsndfile writes no MP3).

    Raises EvaluationError when `relative` leads out of `root`, AudioError when there is no such audio.
    """
    # Compared as text, not resolved: datasets kept by git-annex are links that lead out of their folder on purpose.
    if os.path.isabs(relative) or os.path.normpath(relative).split(os.sep)[0] == os.pardir:
        raise EvaluationError(f"path {relative!r} leads out of the corpus root", row=row, field="audio")
    samples = read_audio(root / relative, row=row, allow_silence=True)
    kind, mime = ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("FLAC", "audio/flac")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format=kind)
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def audio_uris(root: Path, paths: Sequence[tuple[str, str]], budget: int = AUDIO_BUDGET) -> dict[str, str]:
    """Clip id -> data URI for (id, relative path) pairs, in order, until the next would pass `budget` bytes."""
    found: dict[str, str] = {}
    used = 0
    for row, relative in paths:
        uri = audio_uri(root, relative, row)
        if used + len(uri) > budget:
            break
        found[row] = uri
        used += len(uri)
    return found


@dataclass(frozen=True)
class CardReadout:
    """One readout's shares on a card (None: no usable answer, for `problems`), and their jsd_bits from the votes."""

    title: str
    shares: tuple[float, ...] | None
    problems: tuple[str, ...]
    jsd_bits: float


@dataclass(frozen=True)
class CardSystem:
    """One system's readouts of a clip, and what it wrote, verbatim."""

    system: str
    readouts: tuple[CardReadout, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """One clip as shown. ranks: its place in each group of GROUPS. audio: a data URI, None past the page's budget."""

    id: str
    speaker: str
    transcript: str | None
    votes: tuple[int, ...]
    ranked: tuple[tuple[str, int], ...]
    voted: tuple[float, ...]
    entropy_bits: float
    ranks: dict[str, int]
    audio: str | None
    systems: tuple[CardSystem, ...]


def clip_cards(scores: Scores, clips: Sequence[ClipAnswers], audio_root: Path, limit: int) -> list[Card]:
    """At most `limit` clips as cards, chosen by the lead model's jsd_bits. Empty without a model."""
    lead = scores.lead
    shown = [c for c in clips if lead is not None and lead.key in c.answers]
    if lead is None or not shown:
        return []
    votes_NK = [c.votes for c in shown]
    entropy = entropy_bits(normalize_votes(votes_NK))
    picks = pick_clips([c.id for c in shown], list(_jsd(shown, lead)), list(entropy), limit)
    place = {c.id: i for i, c in enumerate(shown)}
    audio = audio_uris(audio_root, [(p.id, shown[place[p.id]].audio) for p in picks])
    models = [s for s in scores.series if s.kind == "model"]
    cards = []
    for pick in picks:
        clip = shown[place[pick.id]]
        voted = tuple(float(v) for v in normalize_votes([clip.votes])[0])
        cards.append(
            Card(
                id=clip.id,
                speaker=clip.speaker,
                transcript=clip.transcript,
                votes=clip.votes,
                ranked=_ranked(scores.emotions, clip.votes),
                voted=voted,
                entropy_bits=float(entropy[place[pick.id]]),
                ranks=pick.ranks,
                audio=audio.get(clip.id),
                systems=_systems(clip, models),
            )
        )
    return cards


def _ranked(emotions: Sequence[str], votes: Sequence[int]) -> tuple[tuple[str, int], ...]:
    """(emotion, votes) of the emotions that somebody chose, most chosen first."""
    chosen = [(e, n) for e, n in zip(emotions, votes, strict=True) if n > 0]
    return tuple(sorted(chosen, key=lambda pair: -pair[1]))


def _jsd(clips: Sequence[ClipAnswers], series: Series) -> NDArray[np.float64]:
    """jsd_bits of `series` on each clip, 1 where it gave no usable answer, as the scores count it."""
    answers = [c.answers[series.key].probabilities for c in clips]
    n_emotions = len(clips[0].votes)
    probs = [a if a is not None else (1 / n_emotions,) * n_emotions for a in answers]
    return per_clip([c.votes for c in clips], probs, [a is None for a in answers])["jsd_bits"]


def _systems(clip: ClipAnswers, models: Sequence[Series]) -> tuple[CardSystem, ...]:
    found = []
    for system in dict.fromkeys(s.system for s in models):
        own = [s for s in models if s.system == system and s.key in clip.answers]
        if not own:
            continue
        readouts = tuple(_readout(clip, s, clip.answers[s.key]) for s in own)
        texts = [clip.answers[s.key].text for s in own]
        found.append(CardSystem(system, readouts, tuple(dict.fromkeys(t for t in texts if t is not None))))
    return tuple(found)


def _readout(clip: ClipAnswers, series: Series, answer: Answer) -> CardReadout:
    return CardReadout(series.readout, answer.probabilities, answer.problems, float(_jsd([clip], series)[0]))
