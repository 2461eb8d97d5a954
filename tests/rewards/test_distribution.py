"""closeness: the evaluation's own divergence, turned into a reward."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.emotions import CREMA_D
from reasoning.response import write_response
from rewards.distribution import closeness

NAMES = list(CREMA_D.names)


def reward(text, votes):
    return closeness([text], votes=[votes], emotions=[NAMES])[0]


@given(st.lists(st.integers(0, 9), min_size=6, max_size=6).filter(sum), st.text())
def test_any_text_earns_between_floor_and_ceiling(votes, text):
    assert 0 <= reward(text, votes) <= 1


def test_the_votes_themselves_earn_the_ceiling_and_a_disjoint_answer_the_floor():
    votes = [5, 0, 0, 0, 5, 0]
    assert reward(write_response([0.5, 0, 0, 0, 0.5, 0], "anger", CREMA_D), votes) == pytest.approx(1)
    assert reward(write_response([0, 0, 1, 0, 0, 0], "fear", CREMA_D), votes) == pytest.approx(0)


@pytest.mark.parametrize("text", ["", "sad", "<answer>Vote: sad\nShares: anger 0.50</answer>", "<answer>Vote: sad\nSh"])
def test_what_cannot_be_read_earns_no_more_than_the_worst_answer(text):
    assert reward(text, [1, 2, 3, 0, 1, 0]) == 0


def test_conversations_and_strings_earn_the_same_and_rows_are_not_mixed_up():
    texts = [write_response(np.eye(6)[i], NAMES[i], CREMA_D) for i in (0, 3)]
    votes = [[4, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]]
    as_chat = [[{"role": "assistant", "content": t}] for t in texts]
    assert closeness(texts, votes=votes, emotions=[NAMES] * 2) == [1, 0]
    assert closeness(as_chat, votes=votes, emotions=[NAMES] * 2, row=[1, 2]) == [1, 0]


def test_exploit_a_constant_prior_earns_the_documented_floor_on_the_official_votes(shared_crema_d):
    with (shared_crema_d / "processedResults" / "tabulatedVotes.csv").open() as stream:
        votes = [[int(r[k]) for k in "ADFHNS"] for r in csv.DictReader(stream) if r[""].startswith("1")]
    prior = normalize_votes(votes).mean(0)
    text = write_response(prior.tolist(), "neutral", CREMA_D)
    assert np.mean(closeness([text] * len(votes), votes=votes, emotions=[NAMES] * len(votes))) == pytest.approx(
        0.71, abs=0.005
    )


def test_exploit_sharpening_pays_under_uncertainty_though_a_proper_score_falls():
    """Two kinds of clip that cannot be told apart: the answer that earns most is sharper than the mean of the votes."""
    kinds = [[9, 0, 0, 0, 1, 0], [4, 0, 0, 0, 6, 0]]
    shares = np.linspace(0.02, 0.98, 97)
    answers = [[s, 0, 0, 0, 1 - s, 0] for s in shares]
    earned = [np.mean(1 - jsd_bits(normalize_votes(kinds), [a] * 2)) for a in answers]
    brier = [np.mean(np.square(normalize_votes(kinds) - a).sum(1)) for a in answers]
    assert shares[int(np.argmax(earned))] > shares[int(np.argmin(brier))] + 0.015
