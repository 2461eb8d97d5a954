"""majority_accuracy: evaluation's accuracy and tie rule, clip by clip, and what it forgets."""

from __future__ import annotations

import numpy as np
import pytest

from reasoning.emotions import CREMA_D
from reasoning.evaluation.metrics import confusion_parts, weighted_accuracy
from reasoning.response import write_response
from rewards.majority import majority_accuracy

NAMES = list(CREMA_D.names)


def earned(shares, votes):
    text = shares if isinstance(shares, str) else write_response(shares, "sad", CREMA_D)
    return majority_accuracy([text], votes=[votes], emotions=[NAMES])[0]


def test_over_untied_clips_its_mean_is_the_accuracy_that_evaluation_reports():
    rng = np.random.default_rng(1)
    votes = rng.multinomial(9, rng.dirichlet(np.full(6, 0.6), 60))
    shares = rng.multinomial(10, rng.dirichlet(np.full(6, 0.6), 60)) / 10
    got = np.array([earned(q.tolist(), v.tolist()) for q, v in zip(shares, votes, strict=True)])
    untied = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
    assert 0 < untied.sum() < 60
    assert got[untied].mean() == pytest.approx(float(weighted_accuracy(confusion_parts(votes, shares).sum(axis=0))))


@pytest.mark.parametrize(
    ("shares", "votes", "reward"),
    [
        ([0.5, 0.3, 0.2, 0, 0, 0], [5, 1, 1, 0, 0, 0], 1),
        ([0.3, 0.5, 0.2, 0, 0, 0], [5, 1, 1, 0, 0, 0], 0),
        ([0.4, 0.4, 0.2, 0, 0, 0], [5, 1, 1, 0, 0, 0], 0.5),  # equal highest shares are shared out
        ([0.5, 0.3, 0.2, 0, 0, 0], [3, 3, 1, 0, 0, 0], 0),  # a clip without a majority pays nobody
        ("", [5, 1, 1, 0, 0, 0], 0),
        ("", [3, 3, 1, 0, 0, 0], 0),
    ],
)
def test_the_tie_rule_of_evaluation(shares, votes, reward):
    assert earned(shares, votes) == reward


def test_exploit_a_sure_answer_earns_as_much_as_the_votes_themselves():
    votes = [4, 3, 2, 0, 0, 0]
    assert earned([1, 0, 0, 0, 0, 0], votes) == earned([4 / 9, 3 / 9, 2 / 9, 0, 0, 0], votes) == 1
