"""The answer grammar: what the writer writes the reader reads, and the reader names everything else."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasoning.emotions import CREMA_D, EmotionSet
from reasoning.errors import ConfigError, DistributionError
from reasoning.response import (
    ANSWER_PREFIX,
    PROBLEMS,
    SUM_TOLERANCE,
    Reading,
    ShareGrid,
    read_response,
    round_shares,
    write_response,
)

SHARES = "anger 0.00, disgust 0.05, fear 0.15, happy 0.00, neutral 0.30, sad 0.50"
ANSWER = f"<answer>Vote: sad\nShares: {SHARES}</answer>"
THINKING = "Words: a jacket.\nVoice: low and slow.\nAmbiguity: tired or sad.\nWeighing: the voice tells more."
RESPONSE = f"<think>\n{THINKING}\n</think>\n{ANSWER}"
PROBABILITIES = (0.0, 0.05, 0.15, 0.0, 0.30, 0.50)


def read(text: str) -> Reading:
    return read_response(text, CREMA_D)


def with_shares(shares: str) -> str:
    return f"<answer>Vote: sad\nShares: {shares}</answer>"


@st.composite
def distribution(draw: st.DrawFn) -> list[float]:
    weights = draw(st.lists(st.one_of(st.just(0.0), st.floats(0, 1)), min_size=6, max_size=6))
    total = sum(weights)
    return [w / total for w in weights] if total > 1e-300 else [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


# Pieces that a model's text is made of, so that hypothesis meets the grammar's corners and not only noise.
PIECES = (
    *("<think>", "</think>", "<answer>", "</answer>", "Vote:", "Vote: sad", "Shares: ", SHARES, ANSWER, "\n", "\r\n"),
    *(
        " ",
        ", ",
        "anger 0.50",
        "sad -0.5",
        "sad nan",
        "sad 1e-1",
        "sad ٠.٥٠",
        "joy 0.1",
        "sad",
        "0.50",
        "9" * 400,
        "\x00",
    ),
)


# --- reading what is right ---------------------------------------------------------------------------------------


def test_the_answer_of_the_grammar_is_read():
    assert read(ANSWER) == Reading(pytest.approx(PROBABILITIES), "sad", None, ())


def test_the_thinking_of_the_grammar_is_read():
    assert read(RESPONSE) == Reading(pytest.approx(PROBABILITIES), "sad", THINKING, ())


@pytest.mark.parametrize(
    "text", [f"\n {RESPONSE} \n\n", RESPONSE.replace("</think>\n", "</think>\n\n"), ANSWER + "\r\n"]
)
def test_blank_space_around_the_blocks_is_no_problem(text):
    assert read(text).problems == ()


def test_an_empty_think_block_is_read_as_empty_thinking():
    assert read(f"<think></think>{ANSWER}").thinking == ""
    assert read(f"<think></think>{ANSWER}").problems == ()


def test_the_vote_may_differ_from_the_largest_share():
    assert read(ANSWER.replace("Vote: sad", "Vote: anger")) == Reading(pytest.approx(PROBABILITIES), "anger", None, ())


def test_shares_may_have_any_number_of_digits():
    reading = read(with_shares("anger 0, disgust 0.0, fear 0.125, happy 0.000, neutral 0.375, sad 0.5"))
    assert reading.probabilities == (0, 0, 0.125, 0, 0.375, 0.5)


def test_the_label_readout_prefix_opens_every_written_answer():
    assert write_response(PROBABILITIES, "sad", CREMA_D).startswith(ANSWER_PREFIX + " sad")


# --- naming what is wrong ----------------------------------------------------------------------------------------

CASES = {
    "": ("no_answer",),
    "I think the speaker is sad.": ("no_answer",),
    "Vote: sad\nShares: " + SHARES: ("no_answer",),
    SHARES + "</answer>": ("no_answer",),
    ANSWER.lower().replace("answer", "ANSWER"): ("no_answer",),
    # truncated
    "<answer>": ("truncated",),
    "<answer>Vote: sad\nShares: anger 0.0": ("truncated",),
    ANSWER.removesuffix("</answer>"): ("truncated",),
    ANSWER.removesuffix(">"): ("truncated",),
    "<think>\nWords: a jacket": ("truncated", "no_answer"),
    f"<think>\nWords {ANSWER}": ("truncated", "no_answer"),
    # tags
    ANSWER + ANSWER: ("several_answers",),
    ANSWER + "\n<answer>": ("several_answers",),
    ANSWER + "</answer>": ("several_answers",),
    "</answer><answer>": ("text_before_answer", "truncated"),
    "</answer>" + ANSWER: ("several_answers",),
    f"<think>{ANSWER}</think>{ANSWER}": ("bad_think",),
    f"<think>a</think><think>b</think>{ANSWER}": ("bad_think", "text_before_answer"),
    f"a</think>{ANSWER}": ("bad_think", "text_before_answer"),
    f"Well. {RESPONSE}": ("bad_think", "text_before_answer"),
    f"{ANSWER}<think>a</think>": ("bad_think", "text_after_answer"),
    f"<think>a</think>b{ANSWER}": ("text_before_answer",),
    f"Well. {ANSWER}": ("text_before_answer",),
    f"{ANSWER} I am sure.": ("text_after_answer",),
    f"Well. {ANSWER} I am sure.": ("text_before_answer", "text_after_answer"),
    # layout
    "<answer></answer>": ("bad_layout",),
    "<answer>sad</answer>": ("bad_layout",),
    "<answer>Vote: sad</answer>": ("bad_layout",),
    f"<answer>Shares: {SHARES}\nVote: sad</answer>": ("bad_layout",),
    f"<answer>Vote: sad Shares: {SHARES}</answer>": ("bad_layout",),
    f"<answer>Vote:sad\nShares: {SHARES}</answer>": ("bad_layout",),
    f"<answer> Vote: sad\nShares: {SHARES}</answer>": ("bad_layout",),
    f"<answer>\nVote: sad\nShares: {SHARES}\n</answer>": ("bad_layout",),
    f"<answer>Vote: sad\n\nShares: {SHARES}</answer>": ("bad_layout",),
    f"<answer>Vote: sad\r\nShares: {SHARES}</answer>": ("bad_layout",),
    with_shares(SHARES + " "): ("bad_layout",),
    with_shares(SHARES + "."): ("bad_layout",),
    with_shares(SHARES + ", "): ("bad_layout",),
    with_shares(SHARES.replace(", ", ",")): ("bad_layout",),
    with_shares(SHARES.replace(" 0", ": 0")): ("bad_layout",),
    with_shares(""): ("bad_layout",),
    # numbers
    with_shares(SHARES.replace("0.50", "50%")): ("bad_layout",),
    with_shares(SHARES.replace("0.50", "nan")): ("bad_layout",),
    with_shares(SHARES.replace("0.50", "inf")): ("bad_layout",),
    with_shares(SHARES.replace("0.50", "5e-1")): ("bad_layout",),
    with_shares(SHARES.replace("0.50", "0x1")): ("bad_layout",),
    with_shares(SHARES.replace("0.50", "0_5")): ("bad_layout",),
    with_shares(SHARES.replace("0.50", ".50")): ("bad_layout",),
    with_shares(SHARES.replace("0.50", "0.")): ("bad_layout",),
    with_shares(SHARES.replace("0.50", "+0.50")): ("bad_layout",),
    with_shares(SHARES.replace("0.50", "٠.٥٠")): ("bad_layout",),  # Arabic-Indic digits, which float() reads
    with_shares(SHARES.replace("0.50", "\uff10.\uff15\uff10")): ("bad_layout",),  # full-width digits
    with_shares(SHARES.replace("disgust 0.05", "disgust -0.05").replace("0.50", "0.60")): ("negative",),
    with_shares(SHARES.replace("anger 0.00", "anger -0.00")): ("negative",),
    # labels
    ANSWER.replace("Vote: sad", "Vote: joyful"): ("unknown_label",),
    ANSWER.replace("Vote: sad", "Vote: Sad"): ("unknown_label",),
    ANSWER.replace("Vote: sad", "Vote: sad "): ("unknown_label",),
    ANSWER.replace("Vote: sad", "Vote: sadness"): ("unknown_label",),  # an alias is not a name
    ANSWER.replace("Vote: sad", "Vote: "): ("unknown_label",),
    ANSWER.replace("Vote: sad", "Vote: sad or fear"): ("unknown_label",),
    with_shares(SHARES + ", joy 0.00"): ("unknown_label",),
    with_shares(SHARES.replace("sad", "sadness")): ("unknown_label", "missing_label"),
    with_shares(SHARES + ", sad 0.00"): ("repeated_label",),
    with_shares(SHARES.replace("anger", "sad")): ("repeated_label", "missing_label"),
    with_shares(SHARES.removeprefix("anger 0.00, ")): ("missing_label",),
    with_shares("sad 1.00"): ("missing_label",),
    with_shares(", ".join(reversed(SHARES.split(", ")))): ("bad_order",),
    # sums
    with_shares(SHARES.replace("0.50", "0.80")): ("bad_sum",),
    with_shares(SHARES.replace("0.50", "0.00")): ("bad_sum",),
    with_shares(", ".join(f"{name} 0.00" for name in CREMA_D.names)): ("bad_sum",),
    with_shares(SHARES.replace("0.50", "9" * 400)): ("bad_sum",),  # float() makes it infinite
    with_shares(SHARES.replace("0.50", "-" + "9" * 400).replace("0.30", "9" * 400)): ("negative", "bad_sum"),
}


@pytest.mark.parametrize(("text", "problems"), CASES.items())
def test_a_malformed_answer_is_named_and_gives_no_shares(text, problems):
    reading = read(text)
    assert reading.problems == problems
    assert reading.probabilities is None


def test_every_name_of_a_problem_is_documented_and_reached():
    assert {problem for problems in CASES.values() for problem in problems} == set(PROBLEMS)


def test_a_cut_at_any_character_is_named():
    for length in range(len(RESPONSE)):
        reading = read(RESPONSE[:length])
        assert reading.probabilities is None
        assert set(reading.problems) & {"truncated", "no_answer"}, RESPONSE[:length]


@pytest.mark.parametrize(
    ("sad", "problems"),
    [("0.48", ()), ("0.52", ()), ("0.4799", ("bad_sum",)), ("0.5201", ("bad_sum",)), ("0.47", ("bad_sum",))],
)
def test_sums_are_normalised_up_to_the_tolerance_and_refused_beyond(sad, problems):
    reading = read(with_shares(SHARES.replace("0.50", sad)))
    assert reading.problems == problems
    if not problems:
        assert sum(reading.probabilities) == pytest.approx(1, abs=1e-12)
        assert reading.probabilities[-1] == pytest.approx(float(sad) / (0.5 + float(sad)))
    assert SUM_TOLERANCE == 0.02


@pytest.mark.parametrize("wrong", [0.98, 1.02])
@given(parts=st.lists(st.integers(0, 98), min_size=5, max_size=5, unique=True))
def test_a_sum_of_exactly_two_percent_off_is_accepted_however_it_adds_up_in_binary(wrong, parts):
    cuts = [0, *sorted(parts), round(100 * wrong)]
    hundredths = np.diff(cuts)
    text = with_shares(", ".join(f"{n} {h / 100:.2f}" for n, h in zip(CREMA_D.names, hundredths, strict=True)))
    assert read(text).problems == ()


def test_the_vote_and_the_thinking_are_kept_when_only_the_shares_are_wrong():
    reading = read(RESPONSE.replace("0.50", "0.90"))
    assert reading == Reading(None, "sad", THINKING, ("bad_sum",))


# --- any string --------------------------------------------------------------------------------------------------


def assert_total(text: str) -> None:
    reading = read(text)
    assert set(reading.problems) <= set(PROBLEMS)
    assert len(set(reading.problems)) == len(reading.problems)
    assert (reading.probabilities is None) == bool(reading.problems)
    assert reading.vote is None or reading.vote in CREMA_D.names
    if reading.probabilities is not None:
        assert len(reading.probabilities) == 6
        assert min(reading.probabilities) >= 0
        assert sum(reading.probabilities) == pytest.approx(1)
        assert reading.vote is not None


@given(st.text())
def test_any_string_gives_a_reading(text):
    assert_total(text)


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=12).map("".join))
def test_any_mixture_of_pieces_of_the_grammar_gives_a_reading(text):
    assert_total(text)


@given(st.data())
def test_a_right_answer_with_any_part_replaced_gives_a_reading(data):
    start = data.draw(st.integers(0, len(RESPONSE)))
    end = data.draw(st.integers(start, len(RESPONSE)))
    assert_total(RESPONSE[:start] + data.draw(st.one_of(st.text(max_size=5), st.sampled_from(PIECES))) + RESPONSE[end:])


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * 12_500,
        "<think>" * 14_000,
        "<answer>Vote: " + "a" * 100_000,
        "<answer>Vote: sad\nShares: " + "a" * 100_000 + "</answer>",
        "<answer>Vote: sad\nShares: " + "sad 0.01, " * 10_000 + "</answer>",
        "<answer>Vote: sad\nShares: " + ", " * 50_000 + "</answer>",
        "<answer>Vote: sad\nShares: sad " + "9" * 100_000 + "</answer>",
        "<answer>Vote: sad\nShares: sad 0." + "1" * 100_000 + "</answer>",
        "<answer>" + "Vote: \n" * 14_000 + "</answer>",
        " " * 100_000 + ANSWER + "\n" * 100_000 + "x",
    ],
    ids=lambda text: text[:30].strip() or "spaces",
)
def test_a_hundred_thousand_adversarial_characters_are_read_in_less_than_a_second(text):
    start = time.process_time()  # the processor's: a machine that stalls is not the reader's doing
    assert_total(text)
    assert time.process_time() - start < 1


# --- writing -----------------------------------------------------------------------------------------------------


@given(distribution(), st.sampled_from(CREMA_D.names), st.one_of(st.none(), st.just(THINKING), st.just("")))
def test_what_is_written_is_read_back_within_rounding(p, vote, thinking):
    reading = read(write_response(p, vote, CREMA_D, thinking))
    assert (reading.vote, reading.thinking, reading.problems) == (vote, thinking, ())
    assert max(abs(a - b) for a, b in zip(reading.probabilities, p, strict=True)) < 0.01


def test_the_written_text_is_the_grammar_to_the_letter():
    assert write_response(PROBABILITIES, "sad", CREMA_D) == ANSWER
    assert write_response(np.array(PROBABILITIES), "sad", CREMA_D, f"\n{THINKING}\n ") == RESPONSE


def test_another_emotion_set_is_written_and_read_in_its_own_order():
    emotions = EmotionSet(("sad", "anger"))
    text = write_response([0.25, 0.75], "anger", emotions)
    assert text == "<answer>Vote: anger\nShares: sad 0.25, anger 0.75</answer>"
    assert read_response(text, emotions).probabilities == (0.25, 0.75)


@given(distribution(), st.sampled_from([2, 5, 10, 20, 100, 10_000]))
def test_rounded_shares_sum_exactly_and_each_is_less_than_one_step_away(p, parts):
    whole = round_shares(p, parts)
    assert sum(whole) == parts
    assert all(abs(w - share * parts) < 1 + 1e-6 for w, share in zip(whole, p, strict=True))


@given(distribution(), st.sampled_from([2, 4, 5, 10, 20, 25, 50, 100]))
def test_shares_in_parts_of_the_whole_are_written_as_hundredths_that_read_back(p, parts):
    ShareGrid(parts).check(len(CREMA_D))
    read = read_response(write_response(p, "sad", CREMA_D, grid=ShareGrid(parts)), CREMA_D).probabilities
    assert read == pytest.approx([w / parts for w in round_shares(p, parts)])


@given(distribution(), st.sampled_from([(4, 0.02), (4, 0.04), (4, 0.1), (5, 0.05), (2, 0.16), (100, 0.0), (76, 0.04)]))
def test_shares_above_a_floor_are_the_floor_and_equal_parts_of_the_rest(p, grid):
    parts, floor = grid
    ShareGrid(parts, floor).check(len(CREMA_D))
    read = read_response(write_response(p, "sad", CREMA_D, grid=ShareGrid(parts, floor)), CREMA_D)
    assert read.problems == ()
    step = (1 - len(CREMA_D) * floor) / parts
    counts = (np.array(read.probabilities) - floor) / step
    assert counts == pytest.approx(counts.round(), abs=1e-6)
    assert counts.round().sum() == parts
    above = np.maximum(np.array(p) - floor, 0)
    assert np.abs(counts - above / above.sum() * parts).max() < 1 + 1e-6, "less than a part away"


def test_a_floor_keeps_what_has_most_votes_first_and_gives_every_emotion_something():
    text = write_response([0.1, 0.0, 0.3, 0.0, 0.6, 0.0], "sad", CREMA_D, grid=ShareGrid(4, 0.04))
    assert text.endswith("anger 0.04, disgust 0.04, fear 0.23, happy 0.04, neutral 0.61, sad 0.04</answer>")


@pytest.mark.parametrize("parts", [-5, 0, 1, 3, 7, 101, 200])
def test_parts_that_two_decimals_cannot_print_are_refused(parts):
    with pytest.raises(ConfigError, match=f"share_parts: is {parts}, expected one of 2, 4, 5, 10, 20, 25, 50, 100"):
        ShareGrid(parts).check(len(CREMA_D))


@pytest.mark.parametrize(("parts", "floor"), [(4, 0.05), (4, 0.041), (4, -0.02), (4, 0.2), (10, 0.04), (0, 0.04)])
def test_floors_that_leave_no_such_parts_are_refused(parts, floor):
    with pytest.raises(
        ConfigError, match=f"share_floor: is {floor:g}, expected one of .* with {parts} parts and 6 emo"
    ):
        ShareGrid(parts, floor).check(len(CREMA_D))


@given(st.lists(st.integers(0, 100), min_size=5, max_size=5))
def test_whole_hundredths_are_left_as_they_are(cuts):
    hundredths = tuple(int(h) for h in np.diff([0, *sorted(cuts), 100]))
    assert round_shares([h / 100 for h in hundredths]) == hundredths


@pytest.mark.parametrize(
    ("p", "hundredths"),
    [
        ((1 / 3, 1 / 3, 1 / 3), (34, 33, 33)),  # ties go to the earlier
        ((1 / 6,) * 6, (17, 17, 17, 17, 16, 16)),
        ((0.125, 0.875), (13, 87)),
        ((0.002, 0.002, 0.996), (0, 0, 100)),  # remainders .2, .2, .6: the largest takes the missing one
        ((0.29, 0.71), (29, 71)),  # 0.29 * 100 is 28.999999999999996
        ((2 / 7, 5 / 7), (29, 71)),
        ((1.0, 0.0), (100, 0)),
    ],
)
def test_largest_remainders_get_the_missing_hundredths(p, hundredths):
    assert round_shares(p) == hundredths


@pytest.mark.parametrize(
    ("p", "vote"), [(PROBABILITIES, "sadness"), (PROBABILITIES, "joy"), (PROBABILITIES[1:], "sad")]
)
def test_a_vote_or_shares_of_other_emotions_are_refused(p, vote):
    with pytest.raises(ConfigError, match="does not fit"):
        write_response(p, vote, CREMA_D)


@pytest.mark.parametrize("p", [(0.5,) * 6, (1.5, -0.5, 0, 0, 0, 0), (float("nan"),) * 6])
def test_shares_that_are_no_distribution_are_refused(p):
    with pytest.raises(DistributionError):
        write_response(p, "sad", CREMA_D)


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<answer>", "</answer>"])
def test_thinking_that_holds_a_tag_of_the_grammar_is_refused(tag):
    with pytest.raises(ConfigError, match="tag of the answer grammar"):
        write_response(PROBABILITIES, "sad", CREMA_D, f"so {tag} then")
