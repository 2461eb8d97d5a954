"""What a text says about a voice, and whether it is true of the clip: rewards, verifier and evaluation all ask here.

    grounding = ground("high pitch, fast pace and a very bright timbre", levels_of(cues))
    len(grounding.true), len(grounding.false), len(grounding.unknown), grounding.unread

The vocabulary is closed. A claim is a cue's noun with a word for less, usual or more of it ("pitch very low", "a fast
pace"), or a word that can only mean one cue ("loud"); each compares with the same speaker's usual. A clause with
any other word in it is not guessed at: it is unread.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reasoning.cues import LEVELS, Cue

Levels = Mapping[str, int | None]
"""Cue -> its level in a clip, -2 to 2, or None where it is a gap."""

Shares = Mapping[str, Sequence[float]]
"""Cue -> the share of a corpus's clips at each of LEVELS, in their order, gaps left out; they sum to 1."""

NOUNS: Mapping[str, tuple[str, ...]] = {
    "pitch": ("pitch", "pitch level"),
    "pitch range": ("pitch range", "melody", "intonation"),
    "pitch slope": ("pitch slope", "pitch movement"),
    "loudness": ("loudness", "volume"),
    "loudness range": ("loudness range", "dynamics"),
    "pace": ("pace", "tempo", "speaking rate"),
    "pauses": ("pauses", "pausing"),
    "timbre": ("timbre", "spectrum"),
    "voice quality": ("voice quality", "phonation"),
}
LESS: Mapping[str, tuple[str, ...]] = {
    "pitch": ("low", "lower", "deep", "deeper"),
    "pitch range": ("narrow", "narrower", "flat", "flatter", "monotonous"),
    "pitch slope": ("falling", "sinking"),
    "loudness": ("low", "lower", "quiet", "quieter", "soft", "softer"),
    "loudness range": ("narrow", "narrower", "even"),
    "pace": ("slow", "slower"),
    "pauses": ("few", "fewer"),
    "timbre": ("dark", "darker", "dull", "duller"),
    "voice quality": ("breathy", "breathier", "rough", "rougher", "hoarse"),
}
MORE: Mapping[str, tuple[str, ...]] = {
    "pitch": ("high", "higher", "raised"),
    "pitch range": ("wide", "wider", "lively", "livelier"),
    "pitch slope": ("rising", "climbing"),
    "loudness": ("high", "higher", "loud", "louder"),
    "loudness range": ("wide", "wider", "uneven"),
    "pace": ("fast", "faster", "quick", "quicker", "hurried"),
    "pauses": ("many", "more"),
    "timbre": ("bright", "brighter", "sharp", "sharper"),
    "voice quality": ("clear", "clearer", "clean", "cleaner"),
}
USUAL = ("usual", "normal", "ordinary", "average", "typical")
STRONG = ("very", "extremely", "markedly", "much", "far")
NOT = ("not", "isn't", "aren't")

MIN_CLAIMS = 3
"""Cues that a text must claim for all of them to count: otherwise the one safest claim would earn everything."""

_NARROW = 2  # levels that a claim may leave open: "high" is true of high and very high
_FILLERS = frozenset(
    re.findall(
        "[a-z]+",
        "a an the this their its is are was were be stays remains sounds keeps has shows voice speaker speech of in at "
        "as it here quite rather fairly",
    )
)
_COMPARED = re.compile(
    r"\b(?:than|for|compared (?:with|to)) "
    r"(?:(?:this|the) speaker(?:'s)?(?: own)?(?: usual| normal| average)?|usual|normal|average)\b"
)
_BREAK = re.compile(r"[,:]| and | but | while | with | yet | though ")
_STATEMENT = re.compile(r"[;.]")
_NOUN_OF = {noun: cue for cue, nouns in NOUNS.items() for noun in nouns}
_MEANINGS = Counter(w for table in (LESS, MORE) for words in table.values() for w in words)
_ALONE = {w: cue for table in (LESS, MORE) for cue, words in table.items() for w in words if _MEANINGS[w] == 1}
_WORDS = frozenset([*_MEANINGS, *USUAL])
_NOUN = re.compile("|".join(rf"\b{noun}\b" for noun in sorted(_NOUN_OF, key=len, reverse=True)))  # longest first


@dataclass(frozen=True)
class Claim:
    """One statement about one cue: true of a clip exactly when the cue's level is one of `levels`."""

    cue: str
    levels: frozenset[int]
    text: str


@dataclass(frozen=True)
class Grounding:
    """The claims of a text, sorted by what the measurement says. unknown: of cues that are gaps. unread: clauses that
    hold anything but claims."""

    true: tuple[Claim, ...]
    false: tuple[Claim, ...]
    unknown: tuple[Claim, ...]
    unread: tuple[str, ...]


def levels_of(cues: Mapping[str, Cue]) -> dict[str, int | None]:
    """The levels that `ground` compares with."""
    return {name: cue.level for name, cue in cues.items()}


def is_measured(levels: Levels) -> bool:
    """Whether any cue of a clip could be measured. Where none could, neither reward nor evaluation judges what is said
    about the voice: nobody can know."""
    return any(level is not None for level in levels.values())


