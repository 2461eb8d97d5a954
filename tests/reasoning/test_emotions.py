from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from reasoning.emotions import CREMA_D, EmotionSet
from reasoning.errors import ConfigError


def test_crema_d_order_is_that_of_the_official_vote_columns():
    assert [name[0].upper() for name in CREMA_D.names] == ["A", "D", "F", "H", "N", "S"]
    assert len(CREMA_D) == 6


@pytest.mark.parametrize("spelling", ["happy", " Happy ", "HAPPY", "happiness", "Joy\n"])
def test_spellings_of_one_emotion_resolve_to_its_name_and_place(spelling):
    assert CREMA_D.resolve(spelling) == "happy"
    assert CREMA_D.index(spelling) == 3


@pytest.mark.parametrize("word", ["", "hap", "surprise", "happy sad", "happy."])
def test_a_word_that_spells_no_emotion_resolves_to_none_and_has_no_place(word):
    assert CREMA_D.resolve(word) is None
    with pytest.raises(ConfigError, match=r"is none of anger, disgust"):
        CREMA_D.index(word)


@pytest.mark.parametrize(
    ("names", "aliases", "problem"),
    [
        (("sad",), {}, "at least two"),
        ((), {}, "at least two"),
        (("sad", "happy", "sad"), {}, "different"),
        (("sad", "Happy"), {}, "'Happy'"),
        (("sad", "very happy"), {}, "'very happy'"),
        (("sad", "joy-ful"), {}, "'joy-ful'"),
        (("sad", ""), {}, "''"),
        (("sad", "fröhlich"), {}, "'fröhlich'"),  # the answer grammar reads ASCII names
        (("sad", "happy"), {"glad": "joyful"}, "'glad'"),
        (("sad", "happy"), {"sad": "happy"}, "'sad'"),
        (("sad", "happy"), {"Glad": "happy"}, "'Glad'"),
        (("sad", "happy"), {" glad": "happy"}, "' glad'"),
    ],
)
def test_sets_that_could_not_be_used_are_refused_by_name(names, aliases, problem):
    with pytest.raises(ConfigError, match=problem):
        EmotionSet(names, aliases)


def test_a_set_survives_json_and_pickle_in_its_order():
    reordered = EmotionSet(("sad", "anger"), {"mad": "anger"})
    for emotions in (CREMA_D, reordered):
        assert EmotionSet.from_dict(json.loads(json.dumps(emotions.to_dict()))) == emotions
        assert pickle.loads(pickle.dumps(emotions)) == emotions
    assert reordered.to_dict()["names"] == ["sad", "anger"]


def test_a_set_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CREMA_D.names = ("sad", "happy")  # type: ignore[misc]
