"""Ask an engine about clips and keep every answer as it comes: a killed run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from reasoning.clips import Clip
from reasoning.emotions import EmotionSet
from reasoning.errors import EvaluationError
from reasoning.evaluation.baselines import Baselines
from reasoning.evaluation.controls import CONTROLS, ShuffledPlan, plan_shuffled, silence
from reasoning.evaluation.predictions import FORCED, READOUTS, SAMPLES, Prediction, join_answers, read_predictions
from reasoning.evaluation.probe import linear_probe
from reasoning.files import drop_unfinished_line
from reasoning.inference.engine import Engine, Generation, LabelScores, Request
from reasoning.response import Reading, read_response

Array = NDArray[np.float64]
Features = Callable[[Sequence[Clip]], Array]
"""Clips -> pooled audio features (N, D), for the linear probe."""

_CHOICES = {"readouts": READOUTS, "control_readouts": READOUTS, "dev_readouts": READOUTS, "controls": CONTROLS}
AT_ONCE = 256
"""Clips whose thinking is written before their labels are scored: what a killed run may have to write again."""

_BASELINES = ("uniform", "training_prior", "jsd_constant", "sentence_only", "linear_probe")


@dataclass(frozen=True)
class Asked:
    """What is asked of which system, on which fold's held-out speakers.

    controls use only control_readouts, and dev clips only dev_readouts, since each verbalized answer is slow; both are
    among the readouts. A readout without dev answers gets no temperature.
    """

    system: str
    fold: int = 0
    readouts: tuple[str, ...] = ("label", "verbalized")
    controls: tuple[str, ...] = CONTROLS
    control_readouts: tuple[str, ...] = ("label",)
    dev_readouts: tuple[str, ...] = ("label",)
    level: str = "no_think"
    max_new_tokens: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            unknown = [value for value in getattr(self, name) if value not in known]
            if unknown:
                raise EvaluationError(f"{unknown[0]!r} is none of {', '.join(known)}", field=name)
        if not self.system or "/" in self.system or self.system in _BASELINES:
            what = f"{self.system!r} cannot name a system: it is empty, holds a slash, or names a baseline"
            raise EvaluationError(what, field="name")
        if not self.readouts:
            raise EvaluationError("names no readout", field="readouts", cure=f"choose from {', '.join(READOUTS)}")
        for name, asked in (("control_readouts", self.controls), ("dev_readouts", True)):
            left_out = [readout for readout in getattr(self, name) if asked and readout not in self.readouts]
            if left_out:
                what = f"names {left_out[0]}, which is not among the readouts {', '.join(self.readouts)}"
                raise EvaluationError(what, field=name, cure="name it in both, or in neither")


@dataclass(frozen=True)
class Job:
    """Clips to ask about in one way. donors: whose audio is played, for the shuffled control."""

    readout: str
    control: str
    split: str
    clips: tuple[Clip, ...]
    donors: Mapping[str, Clip]


def some_clips(clips: Sequence[Clip], limit: int | None, seed: int = 0) -> tuple[Clip, ...]:
    """The first `limit` clips of a seeded order, in corpus order: smaller limits are subsets of larger ones."""
    if limit is None or limit >= len(clips):
        return tuple(clips)
    if limit < 1:
        raise EvaluationError(f"is {limit}, expected at least 1", field="limit")
    chosen = np.random.default_rng(seed).permutation(len(clips))[:limit]
    return tuple(clips[i] for i in sorted(chosen))


def plan_jobs(
    asked: Asked, dev: Sequence[Clip], test: Sequence[Clip], donors_from: Sequence[Clip]
) -> tuple[list[Job], ShuffledPlan | None]:
    """Every job of a run, the dev clips of the temperature first, and the shuffled control's plan if it is asked for.

    donors_from: the whole test split, so that a limited run plays the same donors as a full one.
    """
    plan = plan_shuffled(donors_from, asked.seed) if "shuffled" in asked.controls else None
    # Written answers first where the label readout stands on the thinking in them.
    ordered = sorted(asked.readouts, key=lambda readout: asked.level == "think" and readout != "verbalized")
    jobs = [Job(readout, "none", "dev", tuple(dev), {}) for readout in ordered if readout in asked.dev_readouts]
    jobs += [Job(readout, "none", "test", tuple(test), {}) for readout in ordered]
    for control in asked.controls:
        donors = plan.donors if plan and control == "shuffled" else {}
        readouts = [readout for readout in ordered if readout in asked.control_readouts]
        jobs += [Job(readout, control, "test", tuple(test), donors) for readout in readouts]
    return [job for job in jobs if job.clips], plan


class PredictionFile:
    """predictions.jsonl open for appending, every line flushed. done: key of each line it holds -> what was written."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            drop_unfinished_line(path)
        known = read_predictions(path) if path.exists() and path.stat().st_size else []
        self.done = {line.key: line.text for line in known}
        self._stream: TextIO = path.open("a", encoding="utf-8")

    def __enter__(self) -> PredictionFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, line: Prediction) -> None:
        """Append a line that is not there yet."""
        if line.key not in self.done:
            self._stream.write(line.to_json() + "\n")
            self._stream.flush()
            self.done[line.key] = line.text


