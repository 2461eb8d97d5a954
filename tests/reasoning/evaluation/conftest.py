"""A small corpus with sound files and an engine without a model: scoring does not care who answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from reasoning.clips import Clip
from reasoning.distributions import temper
from reasoning.emotions import CREMA_D
from reasoning.evaluation.baselines import fit_baselines
from reasoning.evaluation.human import fit_dirichlet_multinomial
from reasoning.evaluation.predict import Asked, PredictionFile, plan_jobs, predict, predict_baselines
from reasoning.evaluation.record import PREDICTIONS, RunRecord, open_run, prompt_fingerprint
from reasoning.inference.engine import Generation, LabelScores, Request
from reasoning.response import write_response

FOLDS, SPEAKERS_A_FOLD, CLIPS_A_SPEAKER = 3, 6, 8


def make_clips(seed: int = 0) -> list[Clip]:
    """144 clips of 18 speakers in 3 folds; the sentence says nothing about the votes."""
    rng = np.random.default_rng(seed)
    clips = []
    for speaker in range(FOLDS * SPEAKERS_A_FOLD):
        for i in range(CLIPS_A_SPEAKER):
            votes = rng.multinomial(9, rng.dirichlet(np.full(6, 0.6)))
            name = f"s{speaker:02d}-{i}"
            clip = Clip(
                name, f"{name}.wav", 0.5, f"sentence {i % 3}", "en", f"s{speaker:02d}", "female", None, "train",
                speaker // SPEAKERS_A_FOLD, tuple(votes.tolist()), 9, None, "human",
            )  # fmt: skip
            clips.append(clip)
    return clips


def split(clips: Sequence[Clip], fold: int) -> dict[str, list[Clip]]:
    """test: the fold; dev: half of the next one's speakers; train: the rest."""
    dev = {c.speaker for c in clips if c.fold == (fold + 1) % FOLDS}
    dev = set(sorted(dev)[: len(dev) // 2])
    return {
        "test": [c for c in clips if c.fold == fold],
        "dev": [c for c in clips if c.speaker in dev],
        "train": [c for c in clips if c.fold != fold and c.speaker not in dev],
    }


class KnowingEngine:
    """Knows the votes behind each file and answers with them, blurred; guesses flat without audio or in silence.

    noise: weight of a random distribution. sharpness: answers are raised to this power. garbled: ids it cannot answer
    in words. die_after: stop with an error after so many answers. calls: requests answered so far.
    """

    name = "knowing"

    def __init__(
        self, votes_of: Mapping[str, Sequence[int]], *, noise: float = 0.3, sharpness: float = 1.0, seed: int = 0
    ):
        self.votes_of, self.noise, self.sharpness, self.seed = votes_of, noise, sharpness, seed
        self.garbled: set[str] = set()
        self.die_after: int | None = None
        self.calls = 0

    def _shares(self, request: Request) -> tuple[float, ...]:
        self.calls += 1
        if self.die_after is not None and self.calls > self.die_after:
            raise KeyboardInterrupt
        votes = np.ones(6)
        if isinstance(request.audio, Path):
            votes = np.array(self.votes_of[request.audio.name]) + 0.2
        rng = np.random.default_rng([self.seed, *request.id.encode()])
        mixed = (1 - self.noise) * votes / votes.sum() + self.noise * rng.dirichlet(np.ones(6))
        return tuple(temper([mixed], 1 / self.sharpness)[0].tolist())

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        guided: bool = False,
        samples: int = 1,
    ) -> Iterator[Generation]:
        for request, sample in ((request, sample) for request in requests for sample in range(samples)):
            shares = self._shares(request)
            if temperature > 0:
                rng = np.random.default_rng([seed % 2**32, sample, *request.id.encode()])
                shares = tuple(rng.dirichlet(20 * np.array(shares) + 1e-3).tolist())
            text = write_response(shares, CREMA_D.names[int(np.argmax(shares))], CREMA_D)
            cut = request.id in self.garbled
            yield Generation(request.id, text[:30] if cut else text, 30, truncated=cut)

    def score_labels(self, requests: Sequence[Request]) -> Iterator[LabelScores]:
        for request in requests:
            yield LabelScores(request.id, self._shares(request), "no_think")


class Bench:
    """Runs engines over the small corpus as `launch.evaluate` does."""

    def __init__(self, root: Path) -> None:
        self.root, self.clips = root, make_clips()
        for i, clip in enumerate(self.clips):
            tone = 0.3 * np.sin(2 * np.pi * (120 + i) * np.arange(8000) / 16000)
            sf.write(root / clip.audio, tone.astype(np.float32), 16000)
        self.votes_of = {clip.audio: clip.votes for clip in self.clips}

    def engine(self, **options) -> KnowingEngine:
        return KnowingEngine(self.votes_of, **options)

    def record(self, asked: Asked, out_of: dict[str, list[Clip]], **changes) -> RunRecord:
        _, plan = plan_jobs(asked, out_of["dev"], out_of["test"], out_of["test"])
        alpha = fit_dirichlet_multinomial([c.votes for c in out_of["train"]])
        record = RunRecord(
            system=asked.system, corpus="bench", statement="made-up votes", rater_task="none",
            corpus_fingerprint="c0", audio_root=str(self.root), emotions=CREMA_D.to_dict(), fold=asked.fold,
            folds=FOLDS,
            n_train=len(out_of["train"]), n_dev=len(out_of["dev"]), n_test=len(out_of["test"]), limit=None,
            model="m", model_fingerprint="m0", adapter=None, adapter_fingerprint=None, engine="knowing",
            level=asked.level, prompt_fingerprint=prompt_fingerprint(asked.level, CREMA_D),
            max_new_tokens=asked.max_new_tokens, seed=asked.seed, shuffled=plan.counts() if plan else None,
            fitted=fit_baselines(out_of["train"], out_of["dev"]).to_dict() | {"dirichlet_alpha": alpha.tolist()},
        )  # fmt: skip
        return replace(record, **changes)

    def run(self, out: Path, engine: KnowingEngine, asked: Asked) -> Path:
        """Predict everything that `asked` names into `out`; returns `out`."""
        splits = split(self.clips, asked.fold)
        jobs, _ = plan_jobs(asked, splits["dev"], splits["test"], splits["test"])
        open_run(out, self.record(asked, splits))
        with PredictionFile(out / PREDICTIONS) as sink:
            baselines = fit_baselines(splits["train"], splits["dev"])
            predict_baselines(baselines, splits, asked.fold, CREMA_D, self.features, sink)
            predict(engine, jobs, asked, CREMA_D, self.root, sink)
        return out

    def features(self, clips: Sequence[Clip]) -> np.ndarray:
        """What an audio tower might tell: the votes, blurred, with useless company."""
        rng = np.random.default_rng(len(clips))
        votes = np.array([clip.votes for clip in clips])
        return np.column_stack([votes + rng.normal(0, 2, votes.shape), rng.normal(size=(len(clips), 4))])


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="session")
def finished_run(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole run of a good system on fold 0, with two answers that cannot be read."""
    engine = bench.engine()
    engine.garbled = {"s00-0", "s01-3"}
    return bench.run(tmp_path_factory.mktemp("runs") / "good", engine, Asked("good"))
