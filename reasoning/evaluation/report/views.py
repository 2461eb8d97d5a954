"""Typed views of scores.json and predictions.jsonl: the one place of the report that knows their keys.

A missing or odd key raises EvaluationError with its place; nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from reasoning.errors import EvaluationError
from reasoning.evaluation.comparisons import verdict_of
from reasoning.evaluation.predictions import FORCED
from reasoning.evaluation.statistics import Interval

Kind = Literal["model", "control", "baseline"]

BASELINE_TITLES = {  # in a table, in a sentence
    "uniform": ("Uniform", "a uniform guess"),
    "training_prior": ("Training prior", "the training prior"),
    "jsd_constant": ("Best constant", "the best constant"),
    "sentence_only": ("Sentence only", "the sentence-only predictor"),
    "linear_probe": ("Linear probe", "the linear probe"),
}
CONTROL_TITLES = {"shuffled": "shuffled audio", "silence": "silence", "text_only": "text only"}
METRIC_TITLES = {
    "jsd_bits": ("JSD (bits)", "Jensen-Shannon divergence from the vote shares, base 2: 0 equal, 1 disjoint"),
    "nll_bits": ("NLL (bits)", "negative log2-likelihood of a listener's vote, mean per vote; a proper score"),
    "brier": ("Brier", "squared error against the vote shares, summed over emotions, 0 to 2; a proper score"),
    "bc": ("BC", "Bhattacharyya coefficient: 1 equal, 0 disjoint"),
    "tvd": ("TVD", "total variation distance: half the summed absolute error"),
    "kl_bits": ("KL (bits)", "Kullback-Leibler divergence of the prediction from the votes, shares floored"),
    "entropy_correlation": ("Entropy r", "correlation over clips of predicted entropy with the votes' entropy"),
    "entropy_mae_bits": ("Entropy error", "mean absolute difference of the two entropies, in bits"),
    "wa": ("WA", "accuracy of the top emotion"),
    "ua": ("UA", "recall of the top emotion, mean over emotions"),
    "macro_f1": ("Macro-F1", "F1 of the top emotion, mean over emotions"),
}


@dataclass(frozen=True)
class Series:
    """One (system, readout, control) and its scores. temperatures: fitted on dev, one a fold."""

    key: str
    system: str
    readout: str
    control: str
    prefixes: tuple[str, ...]
    n_clips: int
    n_failed: int
    problems: Mapping[str, int]
    parse_rate: Interval
    metrics: Mapping[str, Interval]
    tempered: Mapping[str, Interval] | None
    temperatures: tuple[float, ...]
    by_vote_entropy: tuple[EntropyBin, ...]

    @property
    def kind(self) -> Kind:
        """A baseline has no readout; a control is a model given other audio, or none."""
        if self.readout == "none":
            return "baseline"
        return "model" if self.control == "none" else "control"

    @property
    def n_forced(self) -> int:
        """Clips whose own thinking had no end and was closed for it."""
        return self.problems.get(FORCED, 0)

    @property
    def title(self) -> str:
        """What the page calls it: system, then readout, then control."""
        if self.kind == "baseline":
            return BASELINE_TITLES.get(self.system, (self.system, ""))[0]
        parts = [self.system, self.readout]
        if self.kind == "control":
            parts.append(CONTROL_TITLES.get(self.control, self.control))
        return " · ".join(parts)

    @property
    def phrase(self) -> str:
        """The title inside a sentence."""
        return (
            BASELINE_TITLES[self.system][1]
            if self.kind == "baseline" and self.system in BASELINE_TITLES
            else self.title
        )


@dataclass(frozen=True)
class EntropyBin:
    """Scores of the clips whose votes have an entropy from low_bits to high_bits."""

    low_bits: float
    high_bits: float
    n_clips: int
    jsd_bits: Interval


@dataclass(frozen=True)
class Comparison:
    """system minus versus on identical clips. verdict: see `comparisons.verdict_of`."""

    system: str
    versus: str
    kind: str
    metrics: Mapping[str, Interval]
    tempered_jsd_bits: Interval | None
    verdict: str


@dataclass(frozen=True)
class Raters:
    """k raters against the clip's remaining votes, and each model on the same remaining votes."""

    k: tuple[int, ...]
    n_clips: int
    jsd_bits: tuple[Interval, ...]
    models: Mapping[str, tuple[Interval, ...]]
    equivalents: Mapping[str, str]


@dataclass(frozen=True)
class Scores:
    """All that the page shows of scores.json."""

    emotions: tuple[str, ...]
    protocol: Mapping[str, Any]
    corpus: str
    statement: str
    n_tied: int
    few_speakers: str | None
    n_speakers: int
    series: tuple[Series, ...]
    comparisons: tuple[Comparison, ...]
    raters: Raters | None
    sampling_floor: Interval | None

    def by_key(self, key: str) -> Series:
        """The series that comparisons and predictions call `key`."""
        for series in self.series:
            if series.key == key:
                return series
        raise EvaluationError(f"no system is called {key!r}", row="scores.json", field="systems")

    @property
    def lead(self) -> Series | None:
        """What the page leads with: the last model's label readout, or its last readout; None without a model.

        The last as listed, not the best: picking by score would be one more choice made on test data.
        """
        models = [s for s in reversed(self.series) if s.kind == "model"]
        return next((s for s in models if s.readout == "label"), models[0] if models else None)


@dataclass(frozen=True)
class Answer:
    """One series' answer on one clip. probabilities None: no usable answer, for `problems`."""

    probabilities: tuple[float, ...] | None
    problems: tuple[str, ...]
    text: str | None


