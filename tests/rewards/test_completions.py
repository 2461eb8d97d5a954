"""A completion is parsed once for all rewards, and every reward sees the same reading."""

from __future__ import annotations

import pytest

from reasoning import readings as shared
from reasoning.emotions import CREMA_D
from reasoning.response import read_response, write_response
from rewards.completions import readings, texts
from rewards.loading import load_reward

NAMES = list(CREMA_D.names)
REWARDS = [
    "distribution:closeness",
    "distribution:tvd_closeness",
    "distribution:entropy_match",
    "majority:majority_accuracy",
    "format:format",
    "brevity:brevity",
]


@pytest.fixture
def parsed(monkeypatch):
    """The texts that reach the parser."""
    seen: list[str] = []

    def counting(text, emotions):
        seen.append(text)
        return read_response(text, emotions)

    shared._read.cache_clear()
    monkeypatch.setattr(shared, "read_response", counting)
    yield seen
    shared._read.cache_clear()


def test_a_pass_of_all_rewards_over_a_rollout_parses_each_text_once(parsed):
    rollout = [write_response([i / 100, 1 - i / 100, 0, 0, 0, 0], "sad", CREMA_D) for i in range(64)]
    for name in REWARDS:
        load_reward(f"rewards.{name}")(rollout, votes=[[1, 0, 0, 0, 0, 3]] * 64, emotions=[NAMES] * 64)
    assert sorted(parsed) == sorted(rollout)


def test_the_same_text_under_other_emotions_is_read_anew(parsed):
    text = write_response([0.5, 0.5, 0, 0, 0, 0], "sad", CREMA_D)
    fewer = NAMES[:4]
    ours, theirs = readings([text, text], [NAMES, fewer])
    assert ours == read_response(text, CREMA_D)
    assert theirs.problems[:1] == ("unknown_label",)
    assert len(parsed) == 2


def test_the_memory_is_bounded_and_holds_what_was_read_last(parsed):
    for i in range(shared.REMEMBERED + 10):
        shared.read_once(str(i), NAMES)
    assert shared._read.cache_info().currsize == shared.REMEMBERED
    n = len(parsed)
    shared.read_once(str(i), NAMES)
    assert len(parsed) == n
    shared.read_once("0", NAMES)
    assert len(parsed) == n + 1


def test_conversations_and_strings_have_the_same_text():
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]
    assert texts(["yes", chat]) == ["yes", "yes"]
