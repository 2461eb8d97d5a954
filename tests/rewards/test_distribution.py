"""Distribution rewards: evaluation's own divergences, bounded, with a floor for what cannot be read, and their gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.distributions import bhattacharyya, brier, entropy_bits, jsd_bits, normalize_votes, tvd
from reasoning.emotions import CREMA_D
from reasoning.errors import DistributionError, RewardError
from reasoning.response import write_response
from rewards import distribution as r
from rewards.distribution import closeness

NAMES = list(CREMA_D.names)
ALL = [
    r.closeness, r.tvd_closeness, r.brier_closeness, r.bhattacharyya_closeness, r.earth_mover_closeness,
    r.entropy_match,
]  # fmt: skip
each = pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.__name__)


def earned(reward, shares, votes, names=NAMES):
    text = shares if isinstance(shares, str) else write_response(shares, names[0], CREMA_D)
    return reward([text], votes=[votes], emotions=[names])[0]


def one(name):
    return [float(n == name) for n in NAMES]


@each
@settings(max_examples=25)
@given(
    votes=st.lists(st.integers(0, 9), min_size=6, max_size=6).filter(sum),
    weights=st.lists(st.integers(0, 100), min_size=6, max_size=6).filter(sum),
)
def test_any_answer_earns_between_floor_and_ceiling(reward, votes, weights):
    assert 0 <= earned(reward, (np.array(weights) / sum(weights)).tolist(), votes) <= 1


@each
def test_the_votes_themselves_earn_the_ceiling(reward):
    assert earned(reward, [0.5, 0, 0, 0, 0.5, 0], [5, 0, 0, 0, 5, 0]) == pytest.approx(1)


@each
@pytest.mark.parametrize("text", ["", "sad", "<answer>Vote: sad\nShares: anger 0.50</answer>", "<answer>Vote: sad\nSh"])
def test_what_cannot_be_read_earns_no_more_than_the_worst_answer(reward, text):
    assert earned(reward, text, [1, 2, 3, 0, 1, 0]) == 0
    assert earned(reward, text, [0, 0, 0, 0, 0, 4]) == 0


def test_the_farthest_answer_earns_the_floor():
    for reward in (r.closeness, r.tvd_closeness, r.brier_closeness, r.bhattacharyya_closeness, r.entropy_match):
        assert earned(reward, one("fear"), [5, 0, 0, 0, 0, 0]) == pytest.approx(0), reward.__name__
    assert earned(r.earth_mover_closeness, one("happy"), [0, 0, 0, 0, 0, 5]) == pytest.approx(0)


@pytest.mark.parametrize(
    ("reward", "score"),
    [
        (r.closeness, lambda p, q: 1 - jsd_bits(p, q)),
        (r.tvd_closeness, lambda p, q: 1 - tvd(p, q)),
        (r.brier_closeness, lambda p, q: 1 - brier(p, q) / 2),
        (r.bhattacharyya_closeness, bhattacharyya),
        (
            r.entropy_match,
            lambda p, q: (1 - jsd_bits(p, q)) * (1 - np.abs(entropy_bits(p) - entropy_bits(q)) / np.log2(6)),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_batch_earns_what_evaluation_scores_row_by_row(reward, score):
    rng = np.random.default_rng(0)
    votes = rng.multinomial(9, rng.dirichlet(np.full(6, 0.6), 20))
    hundredths = rng.multinomial(100, rng.dirichlet(np.full(6, 0.6), 20)) / 100
    texts = [write_response(q.tolist(), "sad", CREMA_D) for q in hundredths]
    got = reward(texts, votes=votes.tolist(), emotions=[NAMES] * 20, id=["any"] * 20)
    np.testing.assert_allclose(got, score(normalize_votes(votes), hundredths), atol=1e-12)


def test_conversations_and_strings_earn_the_same_and_rows_are_not_mixed_up():
    texts = [write_response(np.eye(6)[i], NAMES[i], CREMA_D) for i in (0, 3)]
    votes = [[4, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]]
    as_chat = [[{"role": "assistant", "content": t}] for t in texts]
    assert closeness(texts, votes=votes, emotions=[NAMES] * 2) == [1, 0]
    assert closeness(as_chat, votes=votes, emotions=[NAMES] * 2, row=[1, 2]) == [1, 0]


def test_votes_that_do_not_fit_the_emotions_are_an_error_and_not_a_low_reward():
    with pytest.raises(DistributionError):
        earned(closeness, one("sad"), [1, 2, 3])


def test_an_emotion_without_a_place_in_the_plane_is_named():
    with pytest.raises(RewardError, match="'contempt' has no valence and arousal"):
        earned(r.earth_mover_closeness, "", [1, 1], names=["sad", "contempt"])


# How each is gamed


def best_share(reward, kinds):
    """The share of the first emotion that earns most, on average over clips that cannot be told apart."""
    shares = np.round(np.arange(0.02, 0.99, 0.01), 2)
    answers = [write_response([s, 0, 0, 0, 1 - s, 0], "anger", CREMA_D) for s in shares]
    n = len(kinds)
    mean = [np.mean(reward([a] * n, votes=kinds, emotions=[NAMES] * n)) for a in answers]
    return float(shares[int(np.argmax(mean))])


UNSURE = [[9, 0, 0, 0, 1, 0], [9, 0, 0, 0, 1, 0], [4, 0, 0, 0, 6, 0]]
MEAN_VOTE = 22 / 30


def test_exploit_sharpening_pays_under_uncertainty_though_the_proper_reward_asks_for_the_mean():
    assert best_share(r.brier_closeness, UNSURE) == pytest.approx(MEAN_VOTE, abs=0.01)
    assert best_share(r.closeness, UNSURE) > MEAN_VOTE + 0.01
    assert best_share(r.bhattacharyya_closeness, UNSURE) > MEAN_VOTE + 0.01


def test_exploit_total_variation_pays_for_the_median_and_leaves_the_minority_out():
    assert best_share(r.tvd_closeness, UNSURE) == pytest.approx(0.9)


def test_exploit_brier_hardly_asks_for_a_rare_emotion():
    votes, without = [9, 0, 0, 0, 1, 0], one("anger")
    assert earned(r.brier_closeness, without, votes) == pytest.approx(0.99)
    assert earned(r.closeness, without, votes) < 0.96


def test_exploit_the_earth_mover_forgives_a_neighbour_that_closeness_does_not():
    votes = [8, 0, 0, 0, 0, 0]
    assert earned(r.earth_mover_closeness, one("fear"), votes) == pytest.approx(0.92, abs=0.005)
    assert earned(r.closeness, one("fear"), votes) == 0
    assert earned(r.earth_mover_closeness, one("happy"), votes) < 0.25


def test_exploit_entropy_alone_is_blind_to_permuted_labels_and_the_product_is_not():
    votes, permuted = [6, 3, 1, 0, 0, 0], [0, 0, 0, 0.1, 0.6, 0.3]
    assert r.entropy_gap(normalize_votes(votes), np.array([permuted]))[0] == pytest.approx(0)
    assert earned(r.entropy_match, permuted, votes) == pytest.approx(0)
    assert earned(r.entropy_match, [0.6, 0.3, 0.1, 0, 0, 0], votes) == pytest.approx(1)


def test_exploit_a_constant_of_the_usual_ambiguity_beats_a_sure_answer_that_hears_the_majority():
    """Three clips as ambiguous as each other: the same middling answer earns more than three right ones."""
    votes = [[4, 2, 2, 1, 1, 0], [2, 4, 1, 2, 0, 1], [2, 2, 4, 0, 1, 1]]
    constant = np.mean(normalize_votes(votes), axis=0).tolist()
    deaf = np.mean([earned(r.entropy_match, constant, v) for v in votes])
    hears = np.mean([earned(r.entropy_match, one(NAMES[i]), v) for i, v in enumerate(votes)])
    assert deaf > hears + 0.4
