"""evaluation.json: what one evaluation run was asked, of what, and what it fitted on train; written first.

A folder is resumed only by the same request: everything that decides an answer is compared, and a difference is named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from reasoning.emotions import EmotionSet
from reasoning.errors import EvaluationError, changes
from reasoning.files import write_atomic
from reasoning.prompts import conversation

RECORD, PREDICTIONS, SCORES, REPORT = "evaluation.json", "predictions.jsonl", "scores.json", "report.html"

IDENTITY = (
    "system",
    "corpus_fingerprint",
    "fold",
    "folds",
    "model_fingerprint",
    "adapter_fingerprint",
    "engine",
    "level",
    "prompt_fingerprint",
    "max_new_tokens",
    "seed",
)
"""The fields that decide an answer: a run is resumed only when they are equal."""


@dataclass(frozen=True)
class RunRecord:
    """One run of one system on one fold.

    n_test, n_train, n_dev: clips of the fold's splits. limit: test clips asked for, None = all. shuffled: the counts of
    `controls.ShuffledPlan`. fitted: what baselines learned on train: training_prior, jsd_constant, sentence_shrinkage,
    dirichlet_alpha. emotions: EmotionSet.to_dict(). audio_root: folder that predictions' audio paths start from.
    """

    system: str
    corpus: str
    statement: str
    rater_task: str
    corpus_fingerprint: str
    audio_root: str
    emotions: Mapping[str, Any]
    fold: int
    folds: int
    n_train: int
    n_dev: int
    n_test: int
    limit: int | None
    model: str
    model_fingerprint: str
    adapter: str | None
    adapter_fingerprint: str | None
    engine: str
    level: str
    prompt_fingerprint: str
    max_new_tokens: int
    seed: int
    shuffled: Mapping[str, int] | None
    fitted: Mapping[str, Any]

    def identity(self) -> dict[str, Any]:
        """The fields of IDENTITY and their values."""
        return {name: getattr(self, name) for name in IDENTITY}


def prompt_fingerprint(level: str, emotions: EmotionSet) -> str:
    """A hash of how the model is asked: changes whenever a prompt or the emotions do."""
    asked = [conversation("words", has_audio, level, emotions) for has_audio in (True, False)]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def adapter_fingerprint(adapter: Path) -> str:
    """sha256 of an adapter's weights and configuration, 16 digits."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with (adapter / name).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def open_run(folder: Path, record: RunRecord) -> None:
    """Write the record into `folder`, made if need be. Raises EvaluationError when it holds another run.

    Answers that are there stay: of the limits of runs that shared the folder the widest is recorded.
    """
    path = folder / RECORD
    if path.is_file():
        before = read_record(folder)
        if was := changes(before.identity(), record.identity()):
            cure = f"name another --out, or remove {folder}"
            raise EvaluationError(f"holds predictions of another run ({was})", row=str(folder), cure=cure)
        limits = [limit for limit in (before.limit, record.limit) if limit is not None]
        widest = max(limits) if len(limits) == 2 else None
        record = replace(record, limit=widest, shuffled=record.shuffled or before.shuffled)
    elif (folder / PREDICTIONS).exists():
        cure = f"name another --out, or remove {folder}"
        raise EvaluationError(f"holds predictions but no {RECORD} that says of what", row=str(folder), cure=cure)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n")


def read_record(folder: Path) -> RunRecord:
    """The record in `folder`. Raises EvaluationError when there is none, or it is not one."""
    path, cure = folder / RECORD, "give folders that `equivox evaluate --out` wrote"
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot be read: {error}", row=str(path), cure=cure) from None
    return record_from(data, str(path), cure)


def record_from(data: Any, row: str, cure: str) -> RunRecord:
    """The record that `data` holds, as `asdict` makes it. Raises EvaluationError, naming `row`, when it holds none."""
    names = {field.name for field in fields(RunRecord)}
    if not isinstance(data, dict) or set(data) != names:
        odd = sorted(names ^ set(data)) if isinstance(data, dict) else []
        raise EvaluationError(f"is not the record of an evaluation ({', '.join(odd)})", row=row, cure=cure)
    return RunRecord(**data)
