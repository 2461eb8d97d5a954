"""Preference pairs of three kinds, and what is left out of them and why. The construction is our own.

    own        two of the policy's own answers to a clip, ranked by jsd_bits of their Shares to the clip's votes
    contrast   the votes of this clip, written as an answer, against those of another clip with the same sentence
    grounding  one answer after two traces that differ in the Voice line: true of the clip, and contradicted by it

Pure functions of what they are given; `launch/preferences.py` samples the answers and stores the pairs.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_builders.pair_file import Pair
from reasoning.clips import Clip
from reasoning.distributions import jsd_bits, normalize_votes, tvd
from reasoning.emotions import EmotionSet
from reasoning.grounding import Levels, ground
from reasoning.readings import read_once
from reasoning.response import ANSWER_PREFIX, HUNDREDTHS, ShareGrid, write_response

UNREADABLE_BITS = 1.0
"""The distance of an answer that cannot be read: failing never pays."""

SAME_SHARES, SAME_WORDS = 0.05, 0.9
"""Two answers are near-duplicates when their Shares are at most this far apart (total variation) and their thinking has
at least this much of its words in common (Jaccard)."""

Tokens = Callable[[str], int]
_VOICE = re.compile(r"^Voice: (.*)$", re.MULTILINE)


@dataclass
class Built:
    """Pairs, and how many could not be made for which (kind, reason)."""

    pairs: list[Pair] = field(default_factory=list)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass(frozen=True)
class Ranked:
    """One answer to a clip, how far its Shares are from the votes, and whether they can be read."""

    text: str
    bits: float
    readable: bool


def own_pairs(
    clips: Sequence[Clip],
    samples: Mapping[str, Sequence[str]],
    emotions: EmotionSet,
    tokens: Tokens,
    *,
    has_slot: Callable[[str], bool],
    margin_bits: float,
    good_bits: float,
    per_clip: int = 1,
) -> Built:
    """The nearest of a clip's sampled answers against the farthest, the next nearest against the next farthest, ...

    samples: clip id -> texts. margin_bits: how much farther the rejected one must be. good_bits: how far the chosen one
    may be; it can be read, the rejected one need not. has_slot: whether a text still has its vote slot when it is
    encoded anew (tokens that were sampled may spell a line that is encoded with others); the chosen one must. Answers
    that differ in their vote alone are one answer, for votes carry no loss, and one without a word is none.
    """
    built = Built()
    for clip in clips:
        texts = [text for text in samples.get(clip.id, ()) if text.strip()]
        built.left_out["own", "empty sample"] += len(samples.get(clip.id, ())) - len(texts)
        ranked = ranked_answers(texts, clip.votes, emotions)
        if len(ranked) < 2:
            built.left_out["own", "all samples are one answer" if ranked else "no sample"] += 1
            continue
        for chosen, rejected in zip(ranked[: min(per_clip, len(ranked) // 2)], reversed(ranked), strict=False):
            if not chosen.readable:
                built.left_out["own", "no sample can be read"] += 1
            elif not has_slot(chosen.text):
                built.left_out["own", "no vote slot when encoded anew"] += 1
            elif rejected.bits - chosen.bits < 1e-9:
                built.left_out["own", "tie"] += 1
            elif rejected.bits - chosen.bits < margin_bits:
                built.left_out["own", "below the margin"] += 1
            elif chosen.bits > good_bits:
                built.left_out["own", "even the nearest is far"] += 1
            else:
                built.pairs.append(_pair(clip, "own", chosen, rejected, tokens))
    return built


def ranked_answers(texts: Sequence[str], votes: Sequence[int], emotions: EmotionSet) -> list[Ranked]:
    """The distinct answers among `texts`, nearest to the votes first, of two as near the one that can be read."""
    distinct: dict[str, str] = {}
    for text in texts:
        distinct.setdefault(without_vote(text), text)
    ranked = [_ranked(text, votes, emotions) for text in distinct.values()]
    return sorted(ranked, key=lambda answer: (answer.bits, not answer.readable))


def _ranked(text: str, votes: Sequence[int], emotions: EmotionSet) -> Ranked:
    shares = read_once(text, emotions.names).probabilities
    if shares is None:
        return Ranked(text, UNREADABLE_BITS, readable=False)
    return Ranked(text, float(jsd_bits(normalize_votes(votes), [shares])[0]), readable=True)


def without_vote(text: str) -> str:
    """`text` with what stands on the line of the first ANSWER_PREFIX taken out: all that carries loss in training."""
    before, prefix, rest = text.partition(ANSWER_PREFIX)
    return before + prefix + rest[rest.find("\n") if "\n" in rest else 0 :]


def contrast_pairs(
    clips: Sequence[Clip],
    emotions: EmotionSet,
    tokens: Tokens,
    *,
    margin_bits: float,
    seed: int,
    grid: ShareGrid = HUNDREDTHS,
    traces: Mapping[str, str] | None = None,
) -> Built:
    """The clip's votes as an answer against those of another clip that lie at least `margin_bits` of jsd away.

    The other clip has the same transcript where one with such votes exists, else any; which one is drawn by `seed`.
    Both answers carry the same vote, of this clip's listeners, so that they differ in their Shares and, where `traces`
    (clip id -> thinking) are given, in their thinking.
    """
    built = Built()
    usable = [clip for clip in clips if traces is None or clip.id in traces]
    built.left_out["contrast", "no trace"] += len(clips) - len(usable)
    if not usable:
        return built
    shares_NK = normalize_votes([clip.votes for clip in usable])
    by_sentence: dict[str | None, list[int]] = defaultdict(list)
    for i, clip in enumerate(usable):
        by_sentence[clip.transcript].append(i)
    for i, clip in enumerate(usable):
        rng = _generator(seed, "contrast", clip.id)
        groups = (by_sentence[clip.transcript] if clip.transcript else [], range(len(usable)))
        other = next((j for g in groups if (j := _far_one(i, g, shares_NK, margin_bits, rng)) is not None), None)
        if other is None:
            built.left_out["contrast", "no clip with votes that far"] += 1
            continue
        vote = emotions.names[int(rng.choice(len(emotions), p=shares_NK[i]))]
        texts = [
            write_response(shares_NK[j].tolist(), vote, emotions, (traces or {}).get(usable[j].id), grid)
            for j in (i, other)
        ]
        chosen, rejected = (_ranked(text, clip.votes, emotions) for text in texts)
        if rejected.bits <= chosen.bits:
            built.left_out["contrast", "tie"] += 1
            continue
        built.pairs.append(_pair(clip, "contrast", chosen, rejected, tokens))
    return built


def _far_one(
    i: int, group: Sequence[int], shares_NK: np.ndarray, margin_bits: float, rng: np.random.Generator
) -> int | None:
    """One of `group` whose votes are at least margin_bits from those of clip i, or None."""
    members = np.asarray(group, dtype=int)
    far = members[jsd_bits(shares_NK[[i]], shares_NK[members]) >= margin_bits] if len(members) else members
    return int(rng.choice(far)) if len(far) else None


def grounding_pairs(
    clips: Sequence[Clip],
    traces: Mapping[str, str],
    levels: Mapping[str, Levels],
    emotions: EmotionSet,
    tokens: Tokens,
    *,
    contradictions: int,
    seed: int,
    grid: ShareGrid = HUNDREDTHS,
) -> Built:
    """A clip's answer after its own trace against the same after that trace with another clip's Voice line.

    traces: clip id -> verified thinking. levels: clip id -> what was measured. contradictions: how many claims of the
    other Voice line the measurement must contradict; the clip's own line must be true throughout. The other clip is one
    of `clips`: a trace file holds held-out speakers too, whose lines are not for training.
    """
    built = Built()
    voices = {clip.id: found[1] for clip in clips if (found := _VOICE.search(traces.get(clip.id, "")))}
    names = sorted(voices)
    for clip in clips:
        if clip.id not in voices or clip.id not in levels:
            built.left_out["grounding", "no trace or no measurement"] += 1
            continue
        own = ground(voices[clip.id], levels[clip.id])
        if own.false or own.unread or own.unknown or not own.true:
            built.left_out["grounding", "its own Voice line is not true throughout"] += 1
            continue
        rng = _generator(seed, "grounding", clip.id)
        false = _contradicting(voices, names, levels[clip.id], contradictions, rng)
        if false is None:
            built.left_out["grounding", "no Voice line contradicts it enough"] += 1
            continue
        shares = normalize_votes(clip.votes)[0].tolist()
        vote = emotions.names[int(rng.choice(len(emotions), p=shares))]
        true = traces[clip.id]
        contradicted = true.replace(f"Voice: {voices[clip.id]}", f"Voice: {false}", 1)
        texts = [write_response(shares, vote, emotions, each, grid) for each in (true, contradicted)]
        chosen, rejected = (_ranked(text, clip.votes, emotions) for text in texts)
        built.pairs.append(_pair(clip, "grounding", chosen, rejected, tokens))
    return built


TRIED = 64
"""Other clips' Voice lines that are held against a clip before it is given up."""


