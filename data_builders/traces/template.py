"""The template writer: a trace from measured cues by rules, with nothing but the machine it runs on.

Words is VADER's valence of the transcript (Hutto & Gilbert 2014, ICWSM; English). Voice is the cues that stand out.
Weighing is what the direction of a cue says for and against each emotion: the directions of synthesis/prosody.py's
prototypes (Banse & Scherer 1996; Juslin & Laukka 2003). They are acted prototypes, and often not what listeners vote.
Wording varies with the seed and the clip; what is claimed does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from data_builders.synthesis.prosody import DIMENSIONS, PROTOTYPES, prototypes_in_units
from data_builders.traces.cot import Draft
from reasoning.clips import Clip
from reasoning.cues import CUES, Cue
from reasoning.distributions import entropy_bits, normalize_votes
from reasoning.emotions import EmotionSet
from reasoning.grounding import NOUNS, USUAL
from reasoning.verifier import Trace, write_trace

VERSION = "2"
"""Changes when the same clip would get another trace, or none."""

TOO_LITTLE = "what was measured speaks for fewer than two emotions"
"""Why a clip gets no trace."""

VOICE_CUES, WEIGHED_CUES = 4, 3
"""At most so many cues are named and weighed: the ones furthest from usual, then usual ones."""

CLEAR = 0.5
"""Distance from neutral, in prosody.UNITS, from which a prototype has a direction in a cue."""

LEANING = 0.4
"""VADER's compound score beyond which words lean: its usual .05 calls "We'll stop in a couple of minutes" negative."""

AGREEING, DIVIDED = 0.8, 1.6
"""Vote entropy in bits below which listeners agree and above which they are far apart."""

_SETTINGS: Mapping[str, Mapping[str, int]] = {  # cue -> settings of a prototype that move it, with their sign
    "pitch": {"pitch_st": 1},
    "pitch range": {"range": 1},
    "pitch slope": {"slope_st": 1},
    "loudness": {"level_db": 1},
    "pace": {"rate": 1},
    "timbre": {"tilt_db": 1},
    "voice quality": {"breath_db": -1, "jitter_st": -1},
}
_LESS = {"pitch": ("low",), "pitch range": ("narrow", "flat"), "pitch slope": ("falling", "sinking")}
_LESS |= {"loudness": ("low",), "loudness range": ("narrow",), "pace": ("slow",), "pauses": ("few",)}
_LESS |= {"timbre": ("dark", "dull"), "voice quality": ("breathy", "rough")}
_MORE = {"pitch": ("high", "raised"), "pitch range": ("wide", "lively"), "pitch slope": ("rising", "climbing")}
_MORE |= {"loudness": ("high",), "loudness range": ("wide",), "pace": ("fast", "quick"), "pauses": ("many",)}
_MORE |= {"timbre": ("bright", "sharp"), "voice quality": ("clear", "clean")}

_NO_LEANING = (
    "the text alone suggests no feeling",
    "plain wording that leaves the feeling open",
    "nothing in the text points to a feeling",
)
_LEANS = ("the text alone leans {side}", "the wording sounds {side}", "read silently this seems {side}")
_ROOM = (
    "the voice leaves room for {names}",
    "{names} could each sound like this",
    "this way of speaking suits {names}",
)
_FOR = ("speaks for", "fits", "favours", "points to")
_AGAINST = ("speaks against", "opposes", "against")


@dataclass(frozen=True)
class TemplateWriter:
    """The writer as data_builders.traces.cot takes it; see `write`."""

    emotions: EmotionSet
    seed: int = 0
    saw_votes: bool = False

    @property
    def name(self) -> str:
        return f"template {VERSION}"

    def write(self, clips: Sequence[Clip], cues: Mapping[str, Mapping[str, Cue]]) -> Iterator[Draft]:
        for clip in clips:
            thinking = write(clip, cues[clip.id], self.emotions, self.seed, self.saw_votes)
            yield Draft(clip.id, thinking, None if thinking else TOO_LITTLE)


def write(clip: Clip, cues: Mapping[str, Cue], emotions: EmotionSet, seed: int, show_votes: bool = False) -> str | None:
    """The think block's text for a clip, the same for the same (seed, clip id); None when too little was measured.

    cues: as `reasoning.cues.relative` gives them. show_votes: name the cues that speak for what listeners voted first,
    and say in words how far they agreed; otherwise the votes are not looked at. Needs two measured cues with a rule,
    and rules that on balance speak for two of `emotions`: the verifier takes less for naming the winner.
    """
    rng = np.random.default_rng([seed, *clip.id.encode()])
    votes = clip.votes if show_votes else None
    named = choose_cues(cues, emotions, votes)
    weighed = [name for name in named if name in _SETTINGS][:WEIGHED_CUES]
    if len(weighed) < 2:
        return None
    stance_CK = np.stack([stances(name, _level(cues[name]), emotions) for name in weighed])
    if (stance_CK.sum(axis=0) > 0).sum() < 2:
        return None
    phrases = _phrases({name: _level(cues[name]) for name in named}, rng)
    lean = words_lean(clip.transcript, clip.language)
    trace = Trace(
        words=_words(clip, lean, rng),
        voice=_join([phrases[name] for name in named]),
        ambiguity=_ambiguity(stance_CK.sum(axis=0), emotions, lean, votes, rng),
        weighing=_weighing([phrases[name] for name in weighed], stance_CK, emotions, rng),
    )
    return write_trace(trace)


