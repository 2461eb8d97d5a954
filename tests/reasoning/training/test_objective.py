"""The ambiguity objective: a case worked out by hand, and the evaluation's own divergence as oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reasoning.distributions import kl_bits, normalize_votes
from reasoning.training.objective import IGNORE, response_nll_nats, vote_kl_nats


def test_a_case_worked_out_by_hand():
    """Votes 3:1 of two emotions against a readout of 1:1: 3/4 ln(3/2) + 1/4 ln(1/2)."""
    kl = vote_kl_nats(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]))
    assert float(kl) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)


@given(
    st.lists(st.integers(0, 12), min_size=6, max_size=6).filter(sum),
    st.lists(st.floats(-8, 8), min_size=6, max_size=6),
)
def test_it_is_the_divergence_that_evaluation_reports(votes, logits):
    ours = float(vote_kl_nats(torch.tensor([logits], dtype=torch.float64), torch.tensor([votes])))
    q = np.exp(logits) / np.exp(logits).sum()
    assert ours == pytest.approx(float(kl_bits(normalize_votes([votes]), [q], floor=0)[0]) * math.log(2), abs=1e-4)


def test_the_slot_costs_what_its_target_says_worked_out_by_hand():
    """Two rows of three tokens, of which the second is the vote: probability 1/2 and 1/4 around it; at the slot 1/10
    for the vote that was drawn and 4/5 for any label. Row 0 asks for any label, row 1 for the drawn vote."""
    labels, slots = torch.tensor([[7, IGNORE, 8], [7, 9, 8]]), torch.tensor([1, 1])
    logps = torch.tensor([[0.5, 1.0, 0.25], [0.5, 0.1, 0.25]]).log().requires_grad_()
    mass = torch.tensor([0.8, 0.8]).log().requires_grad_()
    nll = response_nll_nats(logps, mass, labels, slots)
    assert float(nll.detach()) == pytest.approx(2 * math.log(8) + math.log(1.25) + math.log(10))
    nll.backward()
    assert mass.grad is not None
    assert mass.grad.tolist() == [-1, 0], "the labels' mass is asked for in the first row only"


def test_the_gradient_in_the_logits_is_readout_minus_votes():
    logits = torch.randn(3, 6, requires_grad=True)
    votes = torch.tensor([[1.0, 2, 3, 0, 0, 4], [0, 0, 0, 0, 9, 0], [1, 1, 1, 1, 1, 1]])
    vote_kl_nats(logits, votes).sum().backward()
    expected = torch.softmax(logits.detach(), -1) - votes / votes.sum(-1, keepdim=True)
    torch.testing.assert_close(logits.grad, expected, atol=1e-5, rtol=1e-4)