def ground(text: str, levels: Levels) -> Grounding:
    """What `text` claims, held against a clip's `levels`. Total: any text gives a Grounding."""
    claims, unread = read_claims(text)
    known = [claim for claim in claims if levels.get(claim.cue) is not None]
    return Grounding(
        true=tuple(c for c in known if levels[c.cue] in c.levels),
        false=tuple(c for c in known if levels[c.cue] not in c.levels),
        unknown=tuple(c for c in claims if levels.get(c.cue) is None),
        unread=unread,
    )


def share_true(text: str, levels: Levels, shares: Shares | None = None) -> float:
    """The share of what `text` says about a voice that is true of the clip, 0 to 1: the grounding reward and score.

    true cues / max(cues claimed + unread clauses, MIN_CLAIMS). A cue is true when every claim about it is, so saying it
    twice counts once. Not true: a claim about a gap, and one that leaves three of the five levels open ("not low"),
    which would be right of nearly any voice. Where fewer than MIN_CLAIMS cues were measured, claiming them all is
    enough. 0 without a claim, or without a measured cue.

    shares: `level_shares` of a corpus. With them each measured cue counts its truth minus the share of clips that the
    same claim is true of, so -1 to 1: what is said of every clip alike earns 0 on average, however safe it is.
    """
    claims, unread = read_claims(text)
    said: dict[str, frozenset[int]] = {}
    for claim in claims:
        left = claim.levels if len(claim.levels) <= _NARROW else frozenset()
        said[claim.cue] = said.get(claim.cue, left) & left
    known = [(cue, left) for cue, left in said.items() if levels.get(cue) is not None]
    earned = sum((levels[cue] in left) - _by_chance(cue, left, shares) for cue, left in known)
    measured = sum(level is not None for level in levels.values())
    return earned / max(len(said) + len(unread), min(MIN_CLAIMS, measured), 1)


def _by_chance(cue: str, claimed: frozenset[int], shares: Shares | None) -> float:
    return sum(shares[cue][i] for i, level in enumerate(LEVELS) if level in claimed) if shares else 0.0


def level_shares(clips: Sequence[Levels]) -> dict[str, list[float]]:
    """What `Shares` says, of these clips; nothing of a cue that none of them has."""
    found: dict[str, list[float]] = {}
    for cue in {cue for levels in clips for cue, level in levels.items() if level is not None}:
        count = Counter(level for levels in clips if (level := levels.get(cue)) is not None)
        found[cue] = [count[level] / count.total() for level in LEVELS]
    return found


def read_claims(text: str) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """(claims, clauses that are not claims) of a text, in its order."""
    claims: list[Claim] = []
    unread: list[str] = []
    for statement in _STATEMENT.split(_COMPARED.sub(" ", text.lower().replace("’", "'"))):
        clauses = [clause.strip() for clause in _BREAK.split(f" {statement} ")]
        _read_statement([clause for clause in clauses if clause], claims, unread)
    return tuple(claims), tuple(unread)


def _read_statement(clauses: Sequence[str], claims: list[Claim], unread: list[str]) -> None:
    """Add the claims and unread clauses of one statement. A bare noun takes the word of the clause after it ("pitch
    and pace are low"), at the end of the statement that of the clause before it ("usual pitch and pace")."""
    waiting: list[tuple[str, str]] = []
    last = ""
    for clause in clauses:
        cues, rest = _take_nouns(clause)
        if not rest and cues:
            waiting += [(cue, clause) for cue in cues]
            continue
        made = [_claim(cue, rest, clause) for cue in [cue for cue, _ in waiting] + cues] or [_claim(None, rest, clause)]
        if any(claim is None for claim in made):
            unread += [text for _, text in waiting] + [clause]
        else:
            claims += [claim for claim in made if claim]
        waiting, last = [], rest
    for cue, clause in waiting:
        claim = _claim(cue, last, clause)
        if claim:
            claims.append(claim)
        else:
            unread.append(clause)


def _take_nouns(clause: str) -> tuple[list[str], str]:
    """The cues a clause names, and its other words without fillers."""
    cues = [_NOUN_OF[match[0]] for match in _NOUN.finditer(clause)]
    return cues, " ".join(w for w in _NOUN.sub(" ", clause).split() if w not in _FILLERS)


def _claim(cue: str | None, rest: str, text: str) -> Claim | None:
    """The claim that the words `rest` make about `cue`, or about the only cue they can mean, or None."""
    words = rest.split()
    negated, strong = bool(words) and words[0] in NOT, False
    words = words[1:] if negated else words
    if words and words[0] in STRONG:
        strong, words = True, words[1:]
    if len(words) != 1 or words[0] not in _WORDS:
        return None
    cue = cue or _ALONE.get(words[0])
    if cue is None:
        return None
    if words[0] in USUAL:
        levels = frozenset({0})
    elif words[0] in LESS[cue]:
        levels = frozenset({-2} if strong else {-2, -1})
    elif words[0] in MORE[cue]:
        levels = frozenset({2} if strong else {1, 2})
    else:
        return None
    return Claim(cue, frozenset(LEVELS) - levels if negated else levels, text)
