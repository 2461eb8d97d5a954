"""The grammar for guided decoding: whatever the writer can write, and nothing that the reader cannot read."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from reasoning.answer_grammar import answer_grammar
from reasoning.emotions import CREMA_D, EmotionSet
from reasoning.prompts import LEVELS
from reasoning.response import HUNDREDTHS, ShareGrid, read_response, write_response

THINKING = "Words: a jacket.\nVoice: low and slow.\nAmbiguity: tired or sad.\nWeighing: the voice tells more."
TWO = EmotionSet(("calm", "tense"))
GRIDS = [ShareGrid(5), ShareGrid(10), ShareGrid(4, 0.08), HUNDREDTHS]


@cache
def matcher(names: tuple[str, ...], level: str) -> LLMatcher:
    """A matcher over single bytes: what the grammar says of text, whatever a model's tokens are."""
    return LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(answer_grammar(EmotionSet(names), level)))


def accepts(text: str, emotions: EmotionSet = CREMA_D, level: str = "no_think") -> bool:
    """Whether all of `text`, and no less, is in the grammar's language."""
    state = matcher(emotions.names, level).deep_copy()
    written = list(text.encode())
    return state.try_consume_tokens(written) == len(written) and state.is_accepting()


@pytest.mark.parametrize("emotions", [CREMA_D, TWO], ids=["six", "two"])
@pytest.mark.parametrize("level", LEVELS)
@given(seed=st.integers(0, 2**32 - 1), grid=st.sampled_from(GRIDS), sharpness=st.floats(0.05, 5))
def test_everything_that_the_writer_writes_is_accepted(emotions, level, seed, grid, sharpness):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(len(emotions), sharpness))
    thinking = THINKING if level == "think" else None
    text = write_response(shares.tolist(), str(rng.choice(emotions.names)), emotions, thinking, grid)
    assert accepts(text, emotions, level)


@given(
    hundredths=st.lists(st.integers(0, 100), min_size=6, max_size=6),
    vote=st.sampled_from([*CREMA_D.names, "bored"]),
    end=st.sampled_from(["</answer>", "", "</answer> and more"]),
)
def test_what_is_accepted_is_what_the_reader_reads_and_sums_to_one(hundredths, vote, end):
    shares = ", ".join(f"{n} {h // 100}.{h % 100:02d}" for n, h in zip(CREMA_D.names, hundredths, strict=True))
    text = f"<answer>Vote: {vote}\nShares: {shares}{end}"
    reading = read_response(text, CREMA_D)
    assert accepts(text) == (not reading.problems and sum(hundredths) == 100)


@pytest.mark.parametrize(
    "text",
    [
        "<answer>Vote: sad\nShares: anger 0.5, disgust 0.00, fear 0.50, happy 0.00, neutral 0.00, sad 0.00</answer>",
        "<answer>Vote: sad\nShares: disgust 0.50, anger 0.50, fear 0.00, happy 0.00, neutral 0.00, sad 0.00</answer>",
        "<answer>Vote:sad\nShares: anger 1.00, disgust 0.00, fear 0.00, happy 0.00, neutral 0.00, sad 0.00</answer>",
    ],
    ids=["one decimal", "another order", "no space before the vote"],
)
def test_another_layout_is_refused(text):
    assert not accepts(text)


def test_thinking_is_written_at_level_think_only_and_holds_no_tag():
    answer = write_response([0.5, 0.5], "calm", TWO)
    thinking = write_response([0.5, 0.5], "calm", TWO, THINKING)
    at = {(text, level): accepts(text, TWO, level) for text in (answer, thinking) for level in LEVELS}
    assert [key for key, accepted in at.items() if accepted] == [(answer, "no_think"), (thinking, "think")]
    assert not accepts(thinking.replace("low and slow", "low </think> and slow"), TWO, "think")
