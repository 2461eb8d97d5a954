"""What a reward may return, and that whatever else it does is named with the clip and the completion."""

from __future__ import annotations

import asyncio
import math
import pickle

import numpy as np
import pytest
import torch

from reasoning.errors import RewardError
from reasoning.training.rewarding import Guard, agreement_weights, asked_columns

COLUMNS = ("id", "votes", "intended")
GIVEN = {
    "prompts": ["a", "b", "c"], "completions": ["one", "two", "three"], "completion_ids": [[1], [2], [3]],
    "id": ["a", "b", "c"], "votes": [[1, 0], [0, 1], [1, 1]], "intended": ["sad", None, math.nan],
    "trainer_state": object(), "log_extra": print, "log_metric": print,
}  # fmt: skip


def run(reward, given=GIVEN):
    """(what TRL is handed, the guard afterwards), for a plain or an async reward."""
    guard = Guard([reward], COLUMNS)
    result = guard.functions[0](**given)
    return (asyncio.run(result) if asyncio.iscoroutine(result) else result), guard


def both(plain):
    """The same reward, plain and async."""

    async def awaited(completions, votes, **columns):
        await asyncio.sleep(0)
        return plain(completions, votes, **columns)

    return [plain, awaited]


@pytest.mark.parametrize(
    "result", [[1, 0.5, True], (1, 0.5, 1), np.array([1, 0.5, 1]), torch.tensor([1, 0.5, 1]), map(float, [1, 0.5, 1])]
)
def test_numbers_of_any_usual_kind_pass_as_floats(result):
    for reward in both(lambda completions, votes, **columns: result)[: 1 if isinstance(result, map) else 2]:
        paid, guard = run(reward)
        assert paid == [1.0, 0.5, 1.0]
        assert all(type(value) is float for value in paid)
        assert guard.failure is None
        assert list(guard.earned.values()) == [paid]


@pytest.mark.parametrize(
    ("result", "row", "says"),
    [
        (
            [1, None, 0],
            "b",
            r"returned None for the completion 'two', though the clip has votes\. To mend: return a num",
        ),
        ([1, 0, math.nan], "c", "returned nan for the completion 'three', expected a finite number"),
        ([-math.inf, 0, 0], "a", "returned -inf for the completion 'one'"),
        ([1e39, 0, 0], "a", r"returned 1e\+39"),  # infinite as the float32 that TRL makes of it
        ([1, "0.5", 0], "b", "returned '0.5' for the completion 'two'"),
        ([1, [0.5], 0], "b", r"returned \[0.5\] for the completion 'two'"),
        ([1, 1j, 0], "b", "returned 1j"),
        ([1, 0], None, "returned 2 numbers for 3 completions"),
        (None, None, "returned None, expected a list of 3 numbers"),
        (0.5, None, "returned 0.5, expected a list"),
        (torch.tensor(0.5), None, "returned 0.5, expected a list"),
        ("110", None, "returned '110', expected a list"),
        ({"a": 1}, None, "expected a list"),
    ],
)
def test_anything_else_is_an_error_that_names_reward_clip_and_completion(result, row, says):
    for reward in both(lambda completions, votes, **columns: result):
        paid, guard = run(reward)
        assert paid == [0.0] * 3
        assert guard.earned == {}
        assert guard.failure is not None
        assert guard.failure.field == reward.__name__
        assert guard.failure.row == row
        with pytest.raises(RewardError, match=says):
            raise guard.failure


def test_none_is_for_a_clip_that_lacks_a_column_which_the_reward_takes_by_name():
    paid, guard = run(lambda completions, intended, **columns: [1.0, None, None])
    assert (paid, guard.failure) == ([1.0, None, None], None)
    paid, guard = run(lambda completions, weather=None, **columns: [None] * 3)
    assert (paid, guard.failure) == ([None] * 3, None)
    _, guard = run(lambda completions, intended, **columns: [None, None, None])
    assert guard.failure is not None
    assert guard.failure.row == "a"
    _, guard = run(lambda completions, **columns: [1.0, columns["intended"][1], 1.0])
    assert guard.failure is not None, "a column that is not taken by name was not asked for"


def test_a_coroutine_from_a_plain_function_asks_for_async_def():
    async def judge():
        return [1.0]

    coroutine = judge()
    _, guard = run(lambda completions, **columns: coroutine)
    assert "async def" in str(guard.failure)
    coroutine.close()


def test_an_exception_names_the_clip_and_completion_that_raise_alone_and_the_line():
    long = "x" * 300

    def divide(completions, votes, **columns):
        return [1 / v[0] for v in votes]

    given = {**GIVEN, "completions": ["one", long, "three"]}
    for reward in both(divide):
        _, guard = run(reward, given)
        failure = guard.failure
        assert failure is not None
        assert (failure.row, failure.field) == ("b", reward.__name__)
        assert "ZeroDivisionError: division by zero" in failure.what
        assert "test_rewarding.py:" in failure.what
        assert "'" + "x" * 100 + " ... " + "x" * 50 + "'" in failure.what
        assert str(pickle.loads(pickle.dumps(failure))) == str(failure)


def test_an_exception_that_no_completion_causes_alone_says_so():
    def jealous(completions, votes, **columns):
        if len(completions) > 1:
            raise OSError("too many at once")
        return [1.0]

    for reward in both(jealous):
        _, guard = run(reward)
        assert "too many at once" in str(guard.failure)
        assert "the 3 completions together, but on none of them alone; the first is the completion 'one'" in str(
            guard.failure
        )


def test_the_first_failure_of_a_pass_is_kept_and_forgotten_when_the_next_starts():
    guard = Guard([lambda completions, **columns: 0, lambda completions, **columns: 1], COLUMNS)
    for function in guard.functions:
        function(**GIVEN)
    assert "returned 0" in str(guard.failure)
    guard.start()
    assert (guard.failure, guard.earned) == (None, {})


def test_a_guarded_reward_keeps_its_name_and_its_asynchrony():
    async def judge(completions, **columns): ...

    assert Guard([judge], COLUMNS).functions[0].__name__ == "judge"
    assert asyncio.iscoroutinefunction(Guard([judge], COLUMNS).functions[0])
    assert not asyncio.iscoroutinefunction(Guard([lambda completions, **c: 0], COLUMNS).functions[0])


def test_a_column_that_the_rows_lack_is_refused_unless_the_reward_can_do_without():
    assert asked_columns(lambda completions, votes, trainer_state, mood=None, **columns: 0, COLUMNS) == (
        "votes",
        "mood",
    )
    with pytest.raises(RewardError, match="asks for the column 'mood'; the clips have id, intended, votes"):
        asked_columns(lambda completions, mood, **columns: 0, COLUMNS)


@pytest.mark.parametrize(
    ("votes", "strength", "weight"),
    [
        ([8, 0, 0, 0], 1.0, 1.0),
        ([2, 2, 2, 2], 1.0, 0.0),
        ([4, 4, 0, 0], 1.0, 0.5),
        ([4, 4, 0, 0], 0.4, 0.8),
        ([2, 2, 2, 2], 0.0, 1.0),
    ],
)
def test_agreement_is_one_less_the_share_of_the_greatest_entropy(votes, strength, weight):
    assert agreement_weights([votes, [1, 0, 0, 0]], strength).tolist() == pytest.approx([weight, 1.0])
