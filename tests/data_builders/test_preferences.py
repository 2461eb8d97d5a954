"""Pairs: which answer is preferred, which pairs are not made, and that length tells nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders.pair_file import Pair
from data_builders.preferences import (
    contrast_pairs,
    grounding_pairs,
    length_balanced,
    own_pairs,
    ranked_answers,
    report,
    token_difference,
    without_near_duplicates,
    without_vote,
)
from reasoning.clips import Clip
from reasoning.emotions import CREMA_D
from reasoning.grounding import ground
from reasoning.response import read_response, write_response

SAD = (0, 0, 0, 0, 2, 8)
ANGRY = (9, 1, 0, 0, 0, 0)


def clip(name: str, votes=SAD, sentence="it's eleven o'clock") -> Clip:
    return Clip(
        id=name, audio=f"{name}.wav", duration_s=1.0, transcript=sentence, language="en", speaker="s", sex=None,
        age=None, split="train", fold=0, votes=votes, n_votes=sum(votes), intended=None, source="human",
    )  # fmt: skip


def answer(shares, vote="sad", thinking=None) -> str:
    return write_response(shares, vote, CREMA_D, thinking)


def words(text: str) -> int:
    return len(text.split())


LIMITS = {"has_slot": lambda text: text == text.strip(), "margin_bits": 0.1, "good_bits": 0.4}
NEAR, MIDDLE, FAR = (answer(s) for s in ([0, 0, 0, 0, 0.2, 0.8], [0, 0, 0, 0, 0.6, 0.4], [0.9, 0.1, 0, 0, 0, 0]))


def test_the_nearest_sample_is_preferred_to_the_farthest_then_the_next_to_the_next():
    samples = {"a": [MIDDLE, "no answer at all", NEAR, FAR]}
    limits = {"has_slot": bool, "margin_bits": 0.05, "good_bits": 0.4}
    built = own_pairs([clip("a")], samples, CREMA_D, words, per_clip=2, **limits)
    assert built.pairs[0].chosen == NEAR
    assert built.pairs[1].chosen == MIDDLE
    assert {built.pairs[0].rejected, built.pairs[1].rejected} == {FAR, "no answer at all"}
    assert built.pairs[0].chosen_bits == pytest.approx(0, abs=1e-9)
    assert [p.chosen_tokens for p in built.pairs] == [words(NEAR), words(MIDDLE)]
    assert {p.kind for p in built.pairs} == {"own"}


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([NEAR, NEAR.replace("Vote: sad", "Vote: fear")], "all samples are one answer"),
        (["nothing", "else"], "no sample can be read"),
        ([], "no sample"),
        ([f" {NEAR}", FAR], "no vote slot when encoded anew"),
        ([NEAR, answer([0, 0, 0, 0, 0.25, 0.75])], "below the margin"),
        ([answer([0.9, 0, 0, 0, 0, 0.1]), FAR], "even the nearest is far"),
        ([FAR, "unreadable"], "tie"),
        ([answer([0.5, 0, 0, 0, 0.1, 0.4]), answer([0, 0.5, 0, 0, 0.1, 0.4])], "tie"),
    ],
)
def test_samples_that_rank_nothing_make_no_pair_and_are_counted_by_reason(texts, reason):
    built = own_pairs([clip("a")], {"a": texts}, CREMA_D, words, **LIMITS)
    assert not built.pairs
    assert built.left_out == Counter({("own", reason): 1})


def test_a_sample_without_a_word_is_no_answer_and_never_the_rejected_one():
    built = own_pairs([clip("a")], {"a": [NEAR, "", " \n", FAR]}, CREMA_D, words, **LIMITS)
    assert [pair.rejected for pair in built.pairs] == [FAR]
    assert built.left_out["own", "empty sample"] == 2


def test_answers_are_ranked_by_jsd_in_bits_and_an_unreadable_one_is_as_far_as_can_be():
    ranked = ranked_answers(["<answer>", FAR, NEAR], ANGRY, CREMA_D)
    assert [r.text for r in ranked] == [FAR, NEAR, "<answer>"]  # NEAR shares no emotion with the votes: 1 bit too
    assert [r.readable for r in ranked] == [True, True, False]
    assert [r.bits for r in ranked] == pytest.approx([0, 1, 1], abs=1e-9)


def test_what_is_compared_is_all_but_the_vote():
    assert without_vote(NEAR) == without_vote(NEAR.replace("Vote: sad", "Vote: very angry"))
    assert without_vote(NEAR) != without_vote(FAR)
    assert without_vote("no answer") == "no answer"


def test_contrast_prefers_the_clips_own_votes_to_those_of_a_far_clip_with_the_same_sentence():
    clips = [clip("a"), clip("b", ANGRY, "another sentence"), clip("c", ANGRY), clip("d", (0, 0, 0, 0, 3, 7))]
    built = contrast_pairs(clips, CREMA_D, words, margin_bits=0.3, seed=0)
    by_id = {p.id: p for p in built.pairs}
    assert read_response(by_id["a"].chosen, CREMA_D).probabilities == pytest.approx((0, 0, 0, 0, 0.2, 0.8))
    assert read_response(by_id["a"].rejected, CREMA_D).probabilities == pytest.approx((0.9, 0.1, 0, 0, 0, 0))
    assert by_id["b"].rejected_bits > 0.3  # no far clip says its sentence, so any other one
    for pair in built.pairs:
        assert read_response(pair.chosen, CREMA_D).vote == read_response(pair.rejected, CREMA_D).vote
        voted = next(c for c in clips if c.id == pair.id).votes
        assert voted[CREMA_D.names.index(read_response(pair.chosen, CREMA_D).vote)] > 0


def test_contrast_takes_the_same_sentence_wherever_it_has_a_far_clip():
    """Sixty far clips with another sentence and votes, one with the same: chance would hardly ever find it."""
    odd = (0, 0, 10, 0, 0, 0)
    others = [clip(f"x{i}", odd, "something else") for i in range(60)]
    for seed in range(5):
        built = contrast_pairs([clip("a"), clip("c", ANGRY), *others], CREMA_D, words, margin_bits=0.3, seed=seed)
        pair = next(p for p in built.pairs if p.id == "a")
        assert read_response(pair.rejected, CREMA_D).probabilities == pytest.approx((0.9, 0.1, 0, 0, 0, 0))


def test_contrast_without_a_far_clip_is_counted_and_other_clips_do_not_change_a_draw():
    alone = contrast_pairs([clip("a"), clip("d", (0, 0, 0, 0, 3, 7))], CREMA_D, words, margin_bits=0.3, seed=0)
    assert alone.left_out["contrast", "no clip with votes that far"] == 2
    clips = [clip("a"), clip("c", ANGRY)]
    more = [*clips, clip("z", (0, 0, 10, 0, 0, 0), "another")]
    first, second = (contrast_pairs(c, CREMA_D, words, margin_bits=0.3, seed=4).pairs[0] for c in (clips, more))
    assert first == second


LEVELS = {"pitch": 2, "loudness": 1, "pace": 0}
TRUE = "high pitch, loud and usual pace"
FALSE = "low pitch, quiet and slow pace"


def trace(voice: str) -> str:
    return f"Words: plain\nVoice: {voice}\nAmbiguity: little\nWeighing: high pitch speaks for fear"


def test_grounding_pairs_differ_in_the_voice_line_alone_which_the_measurement_contradicts():
    traces = {"a": trace(TRUE), "b": trace(FALSE)}
    clips = [clip("a"), clip("b")]
    built = grounding_pairs(clips, traces, {"a": LEVELS}, CREMA_D, words, contradictions=2, seed=0)
    (pair,) = built.pairs
    assert pair.chosen.replace(TRUE, FALSE) == pair.rejected
    assert len(ground(TRUE, LEVELS).true) == 3
    assert len(ground(FALSE, LEVELS).false) >= 2


def test_grounding_pairs_take_no_line_of_a_clip_that_they_are_not_about():
    """Traces of a whole corpus are there; "held out" is of a dev or test speaker."""
    traces = {"a": trace(TRUE), "b": trace(FALSE), "held out": trace("very low pitch, quiet and slow pace")}
    measured = dict.fromkeys(traces, LEVELS)
    for seed in range(5):
        both = grounding_pairs([clip("a"), clip("b")], traces, measured, CREMA_D, words, contradictions=2, seed=seed)
        assert [FALSE in pair.rejected for pair in both.pairs] == [True]
    alone = grounding_pairs([clip("a")], traces, measured, CREMA_D, words, contradictions=2, seed=0)
    assert alone.left_out == Counter({("grounding", "no Voice line contradicts it enough"): 1})


@pytest.mark.parametrize(
    ("traces", "levels", "reason"),
    [
        ({"a": trace(TRUE)}, {"a": LEVELS}, "no Voice line contradicts it enough"),
        ({"a": trace(FALSE), "b": trace(TRUE)}, {"a": LEVELS}, "its own Voice line is not true throughout"),
        ({"b": trace(FALSE)}, {"a": LEVELS}, "no trace or no measurement"),
        ({"a": trace(TRUE), "b": trace(FALSE)}, {}, "no trace or no measurement"),
    ],
)
def test_grounding_pairs_that_would_teach_nothing_are_counted(traces, levels, reason):
    built = grounding_pairs([clip("a")], traces, levels, CREMA_D, words, contradictions=2, seed=0)
    assert not built.pairs
    assert built.left_out == Counter({("grounding", reason): 1})


def pair(name="a", kind="own", chosen=NEAR, rejected=FAR, longer=0) -> Pair:
    return Pair(name, kind, chosen, rejected, 0.1, 0.9, 30 + longer, 30, SAD)


def test_pairs_that_say_nearly_the_same_of_one_clip_are_kept_once():
    nearly = answer([0, 0, 0, 0, 0.22, 0.78], "fear")
    pairs = [pair(), pair(chosen=nearly), pair("b"), pair(kind="contrast"), pair(chosen=MIDDLE), pair(rejected="no")]
    built = without_near_duplicates([*pairs, pair(rejected="no")], CREMA_D)
    assert built.pairs == [pairs[0], pairs[2], pairs[4], pairs[5]]
    assert built.left_out == Counter({("own", "near-duplicate"): 2, ("contrast", "near-duplicate"): 1})


def test_the_same_shares_after_other_thinking_are_not_near_duplicates():
    shares = [0, 0, 0, 0, 0.2, 0.8]
    pairs = [pair(chosen=answer(shares, thinking=t)) for t in ("Voice: low pitch", "Voice: a loud and hurried clip")]
    assert len(without_near_duplicates(pairs, CREMA_D).pairs) == 2


@given(
    st.lists(st.tuples(st.sampled_from(["own", "contrast"]), st.integers(-30, 30)), max_size=40),
    st.floats(0, 3),
)
def test_after_balancing_no_kind_is_longer_on_average_than_allowed_and_only_the_most_unequal_are_gone(made, tolerance):
    pairs = [pair(f"c{i}", kind, longer=longer) for i, (kind, longer) in enumerate(made)]
    built = length_balanced(pairs, tolerance)
    assert [p for p in pairs if p in built.pairs] == built.pairs
    assert sum(built.left_out.values()) == len(pairs) - len(built.pairs)
    for kind in ("own", "contrast"):
        kept = sorted(p.chosen_tokens - p.rejected_tokens for p in built.pairs if p.kind == kind)
        before = sorted(p.chosen_tokens - p.rejected_tokens for p in pairs if p.kind == kind)
        assert not kept or abs(np.mean(kept)) <= tolerance + 1e-9
        n = len(kept)
        assert kept in [before[i : i + n] for i in range(len(before) - n + 1)]
        # Where one side alone was cut, no larger part would do: the next one kept leaves the least mean too large.
        if 0 < n < len(before) and kept == before[:n] and np.mean(before) > 0:
            assert np.mean(before[: n + 1]) > tolerance - 1e-9
        if abs(np.mean(before or [0])) <= tolerance:
            assert kept == before


def test_the_report_counts_what_is_kept_and_says_the_balance_before_and_after():
    made = [pair(longer=4), pair("b", longer=-1), pair("c", "contrast", rejected="no", longer=1)]
    made[1] = replace(made[1], rejected_bits=1.0)  # far, and readable all the same
    told = report(
        made, made[1:], Counter({("own", "tie"): 3, ("own", "unbalanced length"): 1, ("own", "x"): 0}), CREMA_D
    )
    assert told["pairs"] == {"contrast": 1, "own": 1}
    assert told["left_out"] == {"own": {"tie": 3, "unbalanced length": 1}}
    assert told["token_difference_before"] == {"all": pytest.approx(4 / 3, abs=1e-3), "contrast": 1, "own": 1.5}
    assert told["token_difference_after"] == {"all": 0, "contrast": 1, "own": -1}
    assert told["rejected_unreadable"] == 1
    assert token_difference([]) == {}
