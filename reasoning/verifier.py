"""Whether a reasoning trace may be learned from: true of its clip, in line with its votes, not giving them away.

    verdict = verify(thinking, levels_of(cues), clip.votes, emotions)
    verdict.reasons      # () when the trace is kept, else names from REASONS

A trace is what stands in the think block (reasoning.response), in four lines:

    Words: what the text alone suggests
    Voice: claims about cues (reasoning.grounding), nothing else
    Ambiguity: where words, voice or listeners pull apart
    Weighing: fast pace speaks for anger, fear and happy, against sad; low loudness fits sad and opposes anger

A line of weighing is claims, then the emotions they speak for and against, and nothing else either.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reasoning.emotions import EmotionSet
from reasoning.grounding import Claim, Grounding, Levels, Shares, ground, read_claims, share_true
from reasoning.response import Reading

REASONS = {
    "bad_layout": "not four lines Words, Voice, Ambiguity, Weighing, each with text; or a tag, or a control character",
    "voice_empty": "the Voice line claims nothing",
    "voice_unread": "the Voice line holds more than claims from the vocabulary",
    "voice_false": "the Voice line contradicts the measurement",
    "voice_unmeasured": "the Voice line claims what could not be measured",
    "weighing_unread": "the Weighing line is not statements of claims and the emotions they speak for and against",
    "weighing_false": "the Weighing line rests on something that the measurement contradicts or does not hold",
    "answer_contradicts": "the reasoning speaks against what listeners voted for most, or most for what got few votes",
    "share_number": "a share is given as a number",
    "winner_named": "one emotion is singled out or ruled out, so that the trace fixes the answer by itself",
}
"""Every reason for which a trace is rejected."""

NAMES = ("Words", "Voice", "Ambiguity", "Weighing")
_TRACE = re.compile("\n".join(rf"{name}: (\S[^\n]*)" for name in NAMES))

_FAVOUR = r"(?:speaks? |argues? |counts? )?for|favou?rs?|supports?|fits?|suits?|points? to"
_OPPOSE = r"(?:speaks? |argues? |counts? )?against|opposes?|contradicts?"
_STANCE = re.compile(rf"\b(?:(?P<favour>{_FAVOUR})|(?P<oppose>{_OPPOSE}))\b")
_SPEAKER = re.compile(r" (?:for|of) (?:this|the) speaker\b")
_LIST_WORDS = frozenset({"and", "or", "but", "both"})

_SOME = r"two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|all|several|few|many|couple|handful|rest"
_COUNT = rf"(?:one|no|none|every|each|{_SOME})"
_NUMBER = re.compile(
    r"\d|[¼-¾⅐-⅟]|%|\bper ?cent\b|\bhal(?:f|ves)\b|\bthirds?\b|\bquarters?\b|\bfifths?\b|\btenths?\b|\btwice\b"
    rf"|\b{_COUNT} (?:of (?:the )?)?(?:listeners?|raters?|people|votes?|voters?)\b|\b{_COUNT} (?:in|out of) {_COUNT}\b"
    rf"|\b(?:{_SOME}) (?:hears?|heard)\b"  # "one hears fear or sad" counts nobody
)
_DECIDED = re.compile(
    r"\b(?:most|mostly|mainly|chiefly|majority|minority|unanimous|unanimously|dominant|dominat(?:es?|ed|ing)"
    r"|predominant(?:ly)?|prevails?|winn(?:er|ing)|wins?|won|leads?|leading|foremost|by far|more than(?! one\b)"
    r"|everyone|everybody|nobody|no one|none|(?:nearly|almost) all|all of (?:them|us)"
    r"|best|strongest|likeliest|likely|probably|certainly|definitely|obviously|clearly|surely|therefore|hence|thus"
    r"|overall|answer|conclusion|must be|votes?|voted)\b"
)
_RULED_OUT = re.compile(r"(?:\b(?:not|no|nor|neither|never|without|than)|n['’]t) ([a-z]+)")
_OF_TEXT = re.compile(r"\b(?:texts?|words?|wording|sentences?|phrases?|lines?|transcript|read|reads)\b")
_OF_SPEAKER = re.compile(r"\b(?:speaker|voice|he|she|they)\b")


@dataclass(frozen=True)
class Trace:
    """The text of each line of a trace."""

    words: str
    voice: str
    ambiguity: str
    weighing: str


@dataclass(frozen=True)
class Argument:
    """One statement of a Weighing line: what speaks, for which emotions, against which."""

    claims: tuple[Claim, ...]
    supports: tuple[str, ...]
    opposes: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """reasons: names from REASONS, in their order; empty when the trace is kept. voice: its Voice line against the
    measurement, None without one."""

    reasons: tuple[str, ...]
    voice: Grounding | None


def write_trace(trace: Trace) -> str:
    """The text of the think block. `read_trace` reads it back."""
    values = (trace.words, trace.voice, trace.ambiguity, trace.weighing)
    return "\n".join(f"{name}: {value}" for name, value in zip(NAMES, values, strict=True))


def read_trace(thinking: str) -> Trace | None:
    """The four lines of a think block's text, or None when it is not exactly those.

    Angle brackets are refused: the tags of the answer grammar and a model's special tokens are written in them. So is
    what does not print, such as control characters, half a surrogate pair, and spaces other than " ".
    """
    match = _TRACE.fullmatch(thinking.strip())
    clean = thinking.replace("\n", "").isprintable() and not re.search("[<>]", thinking)
    return Trace(*match.groups()) if match and clean else None


def grounded_share(reading: Reading, levels: Levels, shares: Shares | None = None) -> float:
    """What reward and evaluation make of a sampled answer's Voice line: `grounding.share_true`.

    0 for an answer that cannot be read, and for thinking that is not the four lines of a trace.
    """
    trace = None if reading.problems else read_trace(reading.thinking or "")
    return 0.0 if trace is None else share_true(trace.voice, levels, shares)


def read_weighing(line: str, emotions: EmotionSet) -> tuple[tuple[Argument, ...], tuple[str, ...]]:
    """(arguments, statements that are none) of a Weighing line."""
    arguments, unread = [], []
    for statement in re.split("[;.]", _SPEAKER.sub("", line.lower())):
        if statement.strip():
            argument = _read_argument(statement.strip(), emotions)
            if argument:
                arguments.append(argument)
            else:
                unread.append(statement.strip())
    return tuple(arguments), tuple(unread)


def balance(arguments: Sequence[Argument], emotions: EmotionSet) -> dict[str, int]:
    """Emotion -> claims that speak for it minus claims that speak against it."""
    count: Counter[str] = Counter()
    for argument in arguments:
        for name in argument.supports:
            count[name] += len(argument.claims)
        for name in argument.opposes:
            count[name] -= len(argument.claims)
    return {name: count[name] for name in emotions.names}


def verify(thinking: str, levels: Levels, votes: Sequence[int], emotions: EmotionSet) -> Verdict:
    """Whether a trace is kept for a clip with these cue levels and votes (K,) and, if not, every reason. Total."""
    trace = read_trace(thinking)
    if trace is None:
        return Verdict(("bad_layout",), None)
    voice = ground(trace.voice, levels)
    found = {
        "voice_empty": not (voice.true or voice.false or voice.unknown),
        "voice_unread": bool(voice.unread),
        "voice_false": bool(voice.false),
        "voice_unmeasured": bool(voice.unknown),
        **_judge_weighing(trace.weighing, levels, votes, emotions),
        "share_number": any(_NUMBER.search(text.lower()) for text in vars(trace).values()),
    }
    found["winner_named"] |= _singles_out(trace, emotions)
    return Verdict(tuple(reason for reason in REASONS if found.get(reason)), voice)


def _judge_weighing(line: str, levels: Levels, votes: Sequence[int], emotions: EmotionSet) -> dict[str, bool]:
    arguments, unread = read_weighing(line, emotions)
    claims = [claim for argument in arguments for claim in argument.claims]
    support = balance(arguments, emotions)
    return {
        "weighing_unread": bool(unread) or not arguments,
        "weighing_false": any(levels.get(claim.cue) not in claim.levels for claim in claims),
        "answer_contradicts": bool(arguments) and _contradicts(support, votes, emotions),
        "winner_named": bool(arguments) and sum(count > 0 for count in support.values()) < 2,
    }


def _contradicts(support: dict[str, int], votes: Sequence[int], emotions: EmotionSet) -> bool:
    """Whether the balance is negative for every emotion with the most votes, or best for emotions with few of them.

    Few: the n best supported of K emotions together hold less than n/K of the votes, what any n would hold by chance.
    """
    counts = dict(zip(emotions.names, votes, strict=True))
    first = [name for name in emotions.names if counts[name] == max(votes)]
    best = [name for name in emotions.names if support[name] == max(support.values())]
    few = sum(counts[name] for name in best) * len(emotions) < len(best) * sum(votes)
    return few or all(support[name] < 0 for name in first)


def _singles_out(trace: Trace, emotions: EmotionSet) -> bool:
    """Whether the prose decides: a deciding word in it, an emotion in Words that is not said of the text, or in
    Ambiguity one emotion alone or one that is ruled out."""
    words, ambiguity = trace.words.lower(), trace.ambiguity.lower()
    open_to = _emotions_in(re.findall("[a-z]+", ambiguity), emotions)
    return (
        any(_DECIDED.search(text) for text in (words, ambiguity))
        or len(open_to) == 1
        or bool(_emotions_in(_RULED_OUT.findall(ambiguity), emotions))
        or bool(_emotions_in(re.findall("[a-z]+", words), emotions) and not _is_of_text(words))
    )


def _emotions_in(words: Sequence[str], emotions: EmotionSet) -> set[str]:
    return {name for word in words if (name := emotions.resolve(word))}


def _is_of_text(words: str) -> bool:
    """Whether a Words line speaks of the text, which is its job, and not of who says it."""
    return bool(_OF_TEXT.search(words)) and not _OF_SPEAKER.search(words)


def _read_argument(statement: str, emotions: EmotionSet) -> Argument | None:
    """The argument that a statement makes, or None when it holds anything else."""
    stances = list(_STANCE.finditer(statement))
    if not stances:
        return None
    claims, unread = read_claims(statement[: stances[0].start()])
    sides: dict[bool, list[str]] = {True: [], False: []}
    ends = [stance.start() for stance in stances[1:]] + [len(statement)]
    for stance, end in zip(stances, ends, strict=True):
        words = [w for w in re.findall(r"[^\s,]+", statement[stance.end() : end]) if w not in _LIST_WORDS]
        names = [emotions.resolve(word) for word in words]
        if not names or None in names:
            return None
        sides[stance["favour"] is not None] += [name for name in names if name]
    if not claims or unread or set(sides[True]) & set(sides[False]):
        return None
    return Argument(claims, tuple(dict.fromkeys(sides[True])), tuple(dict.fromkeys(sides[False])))
