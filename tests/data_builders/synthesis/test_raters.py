"""Simulated raters vote as the formula in their docstring says."""

import math

import numpy as np
import pytest

from data_builders.synthesis.prosody import PROTOTYPES, to_units
from data_builders.synthesis.raters import BIAS, HEARING, PER_CLIP, POOL, SHARPNESS, Raters
from reasoning.emotions import CREMA_D

NAMES = CREMA_D.names


def test_probabilities_equal_the_formula_written_out():
    raters = Raters(NAMES, seed=3)
    heard = np.random.default_rng(0).normal(size=9)
    for rater in range(3):
        odds = []
        for k, name in enumerate(NAMES):
            distance = sum((a - b) ** 2 for a, b in zip(heard, to_units(PROTOTYPES[name]), strict=True))
            odds.append(math.exp(raters.bias_RK[rater, k] - SHARPNESS * distance))
        expected = [o / sum(odds) for o in odds]
        found = raters.probabilities(heard[None], raters.bias_RK[rater : rater + 1])[0]
        assert found == pytest.approx(expected, rel=1e-9)


def test_votes_fall_as_often_as_the_model_says():
    raters = Raters(NAMES, seed=0)
    z = to_units(PROTOTYPES["happy"]) / 2  # between happy and neutral
    rng = np.random.default_rng(1)
    votes = np.sum([raters.vote(z, rng) for _ in range(2000)], axis=0)
    heard = z + np.random.default_rng(2).normal(0, HEARING, (POOL * 500, len(z)))
    expected = raters.probabilities(heard, np.tile(raters.bias_RK, (500, 1))).mean(axis=0)
    share = votes / votes.sum()
    # Four standard errors of a share over the votes that were cast.
    assert np.abs(share - expected).max() < 4 * np.sqrt(expected * (1 - expected) / votes.sum()).max()
    assert share[NAMES.index("happy")] + share[NAMES.index("neutral")] > 0.6


def test_eight_to_twelve_raters_judge_a_clip_and_the_seed_decides_it():
    raters = Raters(NAMES, seed=0)
    z = to_units(PROTOTYPES["sad"])
    votes = [raters.vote(z, np.random.default_rng([5, i])) for i in range(200)]
    assert {sum(v) for v in votes} == set(range(PER_CLIP[0], PER_CLIP[1] + 1))
    assert votes == [Raters(NAMES, seed=0).vote(z, np.random.default_rng([5, i])) for i in range(200)]
    assert votes != [Raters(NAMES, seed=1).vote(z, np.random.default_rng([5, i])) for i in range(200)]


def test_raters_differ_by_their_stated_bias():
    bias = np.concatenate([Raters(NAMES, seed).bias_RK for seed in range(20)])
    assert bias.std() == pytest.approx(BIAS, rel=0.05)
    assert bias.mean() == pytest.approx(0, abs=0.05)