@dataclass(frozen=True)
class ClipAnswers:
    """One test clip, its votes, and the answers of the models by series key (controls and baselines have no page)."""

    id: str
    speaker: str
    transcript: str | None
    votes: tuple[int, ...]
    audio: str
    answers: Mapping[str, Answer]


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise EvaluationError(f"has no key {error.args[0]!r}", row=source, cure="score the runs again") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(f"is not as expected: {error}", row=source, cure="score the runs again") from None


def read_scores(data: Mapping[str, Any]) -> Scores:
    """The view of a parsed scores.json. Raises EvaluationError on a missing key or a verdict its interval denies."""
    with _reading("scores.json"):
        if data["format"] != 1:
            raise EvaluationError(f"is {data['format']!r}, expected 1", row="scores.json", field="format")
        human = data["human"]
        floor = human["sampling_floor"]
        return Scores(
            emotions=tuple(data["emotions"]),
            protocol=dict(data["protocol"]),
            corpus=data["protocol"]["corpus"],
            statement=data["protocol"]["statement"],
            n_tied=max((s["hard"]["n_tied"] for s in data["systems"]), default=0),
            few_speakers=data["few_speakers"],
            n_speakers=max((s["n_speakers"] for s in data["systems"]), default=0),
            series=tuple(_series(s) for s in data["systems"]),
            comparisons=tuple(_comparison(c) for c in data["comparisons"]),
            raters=_raters(human["raters"]) if human["raters"] is not None else None,
            sampling_floor=_interval(floor["jsd_bits"]) if floor is not None else None,
        )


def _interval(data: Mapping[str, float | None]) -> Interval:
    nan = float("nan")
    return Interval(*(nan if data[k] is None else float(data[k]) for k in ("estimate", "low", "high")))  # type: ignore[arg-type]


def _intervals(data: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: _interval(value) for name, value in data.items()}


def _series(data: Mapping[str, Any]) -> Series:
    tempered = data["tempered"]
    return Series(
        key=data["key"],
        system=data["system"],
        readout=data["readout"],
        control=data["control"],
        prefixes=tuple(data["prefixes"]),
        n_clips=data["n_clips"],
        n_failed=data["n_failed"],
        problems=dict(data["problems"]),
        parse_rate=_interval(data["parse_rate"]),
        metrics=_intervals(data["metrics"]),
        tempered=_intervals(tempered["metrics"]) if tempered is not None else None,
        temperatures=tuple(float(t) for t in tempered["temperature"].values()) if tempered is not None else (),
        by_vote_entropy=tuple(
            EntropyBin(b["from_bits"], b["to_bits"], b["n_clips"], _interval(b["jsd_bits"]))
            for b in data["by_vote_entropy"]
        ),
    )


def _comparison(data: Mapping[str, Any]) -> Comparison:
    found = Comparison(
        data["system"],
        data["versus"],
        data["kind"],
        _intervals(data["metrics"]),
        _interval(data["tempered"]["jsd_bits"]) if data["tempered"] is not None else None,
        data["verdict"],
    )
    if (allowed := verdict_of(found.metrics)) != found.verdict:
        what = f"calls {found.system} against {found.versus} {found.verdict}, but its intervals say {allowed}"
        raise EvaluationError(what, row="scores.json", field="comparisons", cure="score the runs again")
    return found


def _raters(data: Mapping[str, Any]) -> Raters:
    models = data["models"]
    return Raters(
        k=tuple(data["k"]),
        n_clips=data["n_clips"],
        jsd_bits=tuple(_interval(i) for i in data["jsd_bits"]),
        models={key: tuple(_interval(i) for i in m["jsd_bits"]) for key, m in models.items()},
        equivalents={key: m["text"] for key, m in models.items()},
    )


def read_clips(predictions: Sequence[Mapping[str, Any]], scores: Scores) -> list[ClipAnswers]:
    """The test clips with the models' answers, in order of first appearance.

    Raises EvaluationError when two answers of a model share a clip, or a model's clip has no audio path.
    """
    models = {(s.system, s.readout): s.key for s in scores.series if s.kind == "model"}
    rows: dict[str, Mapping[str, Any]] = {}
    answers: dict[str, dict[str, Answer]] = {}
    with _reading("predictions.jsonl"):
        for line in predictions:
            key = models.get((line["system"], line["readout"]))
            if line["split"] != "test" or line["control"] != "none" or key is None:
                continue
            found = answers.setdefault(line["id"], {})
            if key in found:
                raise EvaluationError(f"{key} answers twice", row=line["id"], cure="name each run once")
            rows.setdefault(line["id"], line)
            shares = line["probabilities"]
            found[key] = Answer(tuple(shares) if shares is not None else None, tuple(line["problems"]), line["text"])
        return [_clip(row, answers[id_], len(scores.emotions)) for id_, row in rows.items()]


def _clip(row: Mapping[str, Any], answers: Mapping[str, Answer], n_emotions: int) -> ClipAnswers:
    if row["audio"] is None:
        raise EvaluationError("was heard by the model but names no audio", row=row["id"], field="audio")
    lengths = {len(row["votes"]), *(len(a.probabilities) for a in answers.values() if a.probabilities is not None)}
    if lengths != {n_emotions}:
        raise EvaluationError(f"has {sorted(lengths)} shares for {n_emotions} emotions", row=row["id"], field="votes")
    return ClipAnswers(row["id"], row["speaker"], row["transcript"], tuple(row["votes"]), row["audio"], answers)
