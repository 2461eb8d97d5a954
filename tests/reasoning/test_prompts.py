from __future__ import annotations

import pytest

from reasoning.emotions import CREMA_D, EmotionSet
from reasoning.errors import ConfigError
from reasoning.prompts import LEVELS, conversation


def parts(transcript: str | None = None, has_audio: bool = True, level: str = "no_think", emotions=CREMA_D) -> list:
    (turn,) = conversation(transcript, has_audio, level, emotions)
    assert turn["role"] == "user"
    return turn["content"]


def text(*args, **options) -> str:
    (part,) = [part for part in parts(*args, **options) if part["type"] == "text"]
    return part["text"]


@pytest.mark.parametrize("level", LEVELS)
def test_one_audio_part_comes_before_the_question(level):
    assert [part["type"] for part in parts(level=level)] == ["audio", "text"]


@pytest.mark.parametrize("level", LEVELS)
def test_the_text_only_control_differs_by_the_audio_part_alone(level):
    assert parts("Hello.", level=level)[1:] == parts("Hello.", has_audio=False, level=level)


def test_content_parts_hold_no_none_and_no_array():
    for part in parts("Hello."):
        assert all(isinstance(value, str) for value in part.values())


def test_emotions_are_listed_in_their_order():
    assert "anger, disgust, fear, happy, neutral, sad" in text()
    assert "sad, anger?" in text(emotions=EmotionSet(("sad", "anger")))


def test_the_transcript_is_quoted_word_for_word():
    assert "Words: \"It's {eleven} o'clock.\"" in text("It's {eleven} o'clock.")


@pytest.mark.parametrize("transcript", [None, ""])
def test_without_a_transcript_no_words_are_mentioned(transcript):
    assert "Words" not in text(transcript)


def test_only_the_think_level_asks_for_thinking():
    assert text(level="think") != text(level="no_think")
    assert "Think" in text(level="think")
    assert "think" not in text(level="no_think").lower()


def test_every_call_builds_a_new_conversation():
    first = conversation(None, True, "no_think", CREMA_D)
    first[0]["content"].clear()
    assert len(conversation(None, True, "no_think", CREMA_D)[0]["content"]) == 2


def test_an_unknown_level_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'deep', expected one of no_think, think"):
        conversation(None, True, "deep", CREMA_D)
