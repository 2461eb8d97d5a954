"""How many answers can be read, and why the others cannot."""

from __future__ import annotations

from reasoning.emotions import CREMA_D
from reasoning.readings import RATES, rates, read_once
from reasoning.response import PROBLEMS, read_response, write_response

NAMES = CREMA_D.names
GOOD = write_response([1 / 6] * 6, "sad", CREMA_D)


def test_a_text_read_once_says_what_the_parser_says():
    for text in (GOOD, "", GOOD[:-9], GOOD + " more"):
        assert read_once(text, list(NAMES)) == read_response(text, CREMA_D)


def test_rates_are_shares_of_the_answers_and_one_answer_may_have_several_problems():
    texts = [GOOD, GOOD, "", GOOD.replace("sad 0.16", "sad 0.61") + " more"]
    got = dict(zip(RATES, rates([read_once(t, NAMES) for t in texts]), strict=True))
    assert set(got) == {"parse_rate", *(f"problems/{p}" for p in PROBLEMS)}
    named = {name: share for name, share in got.items() if share}
    assert named == {
        "parse_rate": 0.5, "problems/no_answer": 0.25, "problems/text_after_answer": 0.25, "problems/bad_sum": 0.25,
    }  # fmt: skip
