"""The ground of the earth mover's distance: the order that the circumplex is known for."""

from __future__ import annotations

import math

import pytest

from reasoning.emotions import CREMA_D
from reasoning.errors import RewardError
from rewards.valence_arousal import COORDINATES, points


def test_every_emotion_of_crema_d_has_a_place_in_its_order():
    assert points(CREMA_D.names) == [COORDINATES[name] for name in CREMA_D.names]


def test_the_quadrants_are_those_of_the_circumplex():
    signs = {name: (math.copysign(1, v), math.copysign(1, a)) for name, (v, a) in COORDINATES.items() if v}
    assert signs["happy"] == signs["excited"] == signs["surprise"] == (1, 1)
    assert signs["anger"] == signs["fear"] == signs["disgust"] == (-1, 1)
    assert signs["sad"] == (-1, -1)
    assert all(-1 <= x <= 1 for place in COORDINATES.values() for x in place)


def test_an_unknown_emotion_is_named_with_what_is_known():
    with pytest.raises(RewardError, match=r"'calm' has no valence and arousal; known are anger.*To mend"):
        points(["sad", "calm"])
