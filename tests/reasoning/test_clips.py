from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from reasoning.clips import Clip
from reasoning.emotions import CREMA_D, EmotionSet
from reasoning.errors import RowError

GOOD = Clip(
    id="1001_DFA_SAD_XX",
    audio="AudioWAV/1001_DFA_SAD_XX.wav",
    duration_s=2.1,
    transcript="Don't forget a jacket.",
    language="en",
    speaker="1001",
    sex="male",
    age=51,
    split="train",
    fold=0,
    votes=(0, 1, 2, 0, 4, 3),
    n_votes=10,
    intended="sad",
    source="human",
)


def test_a_row_that_keeps_the_contract_passes():
    GOOD.check(CREMA_D)


def test_what_a_corpus_may_not_know_may_be_none():
    dataclasses.replace(GOOD, transcript=None, sex=None, age=None, intended=None).check(CREMA_D)


def test_counts_may_be_numpy_integers():
    dataclasses.replace(GOOD, votes=tuple(np.array(GOOD.votes))).check(CREMA_D)


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"id": ""}, "id", "is empty"),
        ({"audio": ""}, "audio", "is empty"),
        ({"speaker": ""}, "speaker", "is empty"),
        ({"language": ""}, "language", "is empty"),
        ({"duration_s": 0.0}, "duration_s", "more than 0"),
        ({"duration_s": -1.0}, "duration_s", "more than 0"),
        ({"duration_s": math.nan}, "duration_s", "is nan s"),
        ({"duration_s": math.inf}, "duration_s", "is inf s"),
        ({"split": "validation"}, "split", "'validation'"),
        ({"source": "tts"}, "source", "'tts'"),
        ({"votes": (1, 2, 7)}, "votes", "3 counts for 6 emotions"),
        ({"votes": (0, 1, 2, 0, 5, 3)}, "votes", "sum to 11 but n_votes is 10"),
        ({"votes": (0, -1, 4, 0, 4, 3)}, "votes", "not counts"),
        ({"votes": (0, 0.5, 2.5, 0, 4, 3)}, "votes", "not counts"),
        ({"votes": (0, 1.0, 2, 0, 4, 3)}, "votes", "not counts"),
        ({"votes": (0, math.nan, 2, 0, 4, 3)}, "votes", "not counts"),
        ({"votes": (0, None, 3, 0, 4, 3)}, "votes", "not counts"),
        ({"votes": (0,) * 6, "n_votes": 0}, "n_votes", "nobody voted"),
    ],
)
def test_a_broken_row_is_refused_with_its_id_and_field(change, field, problem):
    with pytest.raises(RowError, match=problem) as caught:
        dataclasses.replace(GOOD, **change).check(CREMA_D)
    assert caught.value.field == field
    assert caught.value.row == (GOOD.id if field != "id" else "?")


def test_votes_are_checked_against_the_emotions_of_their_own_corpus():
    with pytest.raises(RowError, match="6 counts for 2 emotions"):
        GOOD.check(EmotionSet(("sad", "happy")))


def test_clips_share_no_columns_by_accident():
    other = dataclasses.replace(GOOD, id="other")
    assert GOOD.extra == {}
    assert dataclasses.replace(other, extra={"level": "XX"}).extra == {"level": "XX"}
    assert GOOD.extra == {}