def predict(
    engine: Engine, jobs: Sequence[Job], asked: Asked, emotions: EmotionSet, root: Path, sink: PredictionFile
) -> None:
    """Run every job, one progress bar each, and append the answers to `sink`; what it holds is not asked again."""
    for job in jobs:
        left = [c for c in job.clips if (asked.system, job.readout, job.control, job.split, c.id) not in sink.done]
        name = (
            f"{asked.system} {job.readout}" + (f" {job.control}" if job.control != "none" else "") + f" ({job.split})"
        )
        bar = tqdm(total=len(job.clips), initial=len(job.clips) - len(left), desc=name, unit="clip")
        by_id = {clip.id: clip for clip in left}
        left.sort(key=lambda clip: clip.duration_s)  # clips of one length share a batch with little padding
        requests = [request_for(clip, job, asked.level, root) for clip in left]
        if job.readout == "label":
            written = {c.id: sink.done.get((asked.system, "verbalized", job.control, job.split, c.id)) for c in left}
            answers = score_labels(engine, [replace(r, written=written[r.id]) for r in requests], asked.max_new_tokens)
        else:
            answers = _written(engine, job, requests, asked)
        for answer in answers:
            sink.add(_line(answer, by_id[answer.id], job, asked, emotions))
            bar.update()
        bar.close()


def request_for(clip: Clip, job: Job, level: str, root: Path) -> Request:
    """What the engine is handed for one clip of a job. The words stay the clip's own under every control."""
    if job.control == "text_only":
        return Request(clip.id, None, clip.transcript, level)
    if job.control == "silence":
        return Request(clip.id, silence(clip), clip.transcript, level)
    return Request(clip.id, root / job.donors.get(clip.id, clip).audio, clip.transcript, level)


@dataclass(frozen=True)
class _Samples:
    """Several answers to one request."""

    id: str
    generations: tuple[Generation, ...]


def score_labels(engine: Engine, requests: Sequence[Request], max_new_tokens: int) -> Iterator[LabelScores]:
    """The label readout of every request. At level think the model is first made to write what is not there yet."""
    for start in range(0, len(requests), AT_ONCE):
        part = requests[start : start + AT_ONCE]
        silent = [r for r in part if r.level == "think" and r.written is None]
        written = {g.id: g.text for g in engine.generate(silent, max_new_tokens=max_new_tokens)} if silent else {}
        yield from engine.score_labels([replace(r, written=written.get(r.id, r.written)) for r in part])


def _written(
    engine: Engine, job: Job, requests: Sequence[Request], asked: Asked
) -> Iterator[Generation] | Iterator[_Samples]:
    tokens, seed = asked.max_new_tokens, asked.seed
    if job.readout == "guided_mean":
        sampled = engine.generate(
            requests, max_new_tokens=tokens, temperature=1.0, seed=seed, guided=True, samples=SAMPLES
        )
        return _together(sampled, SAMPLES)
    return engine.generate(requests, max_new_tokens=tokens, seed=seed, guided=job.readout == "guided")


def _together(generations: Iterator[Generation], samples: int) -> Iterator[_Samples]:
    """Each request's answers in one."""
    while first := next(generations, None):
        rest = tuple(islice(generations, samples - 1))
        yield _Samples(first.id, (first, *rest))


