"""predictions.jsonl: one line per (system, readout, control, split, clip), the only thing that scoring reads.

Baselines are lines too (readout "none"), so pooling folds is joining files and scoring again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from reasoning.errors import EvaluationError
from reasoning.evaluation.controls import CONTROLS
from reasoning.response import ANSWER_OPEN, THINK_OPEN

WRITTEN = ("verbalized", "guided", "guided_mean")
"""Readouts of Shares. verbalized: one greedy answer, written freely. guided: the same under the answer grammar, which
lets shares do nothing but add up. guided_mean: the mean of SAMPLES such answers, sampled at temperature 1."""
READOUTS = ("label", *WRITTEN)
SAMPLES = 8
FORCED = "forced"
"""The problem of own thinking that had no end and was closed for it. The answer after it counts."""
_BETWEEN = "\n\n"
_KNOWN = {
    "readout": (*READOUTS, "none"),
    "control": ("none", *CONTROLS),
    "split": ("test", "dev"),
}
_SAME = 1e-4
"""Two runs that fit the same baseline may differ by this much a share: float32 features on another thread count."""

Series = tuple[str, str, str]
"""(system, readout, control)."""


@dataclass(frozen=True)
class Prediction:
    """One answer.

    fold: the one that is held out, on dev lines too. votes: counts. probabilities: a distribution, or None when the
    answer was unusable. prefix: what stood before the label readout (no_think, own_think), None for other readouts.
    vote: the emotion after Vote, or the most likely label. problems: as `reasoning.response` names them, and FORCED.
    text: what the model wrote; under guided_mean `join_answers` of all of it. audio: the file really given, relative to
    the corpus root.
    """

    system: str
    readout: str
    prefix: str | None
    control: str
    split: str
    id: str
    speaker: str
    fold: int
    transcript: str | None
    votes: tuple[int, ...]
    probabilities: tuple[float, ...] | None
    vote: str | None
    problems: tuple[str, ...]
    text: str | None
    audio: str | None

    @property
    def series(self) -> Series:
        return self.system, self.readout, self.control

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What may stand only once in a file."""
        return *self.series, self.split, self.id

    @property
    def answers(self) -> tuple[str, ...]:
        """What the model wrote, one text an answer: SAMPLES of them under guided_mean, else one; () without text."""
        if self.text is None or self.readout != "guided_mean":
            return () if self.text is None else (self.text,)
        # Under the grammar a text begins with one of these tags, and neither comes after a blank line within it.
        return tuple(re.split(f"{_BETWEEN}(?={THINK_OPEN}|{ANSWER_OPEN})", self.text))

    def to_json(self) -> str:
        """The line, without its newline."""
        return json.dumps(asdict(self), ensure_ascii=False)


def in_order(series: Iterable[Series]) -> list[Series]:
    """Each series once: systems in the order in which they come, of one system readouts and controls as known here."""
    found = list(dict.fromkeys(series))
    systems = list(dict.fromkeys(system for system, _, _ in found))
    readouts, controls = _KNOWN["readout"], _KNOWN["control"]
    return sorted(found, key=lambda s: (systems.index(s[0]), readouts.index(s[1]), controls.index(s[2])))


def join_answers(texts: Iterable[str]) -> str:
    """Several answers to one clip as the one text of a line; `Prediction.answers` takes it apart."""
    return _BETWEEN.join(texts)


_FIELDS = tuple(field.name for field in fields(Prediction))


def read_predictions(path: Path) -> list[Prediction]:
    """Every line of `path`. Raises EvaluationError with file, line and field of the first that breaks the contract."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        cure = "run `equivox evaluate ... --out` with this folder first"
        raise EvaluationError(f"cannot be read: {error.strerror}", row=str(path), cure=cure) from None
    found: list[Prediction] = []
    seen: set[tuple[str, ...]] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = f"{path}:{number}"
        prediction = _parse(line, row)
        if prediction.key in seen:
            raise EvaluationError(f"repeats {'/'.join(prediction.key)}", row=row, cure="delete one of the two lines")
        seen.add(prediction.key)
        found.append(prediction)
    if not found:
        raise EvaluationError("holds no prediction", row=str(path), cure="run the `equivox evaluate` command again")
    return found


def pool(files: Sequence[Iterable[Prediction]]) -> list[Prediction]:
    """The lines of several runs as one set, each key once.

    Runs on the same fold hold the same baselines; they are kept once. Raises EvaluationError when two runs answer for
    the same system and clip differently, or disagree about a clip's votes.
    """
    pooled: dict[tuple[str, ...], Prediction] = {}
    votes: dict[str, tuple[int, ...]] = {}
    for lines in files:
        for line in lines:
            if votes.setdefault(line.id, line.votes) != line.votes:
                what = f"has votes {list(votes[line.id])} in one run and {list(line.votes)} in another"
                raise EvaluationError(what, row=line.id, field="votes", cure="evaluate all systems on one corpus")
            if not _alike(pooled.setdefault(line.key, line), line):
                what = f"two runs hold different answers of {line.system!r} ({line.readout}, {line.control})"
                cure = "give each system its own --name; runs whose baselines differ cannot be pooled"
                raise EvaluationError(what, row=line.id, cure=cure)
    return list(pooled.values())


def _alike(a: Prediction, b: Prediction) -> bool:
    if a.probabilities is None or b.probabilities is None:
        return a.probabilities is b.probabilities
    return max(abs(x - y) for x, y in zip(a.probabilities, b.probabilities, strict=True)) <= _SAME


def _parse(line: bytes, row: str) -> Prediction:
    cure = "delete this line and run the `equivox evaluate` command again: it fills what is missing"

    def fail(what: str, field: str | None = None) -> EvaluationError:
        return EvaluationError(what, row=row, field=field, cure=cure)

    try:
        data: Any = json.loads(line)
    except ValueError as error:
        raise fail(f"is not a line of JSON ({error})") from None
    if not isinstance(data, dict):
        raise fail("is not a JSON object")
    for name in _FIELDS:
        if name not in data:
            raise fail("is missing", name)
    for name, known in _KNOWN.items():
        if data[name] not in known:
            raise fail(f"is {data[name]!r}, expected one of {', '.join(known)}", name)
    for name in ("system", "id", "speaker"):
        if not isinstance(data[name], str) or not data[name]:
            raise fail(f"is {data[name]!r}, expected a name", name)
    votes, shares = data["votes"], data["probabilities"]
    if not isinstance(votes, list) or not all(isinstance(v, int) and v >= 0 for v in votes) or sum(votes) <= 0:
        raise fail(f"{votes!r} are not counts with a positive sum", "votes")
    if shares is not None:
        numbers = isinstance(shares, list) and all(isinstance(s, (int, float)) and s >= 0 for s in shares)
        if not numbers or len(shares) != len(votes) or not abs(sum(shares) - 1) <= 1e-6:
            raise fail(f"{shares!r} is not a distribution over {len(votes)} emotions", "probabilities")
    values: dict[str, Any] = {name: data[name] for name in _FIELDS}
    values["votes"], values["problems"] = tuple(votes), tuple(data["problems"])
    values["probabilities"] = None if shares is None else tuple(shares)
    return Prediction(**values)