def _contradicting(
    voices: Mapping[str, str], names: Sequence[str], levels: Levels, least: int, rng: np.random.Generator
) -> str | None:
    """A Voice line with at least `least` claims that `levels` contradict, among TRIED drawn ones; None without one."""
    for j in rng.permutation(len(names))[:TRIED]:
        text = voices[names[int(j)]]
        if len(ground(text, levels).false) >= least:
            return text
    return None


def without_near_duplicates(pairs: Sequence[Pair], emotions: EmotionSet) -> Built:
    """The pairs without those that say nearly the same of their clip as an earlier one, whatever its kind.

    Near: both the chosen and the rejected answers are (SAME_SHARES, SAME_WORDS); unreadable ones when equal.
    """
    built = Built()
    kept: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if any(
            _near(pair.chosen, other.chosen, emotions) and _near(pair.rejected, other.rejected, emotions)
            for other in kept[pair.id]
        ):
            built.left_out[pair.kind, "near-duplicate"] += 1
            continue
        kept[pair.id].append(pair)
        built.pairs.append(pair)
    return built


def _near(a: str, b: str, emotions: EmotionSet) -> bool:
    if without_vote(a) == without_vote(b):
        return True
    first, second = read_once(a, emotions.names), read_once(b, emotions.names)
    if first.probabilities is None or second.probabilities is None:
        return False
    words = [set((reading.thinking or "").lower().split()) for reading in (first, second)]
    both = len(words[0] | words[1])
    alike = len(words[0] & words[1]) / both if both else 1.0
    return alike >= SAME_WORDS and float(tvd([first.probabilities], [second.probabilities])[0]) <= SAME_SHARES + 1e-9


