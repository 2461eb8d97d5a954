"""grounding: what a Voice line earns against measured cues, and how it can be gamed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.cues import CUES, LEVELS
from reasoning.emotions import CREMA_D
from reasoning.grounding import LESS, MIN_CLAIMS, MORE, level_shares, share_true
from reasoning.response import write_response
from reasoning.verifier import Trace, write_trace
from rewards.grounding import grounding, grounding_above_chance

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


LEVEL_OR_GAP = st.sampled_from([*sorted(LEVELS), None])
CLIPS = st.lists(st.fixed_dictionaries(dict.fromkeys(CUES, LEVEL_OR_GAP)), min_size=1, max_size=8)


@given(CLIPS, st.lists(st.tuples(st.sampled_from(list(CUES)), st.sampled_from(sorted(LEVELS))), min_size=1, max_size=4))
def test_above_chance_a_line_that_is_the_same_for_all_clips_earns_nothing_on_average(clips, claims):
    """Where all of what it says was measured everywhere; by counting clips one by one."""
    said = {cue for cue, _ in claims}
    clips = [{cue: 0 if cue in said and level is None else level for cue, level in clip.items()} for clip in clips]
    voice = ", ".join(words(cue, level) for cue, level in claims)
    shares = level_shares(clips)
    divisors = [max(len(said), min(MIN_CLAIMS, sum(level is not None for level in clip.values()))) for clip in clips]
    earned = [share_true(voice, clip, shares) * n for clip, n in zip(clips, divisors, strict=True)]
    assert sum(earned) == pytest.approx(0, abs=1e-9)
    assert all(-1 <= share_true(voice, clip, shares) <= 1 for clip in clips)


def test_above_chance_a_rare_truth_pays_more_than_a_safe_one_by_hand():
    """Of four clips one has a very high pitch and three usual pauses: true of that clip they pay 3/4 and 1/4, and
    false of it, the pauses cost 3/4 and the pitch 1/4. Both among three cues that must be claimed."""
    clips = [
        dict.fromkeys(CUES, 0) | {"pitch": 2},
        *[dict.fromkeys(CUES, 0)] * 2,
        dict.fromkeys(CUES, 0) | {"pauses": 1},
    ]
    shares = level_shares(clips)
    assert shares["pitch"] == [0, 0, 0.75, 0, 0.25]
    earned = [
        grounding_above_chance([answer(voice)], [NAMES], [clips[i]], [shares])[0]
        for voice, i in (("very high pitch", 0), ("usual pauses", 0), ("usual pauses", 3), ("very high pitch", 3))
    ]
    assert earned == pytest.approx([0.75 / 3, 0.25 / 3, -0.75 / 3, -0.25 / 3])


def test_above_chance_what_nobody_can_know_and_what_is_no_claim_add_nothing_and_count_as_cues():
    shares = level_shares([LEVEL, dict.fromkeys(CUES, 0)])
    plain = share_true(TRUE, LEVEL, shares)
    assert plain == pytest.approx(1 / 2)
    for more in (", narrow loudness range", ", a trembling voice", ", pauses not very low"):
        assert share_true(TRUE + more, LEVEL, shares) == pytest.approx(plain * 3 / 4)
    assert grounding_above_chance([answer(TRUE)], [NAMES], [None], [shares]) == [None]
    assert grounding_above_chance(["sad"], [NAMES], [LEVEL], [shares]) == [0.0]


def test_exploit_the_one_safest_claim_earns_a_third_and_negations_nothing():
    assert earned("usual pauses") == pytest.approx(1 / MIN_CLAIMS)
    assert earned("pitch not very low, loudness not very low, timbre not very low") == 0


def test_exploit_calling_three_cues_usual_earns_all_where_they_are():
    """Closed by `grounding_above_chance`, which pays nothing for it where that is how all clips are."""
    usual = dict.fromkeys(CUES, 0)
    assert earned("usual pitch, usual pauses, usual loudness", usual) == 1
    assert share_true("usual pitch, usual pauses, usual loudness", usual, level_shares([usual])) == 0
