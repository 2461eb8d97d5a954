import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.errors import ModelError
from reasoning.inference.asking import own_thinking, refuse_too_long, request_seed
from reasoning.inference.engine import Request


def test_thinking_is_closed_once_and_what_follows_it_is_dropped():
    def thought(written):
        return own_thinking(Request("a", None, None, "think", written))

    assert thought("<think>\nsad \n</think>\n<answer>Vote: sad") == ("<think>\nsad\n</think>\n", False)
    assert thought("<think>\nso sad ") == ("<think>\nso sad\n</think>\n", True)
    assert own_thinking(Request("a", None, None)) == ("", False)


@given(st.integers(0, 2**31), st.text(), st.text())
def test_a_clips_seed_is_its_own_and_fits_a_signed_64_bit_field(seed, one, other):
    assert 0 <= request_seed(seed, one) < 2**63
    assert (request_seed(seed, one) == request_seed(seed, other)) == (one == other)
    assert request_seed(seed, one) != request_seed(seed + 1, one)
    assert 0 <= request_seed(seed, one, 7) < 2**63
    assert (request_seed(seed, one, 7) - request_seed(seed, one)) % 2**63 == 7


def test_a_prompt_that_does_not_fit_is_refused_with_its_clip_length_and_limit():
    refuse_too_long("1001_IEO", 90, 10, 100)
    with pytest.raises(ModelError, match=r"\[1001_IEO\] prompt: needs 91 prompt tokens and up to 10 .* holds 100"):
        refuse_too_long("1001_IEO", 91, 10, 100)
