"""Prosody settings and their common yardstick."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders.synthesis.prosody import DIMENSIONS, PROTOTYPES, UNITS, Prosody, from_units, mix, to_units
from reasoning.emotions import CREMA_D

NAMES = CREMA_D.names


@given(st.lists(st.floats(-3, 3), min_size=len(DIMENSIONS), max_size=len(DIMENSIONS)))
def test_units_and_settings_are_two_ways_to_say_the_same(z):
    back = to_units(from_units(z))
    never_negative = np.isin(DIMENSIONS, ("jitter_st", "tremor_st"))
    expected = np.where(never_negative, np.maximum(z, 0), z)
    assert back == pytest.approx(expected, abs=2e-3)


def test_a_unit_is_what_the_table_says():
    assert to_units(Prosody(pitch_st=3.0))[DIMENSIONS.index("pitch_st")] == 1
    assert from_units(np.eye(len(DIMENSIONS))[DIMENSIONS.index("rate")]).rate == pytest.approx(
        2 ** UNITS["rate"], abs=1e-4
    )


def test_a_pure_mixture_is_its_prototype_and_neutral_changes_nothing():
    assert set(PROTOTYPES) == set(NAMES)
    for k, name in enumerate(NAMES):
        assert from_units(mix(np.eye(len(NAMES))[k], NAMES)) == PROTOTYPES[name]
    assert PROTOTYPES["neutral"] == Prosody()


def test_a_half_mixture_lies_half_way_with_ratios_taken_by_their_logarithm():
    shares = [0.5 if name in ("happy", "sad") else 0.0 for name in NAMES]
    half = from_units(mix(shares, NAMES))
    assert half.pitch_st == pytest.approx((4.5 - 2.5) / 2)
    assert half.rate == pytest.approx((1.08 * 0.78) ** 0.5, abs=1e-4)


def test_every_two_emotions_are_told_apart_by_more_than_the_speakers_imprecision():
    vectors = [to_units(PROTOTYPES[name]) for name in NAMES]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(vectors) for b in vectors[:i]]
    assert min(distances) > 2.0
