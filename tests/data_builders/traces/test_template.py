"""The template writer: whatever was measured, what it writes is true, open, and the same for the same clip and seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders.traces.template import _LESS, _MORE, stances, words_lean, write
from reasoning.clips import Clip
from reasoning.cues import CUES, Cue
from reasoning.emotions import CREMA_D, EmotionSet
from reasoning.grounding import LESS, MORE, USUAL, levels_of
from reasoning.verifier import read_trace, verify, write_trace

PERCENTILES = {-2: 5.0, -1: 20.0, 0: 50.0, 1: 80.0, 2: 95.0}
FLIPPED = {w: MORE[c][0] for c in CUES for w in LESS[c]} | {w: LESS[c][0] for c in CUES for w in MORE[c]}


def clip(name: str = "a", transcript: str | None = "It's eleven o'clock.", votes=(1, 1, 2, 3, 2, 1)) -> Clip:
    return Clip(
        id=name, audio="a.flac", duration_s=1.0, transcript=transcript, language="en", speaker="s", sex=None, age=None,
        split="train", fold=0, votes=votes, n_votes=sum(votes), intended=None, source="human",
    )  # fmt: skip


def cues_of(levels) -> dict[str, Cue]:
    return {
        name: Cue(gap="unvoiced") if level is None else Cue(0.0, PERCENTILES[level], level, "speaker")
        for name, level in zip(CUES, levels, strict=True)
    }


LEVELS = st.lists(st.sampled_from([None, -2, -1, 0, 1, 2]), min_size=len(CUES), max_size=len(CUES))
VOTES = st.lists(st.integers(1, 9), min_size=6, max_size=6).map(tuple)
IDS = st.text(min_size=1, max_size=12)


@given(LEVELS, VOTES, IDS, st.integers(0, 5), st.booleans())
def test_every_trace_passes_the_verifier_but_for_what_listeners_voted(levels, votes, name, seed, show_votes):
    cues = cues_of(levels)
    thinking = write(clip(name, votes=votes), cues, CREMA_D, seed, show_votes)
    if thinking is not None:
        verdict = verify(thinking, levels_of(cues), votes, CREMA_D)
        assert set(verdict.reasons) <= {"answer_contradicts"}
        assert verdict.voice is not None
        assert 2 <= len(verdict.voice.true) <= 4
        assert write(clip(name, votes=votes), cues, CREMA_D, seed, show_votes) == thinking


def test_cues_that_together_speak_for_one_emotion_alone_give_no_trace():
    # Falling pitch fits anger and sad, a clear voice anger: on balance for anger alone.
    levels = dict.fromkeys(CUES) | {"pitch slope": -1, "voice quality": 1}
    for_each = sum(stances(cue, level, CREMA_D) for cue, level in levels.items() if level)
    assert (for_each > 0).sum() == 1
    assert write(clip(), cues_of(levels.values()), CREMA_D, 0) is None


@given(LEVELS, IDS, st.integers(0, 5), st.data())
def test_a_flipped_word_in_the_voice_line_is_caught(levels, name, seed, data):
    cues = cues_of(levels)
    thinking = write(clip(name), cues, CREMA_D, seed)
    trace = read_trace(thinking) if thinking else None
    if trace is None:
        return
    words = trace.voice.replace(",", " ,").split()
    places = [i for i, word in enumerate(words) if word in FLIPPED]
    if not places:
        return
    place = data.draw(st.sampled_from(places))
    words[place] = FLIPPED[words[place]]
    flipped = write_trace(type(trace)(trace.words, " ".join(words).replace(" ,", ","), trace.ambiguity, trace.weighing))
    assert "voice_false" in verify(flipped, levels_of(cues), clip().votes, CREMA_D).reasons


@given(LEVELS, st.integers(0, 3))
def test_without_leave_the_votes_are_not_looked_at(levels, seed):
    cues = cues_of(levels)
    written = {write(clip(votes=votes), cues, CREMA_D, seed) for votes in ((9, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 9))}
    assert len(written) == 1


def test_wording_varies_with_the_clip_and_the_claims_do_not():
    cues = cues_of([2, None, -1, 0, 1, 0, 0, -2, 1])
    traces = {name: read_trace(write(clip(name), cues, CREMA_D, 0) or "") for name in map(str, range(40))}
    voices = {trace.voice for trace in traces.values() if trace}
    assert len(voices) > 10
    read = {
        frozenset((c.cue, c.levels) for c in (verdict.voice.true if verdict.voice else ()))
        for verdict in (
            verify(write_trace(trace), levels_of(cues), clip().votes, CREMA_D) for trace in traces.values() if trace
        )
    }
    assert len(read) == 1


def test_too_little_measured_gives_no_trace():
    nothing = [None] * len(CUES)
    assert write(clip(), cues_of(nothing), CREMA_D, 0) is None
    assert write(clip(), cues_of([2, *nothing[1:]]), CREMA_D, 0) is None
    assert write(clip(), cues_of([2] * len(CUES)), EmotionSet(("contempt", "surprise")), 0) is None


def test_emotions_without_a_rule_are_not_spoken_of():
    wider = EmotionSet((*CREMA_D.names, "contempt"))
    thinking = write(clip(votes=(1, 1, 2, 3, 2, 1, 0)), cues_of([2, 1, 1, 2, 0, 1, 0, 1, 0]), wider, 0)
    assert thinking
    assert "contempt" not in thinking


@pytest.mark.parametrize(
    ("cue", "level", "expected"),
    [
        ("loudness", 2, {"anger": 1, "happy": 1, "sad": -1}),
        ("loudness", -1, {"anger": -1, "happy": -1, "sad": 1}),
        ("pace", 1, {"anger": 1, "fear": 1, "happy": 1, "disgust": -1, "sad": -1}),
        ("pitch", 0, {"neutral": 1}),
    ],
)
def test_stances_are_the_reviews_directions(cue, level, expected):
    found = dict(zip(CREMA_D.names, stances(cue, level, CREMA_D).tolist(), strict=True))
    assert {name: stance for name, stance in found.items() if stance} == expected


def test_words_lean_where_their_valence_is_plain():
    assert words_lean("This is wonderful, I love it!", "en") == 1
    assert words_lean("I hate this terrible mess.", "en-US") == -1
    assert words_lean("It's eleven o'clock.", "en") == 0
    assert words_lean("Ich hasse das.", "de") is None
    assert words_lean(None, "en") is None
    assert "Words: there is no transcript\n" in (write(clip(transcript=None), cues_of([2] * 9), CREMA_D, 0) or "")


def test_the_writers_words_are_the_vocabularys():
    assert all(set(_LESS[name]) <= set(LESS[name]) and set(_MORE[name]) <= set(MORE[name]) for name in CUES)
    assert set(USUAL[:2]) == {"usual", "normal"}
