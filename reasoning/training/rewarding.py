"""Rewards under guard: what one may return, what is said when it fails, and how agreement weighs a clip.

TRL turns None into NaN and leaves it out of the sum, so an answer that a reward will not judge goes unpunished, and a
NaN that a reward computed looks the same. Here None is for a column that the clip lacks; anything else that is not a
finite number is an error that names the reward, the clip and the completion.
"""

from __future__ import annotations

import functools
import inspect
import math
import traceback
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reasoning.distributions import entropy_bits, normalize_votes
from reasoning.errors import RewardError

Reward = Callable[..., Any]
Paid = list[float | None]

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "row")
"""What every reward may ask for beside the columns of the rows."""

_LARGEST = float(np.finfo(np.float32).max)


def asked_columns(reward: Reward, columns: Collection[str]) -> tuple[str, ...]:
    """The columns that a reward takes by name. Raises RewardError on one that the rows lack and that has no default."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    asked = [p for p in inspect.signature(reward).parameters.values() if p.kind in named and p.name not in GIVEN]
    for parameter in asked:
        if parameter.name not in columns and parameter.default is inspect.Parameter.empty:
            raise RewardError(
                f"asks for the column {parameter.name!r}; the clips have {', '.join(sorted(columns))}",
                field=reward.__name__,
                cure="give the parameter a default where the reward can do without",
            )
    return tuple(p.name for p in asked)


class Guard:
    """Plain and async rewards that never raise: `failure` is the first error of a pass, `earned` what each reward paid.

    A rank that raised alone would leave the others waiting in a collective, and rewards that come later unpaid. So the
    trainer calls `functions`, lets all ranks compare, saves what there is, and raises then. columns: those of the rows.
    """

    def __init__(self, rewards: Sequence[Reward], columns: Collection[str]) -> None:
        self.functions = [self._guarded(reward, asked_columns(reward, columns)) for reward in rewards]
        self.start()

    def start(self) -> None:
        """Forget the pass before."""
        self.earned: dict[str, Paid] = {}
        self.failure: RewardError | None = None

    def _guarded(self, reward: Reward, asked: tuple[str, ...]) -> Reward:
        name = reward.__name__

        def failed(given: Mapping[str, Any], error: RewardError) -> Paid:
            self.failure = self.failure or error
            return [0.0] * len(given["completions"])

        def paid(given: Mapping[str, Any], result: Any) -> Paid:
            try:
                self.earned[name] = checked(name, asked, given, result)
            except RewardError as error:
                return failed(given, error)
            return self.earned[name]

        async def guarded(given: Mapping[str, Any]) -> Paid:
            try:
                return paid(given, await _asked(reward, given))
            except Exception as error:
                for i in range(len(given["completions"])):
                    try:
                        await _asked(reward, _only(given, i))
                    except Exception as again:
                        return failed(given, _raised(name, given, again, i))
                return failed(given, _raised(name, given, error))

        @functools.wraps(reward)
        def call(**given: Any) -> Paid:
            return _at_once(guarded(given))

        @functools.wraps(reward)
        async def call_async(**given: Any) -> Paid:
            return await guarded(given)

        return call_async if inspect.iscoroutinefunction(reward) else call


async def _asked(reward: Reward, given: Mapping[str, Any]) -> Any:
    return await reward(**given) if inspect.iscoroutinefunction(reward) else reward(**given)


def _at_once(waiting: Coroutine[Any, Any, Paid]) -> Paid:
    """The result of a coroutine that has nothing to wait for: its reward is a plain function."""
    try:
        waiting.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a plain reward cannot be waited for")


def checked(name: str, asked: Sequence[str], given: Mapping[str, Any], result: Any) -> Paid:
    """What the reward `name` paid: a finite number for each completion, None only where the clip lacks a column."""
    n = len(given["completions"])
    result = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(result, Iterable) or isinstance(result, (str, bytes, Mapping)):
        cure = "declare it with `async def`" if inspect.iscoroutine(result) else None
        raise RewardError(f"returned {result!r}, expected a list of {n} numbers", field=name, cure=cure)
    values = list(result)
    if len(values) != n:
        raise RewardError(f"returned {len(values)} numbers for {n} completions", field=name)
    return [_number(name, asked, given, i, value) for i, value in enumerate(values)]


def _number(name: str, asked: Sequence[str], given: Mapping[str, Any], i: int, value: Any) -> float | None:
    if value is None:
        if any(_lacks(given.get(column), i) for column in asked):
            return None
        what = f"returned None for {_short(given, i)}, though the clip has {', '.join(asked) or 'all it asked for'}"
        cure = "return a number; None is for a clip that lacks a column which the reward takes by name"
        raise RewardError(what, row=_clip(given, i), field=name, cure=cure)
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, (int, float)) or not abs(number) <= _LARGEST:
        what = f"returned {number!r} for {_short(given, i)}, expected a finite number"
        raise RewardError(what, row=_clip(given, i), field=name)
    return float(number)


def _lacks(column: Sequence[Any] | None, i: int) -> bool:
    value = None if column is None else column[i]
    return value is None or (isinstance(value, float) and math.isnan(value))


def _raised(name: str, given: Mapping[str, Any], error: Exception, i: int | None = None) -> RewardError:
    """The error of a reward that raised on completion i, or on all of them together but on none alone."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    what = f"raised {type(error).__name__}: {error}{place}"
    if i is None:
        many = f"the {len(given['completions'])} completions together, but on none of them alone; the first is"
        return RewardError(f"{what} on {many} {_short(given, 0)}", row=_clip(given, 0), field=name)
    return RewardError(f"{what} on {_short(given, i)}", row=_clip(given, i), field=name)


def _only(given: Mapping[str, Any], i: int) -> dict[str, Any]:
    """The same call for completion i alone."""
    n = len(given["completions"])
    return {k: v[i : i + 1] if isinstance(v, list) and len(v) == n else v for k, v in given.items()}


def _clip(given: Mapping[str, Any], i: int) -> str | None:
    return given["id"][i] if "id" in given else None


def _short(given: Mapping[str, Any], i: int) -> str:
    completion = given["completions"][i]
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return f"the completion {text if len(text) <= 160 else text[:100] + ' ... ' + text[-50:]!r}"


def agreement_weights(votes_NK: Any, strength: float) -> Tensor:
    """1 - strength * entropy of the votes / log2 K, shape (N,): 1 where all agree, 1 - strength where evenly split.

    To multiply advantages with: on a reward that is divided by its group's standard deviation the same weight cancels.
    The entropy of n votes is on average lower than that of the listeners they were drawn from, the more so the fewer.
    """
    entropy = entropy_bits(normalize_votes(votes_NK)) / np.log2(len(votes_NK[0]))
    return torch.tensor(1 - strength * entropy, dtype=torch.float32)
