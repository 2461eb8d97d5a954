"""Controls: the same question with the audio swapped, silenced or left out. A model that hears must lose by them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reasoning.audio import SAMPLE_RATE
from reasoning.clips import Clip
from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.errors import EvaluationError

CONTROLS = ("shuffled", "silence", "text_only")

MIN_DIFFERENCE = 0.25
"""jsd_bits between two clips' votes from which they count as different: two halves of one clip's own raters differ by
.234 on average (CREMA-D, voice only)."""


@dataclass(frozen=True)
class ShuffledPlan:
    """Whose audio each clip is given. donors: clip id -> the clip whose audio is played instead of its own.

    below_threshold: how many donors' votes differ by less than MIN_DIFFERENCE because none differed more.
    other_sentence: how many donors say another sentence because nobody else says this one.
    """

    donors: dict[str, Clip]
    below_threshold: int
    other_sentence: int

    def counts(self) -> dict[str, int]:
        """JSON-safe counts for the scores."""
        return {
            "n_clips": len(self.donors),
            "below_threshold": self.below_threshold,
            "other_sentence": self.other_sentence,
        }


def plan_shuffled(clips: Sequence[Clip], seed: int = 0) -> ShuffledPlan:
    """A donor for each clip out of `clips`: another speaker, the same sentence, other votes.

    Drawn at random, seeded by the clip's id, among those whose votes differ by at least
    MIN_DIFFERENCE; if none does, the one that differs most; if nobody else says the sentence, the same among the clips
    of all other speakers. Raises EvaluationError when there is only one speaker.
    """
    by_sentence: dict[str | None, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_sentence[clip.transcript].append(clip)
    donors: dict[str, Clip] = {}
    below = elsewhere = 0
    for clip in clips:
        known = clip.transcript is not None  # two clips without a transcript need not say the same
        candidates = [c for c in by_sentence[clip.transcript] if known and c.speaker != clip.speaker]
        if not candidates:
            candidates = [c for c in clips if c.speaker != clip.speaker]
            elsewhere += 1
        if not candidates:
            what = f"only speaker {clip.speaker} is there, so nobody else's audio can be played"
            raise EvaluationError(what, row=clip.id, field="controls", cure="leave out the shuffled control")
        donors[clip.id], differs = _donor(clip, candidates, seed)
        below += not differs
    return ShuffledPlan(donors, below, elsewhere)


def silence(clip: Clip) -> np.ndarray:
    """Zeros of the clip's duration: float32 mono at 16 kHz."""
    return np.zeros(round(clip.duration_s * SAMPLE_RATE), dtype=np.float32)


def _donor(clip: Clip, candidates: Sequence[Clip], seed: int) -> tuple[Clip, bool]:
    """(the donor, whether its votes differ by MIN_DIFFERENCE or more)."""
    votes = normalize_votes([c.votes for c in candidates])
    differences = jsd_bits(votes, normalize_votes([clip.votes]))
    different = np.flatnonzero(differences >= MIN_DIFFERENCE)
    if len(different) == 0:
        return candidates[int(differences.argmax())], False
    rng = np.random.default_rng([seed, *clip.id.encode()])
    return candidates[int(rng.choice(different))], True
