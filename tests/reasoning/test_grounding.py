"""What a text claims about a voice: the vocabulary is read exactly, and everything else is left unread."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.cues import CUES, Cue, word
from reasoning.grounding import LESS, MORE, NOUNS, STRONG, USUAL, ground, levels_of, read_claims

ALL = {-2, -1, 0, 1, 2}


def claims(text: str) -> list[tuple[str, set[int]]]:
    read, unread = read_claims(text)
    assert unread == ()
    return [(claim.cue, set(claim.levels)) for claim in read]


def test_every_cue_has_a_vocabulary_and_its_own_words_are_in_it():
    assert NOUNS.keys() == LESS.keys() == MORE.keys() == CUES.keys()
    for name in CUES:
        for level in ALL:
            holds = claims(f"{name} {word(name, level)}")
            assert holds == [(name, holds[0][1])]
            assert level in holds[0][1]
            assert all(other not in holds[0][1] for other in ALL if other * level < 0 or (other == 0) != (level == 0))


@pytest.mark.parametrize("name", CUES)
def test_every_noun_with_every_word_is_one_claim_in_either_order(name):
    for noun in NOUNS[name]:
        for words, levels, extreme in ((LESS[name], {-2, -1}, -2), (MORE[name], {1, 2}, 2)):
            for said in words:
                assert claims(f"{said} {noun}") == claims(f"The {noun} is {said}.") == [(name, levels)]
                assert claims(f"a very {said} {noun}") == [(name, {extreme})]
                assert claims(f"{noun} not {said}") == [(name, ALL - levels)]
        for said in USUAL:
            assert claims(f"{noun} {said}") == [(name, {0})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("high pitch, fast pace and a very bright timbre", [("pitch", {1, 2}), ("pace", {1, 2}), ("timbre", {2})]),
        ("usual pitch, loudness and pace", [("pitch", {0}), ("loudness", {0}), ("pace", {0})]),
        ("pitch and loudness are low", [("pitch", {-2, -1}), ("loudness", {-2, -1})]),
        ("Loud; quick; hoarse.", [("loudness", {1, 2}), ("pace", {1, 2}), ("voice quality", {-2, -1})]),
        ("pitch higher than usual for this speaker", [("pitch", {1, 2})]),
        ("louder than this speaker's usual, but not very fast", [("loudness", {1, 2}), ("pace", {-2, -1, 0, 1})]),
        ("louder than this speaker’s own usual", [("loudness", {1, 2})]),
        ("pitch range wide while pitch isn't high", [("pitch range", {1, 2}), ("pitch", {-2, -1, 0})]),
        ("", []),
    ],
)
def test_claims_are_read_from_the_ways_they_are_said(text, expected):
    assert claims(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "an angry voice",
        "pitch low as if sad",
        "pitch high low",
        "pitch and pace are low",  # a pace is slow
        "usual",
        "low",  # pitch or loudness
        "pitch at 240 Hz",
        "not",
        "very pitch",
        "pitch and",
        "pitch bright",
        "<html><body>502 Bad Gateway</body></html>",
    ],
)
def test_what_is_no_claim_is_unread_and_never_guessed(text):
    read, unread = read_claims(text)
    assert read == ()
    assert unread


def test_claims_are_sorted_by_what_was_measured():
    levels = {"pitch": 2, "pace": 0, "loudness": None}
    found = ground("very high pitch, fast pace, low loudness, dark timbre, shimmering", levels)
    assert [c.cue for c in found.true] == ["pitch"]
    assert [c.cue for c in found.false] == ["pace"]
    assert [c.cue for c in found.unknown] == ["loudness", "timbre"]
    assert found.unread == ("shimmering",)
    assert levels_of({"pitch": Cue(1.0, 95.0, 2, "speaker"), "pace": Cue(gap="no_transcript")}) == {
        "pitch": 2, "pace": None,
    }  # fmt: skip


@given(st.text(max_size=80))
def test_any_text_is_read_without_an_error(text):
    found = ground(text, dict.fromkeys(CUES, 0))
    assert len(found.true) + len(found.false) == len(read_claims(text)[0])
    assert not found.unknown


VOCABULARY = sorted(
    {w for table in (NOUNS, LESS, MORE) for words in table.values() for w in words}
    | {*USUAL, *STRONG, "not", "the", "is", ",", "and", "but", ";", "than usual", "sad"}
)


@given(st.lists(st.sampled_from(VOCABULARY), max_size=12), st.lists(st.integers(-2, 2), min_size=9, max_size=9))
def test_every_claim_is_counted_once_and_a_clause_is_claimed_or_unread(parts, measured):
    text = " ".join(parts)
    levels = dict(zip(CUES, measured, strict=True))
    read, unread = read_claims(text)
    found = ground(text, levels)
    assert sorted(map(str, found.true + found.false)) == sorted(map(str, read))
    assert all(levels[c.cue] in c.levels for c in found.true)
    assert all(levels[c.cue] not in c.levels for c in found.false)
    for clause in (*unread, *(claim.text for claim in read)):
        assert clause in re.sub(r"\s+", " ", text) or "than usual" in text