def choose_cues(cues: Mapping[str, Cue], emotions: EmotionSet, votes: Sequence[int] | None = None) -> list[str]:
    """Up to VOICE_CUES measured cues: those that are not usual by distance from the middle, then usual ones that have a
    rule. With `votes` (K,), those that speak for them come first, whatever their distance."""

    def rank(name: str) -> tuple[float, float]:
        agreement = 0.0
        if votes is not None and name in _SETTINGS:
            agreement = float(stances(name, _level(cues[name]), emotions) @ np.asarray(votes))
        return -agreement, -abs((cues[name].percentile or 0.0) - 50)

    measured = [name for name in CUES if name in cues and cues[name].level is not None]
    marked = [name for name in measured if cues[name].level]
    usual = [name for name in measured if not cues[name].level and name in _SETTINGS]
    if votes is not None:
        return sorted(marked + usual, key=rank)[:VOICE_CUES]
    return (sorted(marked, key=rank) + usual)[:VOICE_CUES]


def stances(cue: str, level: int, emotions: EmotionSet) -> NDArray[np.int_]:
    """Shape (K,): 1 for each emotion that a cue at this level speaks for, -1 against, 0 neither.

    A marked cue speaks for the prototypes that move that way and against those that move the other way, a usual one for
    those that leave it where it is.
    """
    direction_K = _directions(emotions.names)[:, list(_SETTINGS).index(cue)]
    stance_K = (direction_K == 0) if level == 0 else np.nan_to_num(direction_K) * np.sign(level)
    return np.asarray(stance_K, dtype=int)


def words_lean(transcript: str | None, language: str) -> int | None:
    """1 for words of positive valence, -1 negative, 0 neither; None without words or when they are not English."""
    if not transcript or language.lower().split("-")[0] != "en":
        return None
    score = _vader().polarity_scores(transcript)["compound"]
    return int(score > LEANING) - int(score < -LEANING)


@cache
def _vader():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


@cache
def _directions(names: tuple[str, ...]) -> NDArray[np.float64]:
    """Shape (K, C): -1, 0 or 1 for each emotion and cue of _SETTINGS; NaN rows for emotions without a prototype."""
    found = np.full((len(names), len(_SETTINGS)), np.nan)
    for k, name in enumerate(names):
        if name in PROTOTYPES:
            units_D = prototypes_in_units((name,))[0]
            for c, settings in enumerate(_SETTINGS.values()):
                moved = sum(sign * units_D[DIMENSIONS.index(setting)] for setting, sign in settings.items())
                found[k, c] = np.sign(moved) if abs(moved) >= CLEAR else 0
    return found


def _level(cue: Cue) -> int:
    assert cue.level is not None  # choose_cues takes no others
    return cue.level


def _phrases(levels: Mapping[str, int], rng: np.random.Generator) -> dict[str, str]:
    """One wording for each cue, all in the same word order."""
    noun_first = bool(rng.integers(2))
    phrases = {}
    for name, level in levels.items():
        adjective = _pick(rng, USUAL[:2] if level == 0 else _MORE[name] if level > 0 else _LESS[name])
        adjective = f"very {adjective}" if abs(level) == 2 else adjective
        noun = _pick(rng, NOUNS[name])
        phrases[name] = f"{noun} {adjective}" if noun_first else f"{adjective} {noun}"
    return phrases


def _words(clip: Clip, lean: int | None, rng: np.random.Generator) -> str:
    if lean is None:
        return "the words are in a language that was not read" if clip.transcript else "there is no transcript"
    return _pick(rng, _LEANS).format(side="positive" if lean > 0 else "negative") if lean else _pick(rng, _NO_LEANING)


def _ambiguity(
    balance_K: NDArray, emotions: EmotionSet, lean: int | None, votes: Sequence[int] | None, rng: np.random.Generator
) -> str:
    """Which emotions the voice leaves open (the best supported, in EmotionSet order), and what pulls apart."""
    order = np.argsort(-balance_K, kind="stable")
    near = sorted(k for k in order[:3] if balance_K[k] >= balance_K[order[1]])
    parts = [_pick(rng, _ROOM).format(names=_join([emotions.names[k] for k in near]))]
    if lean:
        valences = {words_lean(emotions.names[k], "en") for k in near}
        parts.append("the words agree with part of that" if lean in valences else "the words pull another way")
    if votes is not None:
        entropy = float(entropy_bits(normalize_votes(votes))[0])
        parts.append(
            "listeners agree by and large"
            if entropy < AGREEING
            else "listeners are far apart"
            if entropy > DIVIDED
            else "listeners differ"
        )
    return "; ".join(parts)


def _weighing(phrases: Sequence[str], stance_CK: NDArray, emotions: EmotionSet, rng: np.random.Generator) -> str:
    favour, oppose = _pick(rng, _FOR), _pick(rng, _AGAINST)
    statements = []
    for phrase, stance_K in zip(phrases, stance_CK, strict=True):
        sides = [(favour, stance_K > 0), (oppose, stance_K < 0)]
        said = [f"{verb} {_join([emotions.names[k] for k in np.flatnonzero(on)])}" for verb, on in sides if on.any()]
        if said:
            statements.append(f"{phrase} {', '.join(said)}")
    return "; ".join(statements)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