def _line(
    answer: LabelScores | Generation | _Samples, clip: Clip, job: Job, asked: Asked, emotions: EmotionSet
) -> Prediction:
    heard = job.donors.get(clip.id, clip).audio if job.control in ("none", "shuffled") else None
    where = (clip, asked.fold, job.split, asked.system, job.readout, job.control)
    if isinstance(answer, LabelScores):
        probabilities = tuple(share / sum(answer.probabilities) for share in answer.probabilities)
        vote = emotions.names[int(np.argmax(probabilities))]
        problems = (FORCED,) if answer.forced else ()
        return _about(*where, probabilities, vote, prefix=answer.prefix, problems=problems, audio=heard)
    if isinstance(answer, Generation):
        reading, problems = read_generation(answer, emotions)
        return _about(*where, reading.probabilities, reading.vote, problems=problems, text=answer.text, audio=heard)
    read = [read_generation(generation, emotions) for generation in answer.generations]
    shares = [reading.probabilities for reading, _ in read if reading.probabilities is not None]
    # One answer that cannot be read spoils the mean: dropping it would let failing pay.
    mean = tuple(np.mean(shares, axis=0).tolist()) if len(shares) == len(read) else None
    vote = None if mean is None else emotions.names[int(np.argmax(mean))]
    problems = tuple(dict.fromkeys(problem for _, found in read for problem in found))
    text = join_answers(generation.text for generation in answer.generations)
    return _about(*where, mean, vote, problems=problems, text=text, audio=heard)


def read_generation(answer: Generation, emotions: EmotionSet) -> tuple[Reading, tuple[str, ...]]:
    """(what it says, why it cannot be used: nothing where it was cut off after all that is read)."""
    reading = read_response(answer.text, emotions)
    problems = reading.problems
    if answer.truncated and problems and "truncated" not in problems:
        problems = (*problems, "truncated")
    return reading, problems


def predict_baselines(
    baselines: Baselines,
    splits: Mapping[str, Sequence[Clip]],
    fold: int,
    emotions: EmotionSet,
    features: Features | None,
    sink: PredictionFile,
) -> None:
    """Append every baseline's lines for the dev and test clips of `splits`; the linear probe only with `features`."""
    asked = {split: splits[split] for split in ("dev", "test")}
    for split, clips in asked.items():
        for name, probs_NK in baselines.predict([clip.transcript for clip in clips]).items():
            _add_baseline(name, split, clips, probs_NK, fold, emotions, sink)
    wanted = [("linear_probe", "none", "none", split, clip.id) for split, clips in asked.items() for clip in clips]
    if features is None or all(key in sink.done for key in wanted):
        return
    x_train, x_dev, x_test = (features(splits[split]) for split in ("train", "dev", "test"))
    votes, dev_votes = (np.array([clip.votes for clip in splits[split]]) for split in ("train", "dev"))
    probs_NK = linear_probe(x_train, votes, x_dev, dev_votes, np.concatenate([x_dev, x_test]))
    _add_baseline("linear_probe", "dev", asked["dev"], probs_NK[: len(x_dev)], fold, emotions, sink)
    _add_baseline("linear_probe", "test", asked["test"], probs_NK[len(x_dev) :], fold, emotions, sink)


def _add_baseline(
    name: str, split: str, clips: Sequence[Clip], probs_NK: Array, fold: int, emotions: EmotionSet, sink: PredictionFile
) -> None:
    for clip, row in zip(clips, probs_NK, strict=True):
        vote = emotions.names[int(row.argmax())]
        sink.add(_about(clip, fold, split, name, "none", "none", tuple(row.tolist()), vote))


def _about(
    clip: Clip, fold: int, split: str, system: str, readout: str, control: str,
    probabilities: tuple[float, ...] | None, vote: str | None, **rest: Any,
) -> Prediction:  # fmt: skip
    """A line about `clip`. fold: the one that is held out, on dev lines too, since a temperature belongs to it."""
    answered = {"prefix": None, "problems": (), "text": None, "audio": None} | rest
    return Prediction(
        system=system, readout=readout, control=control, split=split, id=clip.id, speaker=clip.speaker, fold=fold,
        transcript=clip.transcript, votes=clip.votes, probabilities=probabilities, vote=vote, **answered,
    )  # fmt: skip
