"""format: one bit, and what a constant answer earns with it."""

from __future__ import annotations

import pytest

from reasoning.emotions import CREMA_D
from reasoning.response import write_response
from rewards.format import format

NAMES = list(CREMA_D.names)
GOOD = write_response([1 / 6] * 6, "sad", CREMA_D)


@pytest.mark.parametrize("text", ["", GOOD + " and more", GOOD.replace("sad 0.16", "sad 0.61"), GOOD[:-9]])
def test_anything_the_reader_names_a_problem_in_earns_nothing(text):
    assert format([text], emotions=[NAMES]) == [0.0]


def test_exploit_a_constant_well_formed_answer_earns_everything():
    assert format([GOOD, [{"role": "assistant", "content": GOOD}]], emotions=[NAMES] * 2) == [1.0, 1.0]
