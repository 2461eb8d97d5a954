"""The answer grammar: the only writer and the only reader of a model's text.

    <think>
    ...
    </think>
    <answer>Vote: sad
    Shares: anger 0.00, disgust 0.05, fear 0.15, happy 0.00, neutral 0.30, sad 0.50</answer>

The think block is there only when thinking was asked for. Vote is one listener's vote; Shares is the distribution.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reasoning.distributions import floor_shares
from reasoning.emotions import EmotionSet
from reasoning.errors import ConfigError

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
ANSWER_PREFIX = "<answer>Vote:"
"""What stands before the label readout; labels follow with a leading space."""

WHOLE = 100
"""Shares are printed in hundredths."""

SUM_TOLERANCE = 0.02
_SHARE = re.compile(r"([a-z]+) (-?\d+(?:\.\d+)?)", re.ASCII)
_ANSWER = re.compile(r"Vote: ([^\r\n]*)\nShares: ([^\r\n]*)")

PROBLEMS = {
    "bad_think": "not one think block at the start, or a tag of the grammar inside it",
    "truncated": "a think or answer block that is not closed",
    "no_answer": "no answer block",
    "several_answers": "more than one opening or closing answer tag",
    "text_before_answer": "text between the think block, or the start, and the answer",
    "text_after_answer": "text after the answer",
    "bad_layout": "the answer is not a Vote line and a Shares line of `name number` joined by comma and space",
    "unknown_label": "a name that is not in the emotion set, or an alias of one",
    "repeated_label": "a share given twice",
    "missing_label": "a share not given",
    "bad_order": "all shares given, in another order than the emotion set's",
    "negative": "a share with a minus sign",
    "bad_sum": "shares whose sum is more than SUM_TOLERANCE from 1",
}
"""Every reason for which an answer cannot be used, and what it means."""


@dataclass(frozen=True)
class Reading:
    """What a response says.

    probabilities: shares in EmotionSet order that sum to 1, or None when the answer cannot be used. vote: the emotion
    named after Vote, or None. thinking: the text of the think block, or None. problems: why it cannot be used, each one
    of PROBLEMS; empty exactly when probabilities is not None.
    """

    probabilities: tuple[float, ...] | None
    vote: str | None
    thinking: str | None
    problems: tuple[str, ...]


def round_shares(probabilities: Sequence[float], parts: int = WHOLE) -> tuple[int, ...]:
    """How many of so many parts each share is, by largest remainder, `parts` in all; ties go to the earlier.

    Raises DistributionError when `probabilities` is not a distribution.
    """
    scaled = [float(p) * parts for p in floor_shares([list(probabilities)], 0.0)[0]]
    whole = [int(s) for s in scaled]  # 0.29 * 100 = 28.999999999999996 gets its hundredth back as the largest remainder
    order = sorted(range(len(scaled)), key=lambda i: (-(scaled[i] - whole[i]), i))
    for i in order[: parts - sum(whole)]:
        whole[i] += 1
    return tuple(whole)


def written_share(hundredths: int) -> str:
    """A share as every answer writes it, with two decimals."""
    return f"{hundredths // 100}.{hundredths % 100:02d}"


@dataclass(frozen=True)
class ShareGrid:
    """Which shares may be written: `floor`, and of what the floors leave any number of `parts` equal parts.

    The fewer parts, the fewer rows of shares for a small model to learn; the floor spares it the zeros, which few parts
    would otherwise mostly be, and a share of 0.00 for which somebody voted is dear. The default is every hundredth.
    """

    parts: int = WHOLE
    floor: float = 0.0

    def check(self, n_emotions: int, parts_field: str = "share_parts", floor_field: str = "share_floor") -> None:
        """Raise ConfigError unless such shares of `n_emotions` can be printed with two decimals and sum to 1."""
        floors = [
            h for h in range(-(-WHOLE // n_emotions)) if self.parts > 1 and not (WHOLE - n_emotions * h) % self.parts
        ]
        if not self.floor and 0 not in floors:
            known = ", ".join(str(n) for n in range(2, WHOLE + 1) if WHOLE % n == 0)
            raise ConfigError(f"is {self.parts}, expected one of {known}", field=parts_field)
        if not any(abs(self.floor - h / WHOLE) < 1e-9 for h in floors):
            known = ", ".join(written_share(h) for h in floors) or "none"
            what = f"is {self.floor:g}, expected one of {known} with {self.parts} parts and {n_emotions} emotions"
            raise ConfigError(what, field=floor_field)

    def hundredths(self, probabilities: Sequence[float]) -> list[int]:
        """The shares that are written for a distribution (K,), in hundredths that sum to 100.

        What it has above the floor is rounded by `round_shares`.
        """
        least = round(self.floor * WHOLE)
        step = (WHOLE - least * len(probabilities)) // self.parts
        above = [max(p - self.floor, 0.0) for p in probabilities] if least else list(probabilities)
        whole = sum(above) if least else 1.0
        return [least + step * part for part in round_shares([a / whole for a in above], self.parts)]


HUNDREDTHS = ShareGrid()


def write_response(
    probabilities: Sequence[float],
    vote: str,
    emotions: EmotionSet,
    thinking: str | None = None,
    grid: ShareGrid = HUNDREDTHS,
) -> str:
    """The response text for a distribution (K,), one vote, and optional thinking. `read_response` reads it back.

    Shares are those of the grid, printed with two decimals.
    Raises ConfigError when `vote` is not an emotion's name or `thinking` holds a tag of the grammar.
    """
    if vote not in emotions.names or len(probabilities) != len(emotions):
        raise ConfigError(f"vote {vote!r} with {len(probabilities)} shares does not fit {emotions.names}", field="vote")
    hundredths = zip(emotions.names, grid.hundredths(probabilities), strict=True)
    shares = ", ".join(f"{name} {written_share(share)}" for name, share in hundredths)
    answer = f"{ANSWER_PREFIX} {vote}\nShares: {shares}{ANSWER_CLOSE}"
    if thinking is None:
        return answer
    if any(tag in thinking for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)):
        raise ConfigError("holds a tag of the answer grammar", field="thinking")
    return f"{THINK_OPEN}\n{thinking.strip()}\n{THINK_CLOSE}\n{answer}"


def read_response(text: str, emotions: EmotionSet) -> Reading:
    """What `text` says: strict and total. Any string gives a Reading; nothing is guessed around a problem."""
    thinking, rest, problems = _split_thinking(text.strip())
    if ANSWER_OPEN not in rest:
        return Reading(None, None, thinking, (*problems, "no_answer"))
    if rest.count(ANSWER_OPEN) > 1 or rest.count(ANSWER_CLOSE) > 1:
        return Reading(None, None, thinking, (*problems, "several_answers"))
    before, _, body = rest.partition(ANSWER_OPEN)
    body, closed, after = body.partition(ANSWER_CLOSE)
    if before.strip():
        problems.append("text_before_answer")
    if not closed:
        return Reading(None, None, thinking, (*problems, "truncated"))
    if after.strip():
        problems.append("text_after_answer")
    match = _ANSWER.fullmatch(body)
    if match is None:
        return Reading(None, None, thinking, (*problems, "bad_layout"))
    vote = match[1] if match[1] in emotions.names else None
    if vote is None:
        problems.append("unknown_label")
    shares, share_problems = _read_shares(match[2], emotions)
    problems += [p for p in share_problems if p not in problems]
    return Reading(None if problems else shares, vote, thinking, tuple(problems))


def _split_thinking(text: str) -> tuple[str | None, str, list[str]]:
    """(thinking, what follows it, problems) of a response that may open with one think block."""
    opened, closed = text.count(THINK_OPEN), text.count(THINK_CLOSE)
    if opened == closed == 0:
        return None, text, []
    if opened != 1 or closed > 1 or not text.startswith(THINK_OPEN):
        return None, text, ["bad_think"]
    thinking, _, rest = text.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    if closed == 0:
        return thinking.strip(), "", ["truncated"]
    problems = ["bad_think"] if ANSWER_OPEN in thinking or ANSWER_CLOSE in thinking else []
    return thinking.strip(), rest, problems


def _read_shares(line: str, emotions: EmotionSet) -> tuple[tuple[float, ...] | None, list[str]]:
    """Shares in EmotionSet order, or None and why not."""
    pairs = [_SHARE.fullmatch(part) for part in line.split(", ")]
    if any(pair is None for pair in pairs):
        return None, ["bad_layout"]
    names = [pair[1] for pair in pairs if pair]
    values = [float(pair[2]) for pair in pairs if pair]
    problems = []
    if any(name not in emotions.names for name in names):
        problems.append("unknown_label")
    if len(set(names)) != len(names):
        problems.append("repeated_label")
    if not set(emotions.names) <= set(names):
        problems.append("missing_label")
    if not problems and tuple(names) != emotions.names:
        problems.append("bad_order")
    if any(pair[2].startswith("-") for pair in pairs if pair):
        problems.append("negative")
    total = sum(values)
    # The slack keeps sums that are exactly 2% off in decimal on the accepting side in binary.
    if not abs(total - 1) <= SUM_TOLERANCE + 1e-9:
        problems.append("bad_sum")
    return (None, problems) if problems else (tuple(v / total for v in values), [])
