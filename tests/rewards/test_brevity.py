"""brevity: the length of thinking, and never a prize for silence."""

from __future__ import annotations

import pytest

from reasoning.emotions import CREMA_D
from reasoning.response import write_response
from rewards.brevity import FREE_WORDS, MOST_WORDS, brevity

NAMES = list(CREMA_D.names)


def earned(words: int | None) -> float:
    thinking = None if words is None else "Voice: " * (words > 0) + "low " * (words - 1)
    return brevity([write_response([1 / 6] * 6, "sad", CREMA_D, thinking)], emotions=[NAMES])[0]


@pytest.mark.parametrize(
    ("words", "reward"),
    [(FREE_WORDS, 1), (150, 0.5), (175, 0.25), (MOST_WORDS - 1, 0.01), (MOST_WORDS, 0), (5 * MOST_WORDS, 0)],
)
def test_words_beyond_the_free_ones_cost_in_a_line(words, reward):
    assert earned(words) == pytest.approx(reward)


@pytest.mark.parametrize("text", ["", "<think>", "sad", "<think>so</think>sad"])
def test_silence_and_what_cannot_be_read_earn_nothing(text):
    assert brevity([text], emotions=[NAMES]) == [0.0]


def test_exploit_not_thinking_at_all_earns_everything():
    assert earned(None) == earned(0) == 1