def length_balanced(pairs: Sequence[Pair], tolerance: float) -> Built:
    """The pairs without the most unequal ones, until each kind's mean of chosen minus rejected is in `tolerance`.

    Tokens. One after the other, the pair with the largest difference in the direction of the mean goes, so that being
    longer, or shorter, is no way to be preferred.
    """
    built = Built()
    dropped: set[int] = set()
    for kind in dict.fromkeys(pair.kind for pair in pairs):
        left = sorted((p.chosen_tokens - p.rejected_tokens, i) for i, p in enumerate(pairs) if p.kind == kind)
        total = sum(difference for difference, _ in left)
        while left and abs(total) > tolerance * len(left):
            difference, i = left.pop(-1 if total > 0 else 0)
            total -= difference
            dropped.add(i)
            built.left_out[kind, "unbalanced length"] += 1
    built.pairs = [pair for i, pair in enumerate(pairs) if i not in dropped]
    return built


def token_difference(pairs: Sequence[Pair]) -> dict[str, float]:
    """Mean of chosen minus rejected tokens of the pairs of each kind, and of `all`; empty without a pair."""
    by_kind: dict[str, list[int]] = defaultdict(list)
    for pair in pairs:
        for kind in (pair.kind, "all"):
            by_kind[kind].append(pair.chosen_tokens - pair.rejected_tokens)
    return {kind: round(float(np.mean(values)), 3) for kind, values in sorted(by_kind.items())}


def report(
    made: Sequence[Pair], kept: Sequence[Pair], left_out: Counter[tuple[str, str]], emotions: EmotionSet
) -> dict[str, Any]:
    """What is written beside the pairs. made: before near-duplicates and balance. left_out: over all stages."""
    reasons: dict[str, dict[str, int]] = defaultdict(dict)
    for (kind, reason), count in sorted(left_out.items()):
        if count:
            reasons[kind][reason] = count
    return {
        "pairs": dict(sorted(Counter(pair.kind for pair in kept).items())),
        "clips": len({pair.id for pair in kept}),
        "rejected_unreadable": sum(read_once(p.rejected, emotions.names).probabilities is None for p in kept),
        "left_out": dict(reasons),
        "token_difference_before": token_difference(made),
        "token_difference_after": token_difference(kept),
        "chosen_bits": _mean([pair.chosen_bits for pair in kept]),
        "rejected_bits": _mean([pair.rejected_bits for pair in kept]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _pair(clip: Clip, kind: str, chosen: Ranked, rejected: Ranked, tokens: Tokens) -> Pair:
    return Pair(
        id=clip.id,
        kind=kind,
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_bits=chosen.bits,
        rejected_bits=rejected.bits,
        chosen_tokens=tokens(chosen.text),
        rejected_tokens=tokens(rejected.text),
        votes=tuple(int(v) for v in clip.votes),
    )


def _generator(seed: int, kind: str, row: str) -> np.random.Generator:
    """The same draws for the same clip, whatever other clips there are."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{kind}/{row}".encode()).digest()[:8], "big"))
