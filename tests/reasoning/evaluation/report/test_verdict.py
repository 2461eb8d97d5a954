"""What the page says follows from intervals: no win without one clear of zero and a proper score that agrees."""

import math
from dataclasses import replace

import pytest

from reasoning.evaluation.comparisons import VERDICTS, verdict_of
from reasoning.evaluation.report.verdict import READS, interval, joined, number, tiles, verdict
from reasoning.evaluation.report.views import read_scores
from reasoning.evaluation.statistics import Interval

LOWER, HIGHER, ACROSS = Interval(-0.02, -0.03, -0.01), Interval(0.02, 0.01, 0.03), Interval(-0.01, -0.02, 0.01)


@pytest.fixture
def against(make_material):
    """against(jsd, nll, brier): the scores, with the lead's differences from both baselines replaced by these."""
    scores = read_scores(make_material().scores)

    def changed(jsd, nll, brier, only=None):
        def change(c):
            if c.kind != "baseline" or c.system != scores.lead.key or (only and not c.versus.startswith(only)):
                return c
            metrics = dict(c.metrics) | {"jsd_bits": jsd, "nll_bits": nll, "brier": brier}
            return replace(c, metrics=metrics, verdict=verdict_of(metrics))

        return replace(scores, comparisons=tuple(change(c) for c in scores.comparisons))

    return changed


def test_a_win_names_the_rule_it_rests_on(against):
    said = verdict(against(LOWER, LOWER, ACROSS))
    assert "closer than each of the 2 baselines: paired interval clear of zero, and a proper score agrees" in said
    assert said.startswith("On 9 test clips by 3 speakers, sft · label lies 0.")


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ((LOWER, ACROSS, ACROSS), "closer than a uniform guess and the training prior only by sharpening"),
        ((LOWER, HIGHER, LOWER), "only by sharpening"),
        ((ACROSS, ACROSS, ACROSS), "not shown to differ from a uniform guess and the training prior."),
        (
            (ACROSS, LOWER, ACROSS),
            "not shown to differ from a uniform guess and the training prior in jsd_bits and better by",
        ),
        (
            (ACROSS, HIGHER, ACROSS),
            "not shown to differ from a uniform guess and the training prior in jsd_bits and worse by",
        ),
        (
            (HIGHER, ACROSS, ACROSS),
            "farther away than a uniform guess and the training prior, though the proper scores do not agree",
        ),
        ((HIGHER, HIGHER, ACROSS), "worse than a uniform guess and the training prior"),
    ],
)
def test_nothing_less_is_called_a_win(against, differences, said):
    sentence = verdict(against(*differences))
    assert said in sentence
    assert "a proper score agrees" not in sentence


def test_a_mixed_result_names_both_sides(against):
    said = verdict(against(ACROSS, ACROSS, ACROSS, only="uniform"))
    assert "closer than the training prior (interval clear of zero, a proper score agrees)" in said
    assert "not shown to differ from a uniform guess" in said


def test_the_margin_is_over_the_hardest_baseline(against):
    scores = against(LOWER, LOWER, LOWER)
    best = min((s for s in scores.series if s.kind == "baseline"), key=lambda s: s.metrics["jsd_bits"].estimate)
    tile = next(t for t in tiles(scores) if "best baseline" in t.name)
    assert best.phrase in tile.name
    assert (tile.figure, tile.tone) == ("−0.020", "good")


def test_a_deaf_model_is_not_said_to_use_the_voice(against):
    scores = against(LOWER, LOWER, LOWER)
    assert next(t for t in tiles(scores) if "voice" in t.name).figure == "Yes"
    none = {"jsd_bits": ACROSS, "nll_bits": ACROSS, "brier": ACROSS}
    deaf = tuple(
        replace(c, metrics=dict(c.metrics) | none, verdict="unclear") if c.kind == "control" else c
        for c in scores.comparisons
    )
    tile = next(t for t in tiles(replace(scores, comparisons=deaf)) if "voice" in t.name)
    assert (tile.figure, tile.tone) == ("Not shown", "bad")


def test_every_verdict_has_its_words():
    assert list(READS) == list(VERDICTS)


def test_numbers_are_printed_for_people():
    assert number(-0.0123) == "−0.012"
    assert number(0.5, signed=True) == "+0.500"
    assert number(math.nan) == "–"
    assert interval(Interval(0.1, math.nan, math.nan)) == "0.100"
    assert interval(Interval(0.1, -0.05, 0.25)) == "0.100 [−0.050, 0.250]"
    assert joined(["a", "b", "c"]) == "a, b and c"
