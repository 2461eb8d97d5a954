"""grounding: what a Voice line earns against measured cues, and how it can be gamed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.cues import CUES, LEVELS
from reasoning.emotions import CREMA_D
from reasoning.grounding import LESS, MIN_CLAIMS, MORE, share_true
from reasoning.response import write_response
from reasoning.verifier import Trace, write_trace
from rewards.grounding import grounding

NAMES = list(CREMA_D.names)
LEVEL = dict(zip(CUES, (2, -1, 0, 1, None, -2, 0, 1, -1), strict=True))
TRUE = "very high pitch, narrow pitch range and high loudness"


def answer(voice: str) -> str:
    thinking = write_trace(Trace("nothing", voice, "anger and fear", "high pitch favours anger and fear"))
    return write_response([1 / 6] * 6, "sad", CREMA_D, thinking)


def earned(voice: str, levels=LEVEL) -> float | None:
    return grounding([answer(voice)], emotions=[NAMES], cue_levels=[levels])[0]


@pytest.mark.parametrize(
    ("voice", "share"),
    [
        (TRUE, 1),
        ("very high pitch, narrow pitch range and low loudness", 2 / 3),
        ("low pitch, wide pitch range, low loudness", 0),
        (TRUE + ", slow pace", 1),
        (TRUE + ", fast pace", 3 / 4),
        (TRUE + ", narrow loudness range", 3 / 4),  # a gap: nobody can know
        (TRUE + ", a trembling voice", 3 / 4),  # no claim: what cannot be read is not true
        (TRUE + ", high pitch, pitch very high", 1),  # said three times, counted once
        ("very high pitch, low pitch, narrow pitch range, high loudness", 2 / 3),  # contradicts itself
    ],
)
def test_the_share_of_what_is_said_that_is_true(voice, share):
    assert earned(voice) == pytest.approx(share)


def words(cue: str, level: int) -> str:
    noun = "voice quality" if cue == "voice quality" else cue
    word = "usual" if level == 0 else (MORE if level > 0 else LESS)[cue][0]
    return f"{'very ' if abs(level) == 2 else ''}{word} {noun}"


@given(
    st.lists(st.sampled_from(sorted(LEVELS)), min_size=9, max_size=9), st.permutations(list(CUES)), st.integers(1, 9)
)
def test_the_share_is_what_counting_cue_by_cue_gives(levels, order, n):
    """Claims at their own level, so that a cue is right exactly when the two levels agree or lie on one weaker side."""
    truth = dict(zip(CUES, levels, strict=True))
    said = dict(zip(order[:n], itertools.cycle(sorted(LEVELS)), strict=False))
    right = sum(truth[cue] == level or (abs(level) == 1 and truth[cue] == 2 * level) for cue, level in said.items())
    voice = ", ".join(words(cue, level) for cue, level in said.items())
    assert share_true(voice, truth) == pytest.approx(right / max(n, MIN_CLAIMS))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sad",
        write_response([1 / 6] * 6, "sad", CREMA_D),
        write_response([1 / 6] * 6, "sad", CREMA_D, "High pitch."),
    ],
)
def test_without_a_readable_answer_after_four_lines_nothing_is_earned(text):
    assert grounding([text], emotions=[NAMES], cue_levels=[LEVEL]) == [0.0]


def test_an_answer_that_cannot_be_read_earns_nothing_however_true_its_voice_line():
    assert grounding([answer(TRUE).replace("sad 0.1", "sad 0.9")], emotions=[NAMES], cue_levels=[LEVEL]) == [0.0]


def test_a_clip_of_which_nothing_could_be_measured_is_not_judged():
    assert earned(TRUE, None) is None


def test_where_less_was_measured_than_must_be_claimed_claiming_all_of_it_is_enough():
    assert earned("very high pitch", {**dict.fromkeys(CUES), "pitch": 2}) == 1


def test_exploit_the_one_safest_claim_earns_a_third_and_negations_nothing():
    assert earned("usual pauses") == pytest.approx(1 / MIN_CLAIMS)
    assert earned("pitch not very low, loudness not very low, timbre not very low") == 0


def test_exploit_calling_three_cues_usual_earns_all_where_they_are():
    """Closed by nothing: it is why docs/reward.md gives the constant line's mean beside this reward."""
    assert earned("usual pitch, usual pauses, usual loudness", dict.fromkeys(CUES, 0)) == 1
