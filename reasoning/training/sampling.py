"""A policy's own answers to clips, several sampled for each, and the file that keeps them as they come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from reasoning.errors import ConfigError, CorpusError, changes
from reasoning.files import drop_unfinished_line, whole_lines, write_atomic
from reasoning.models.generating import generate_ids, stop_ids
from reasoning.models.loading import Loaded
from reasoning.models.memory import AudioMemory
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.rollouts.rollouts import Sampling
from reasoning.training.collate import Row


@dataclass(frozen=True)
class Sample:
    """What was written. tokens: how many, the end of turn included. truncated: stopped by max_new_tokens before it."""

    text: str
    tokens: int
    truncated: bool


def sample_answers(
    loaded: Loaded,
    prompter: Prompter,
    memory: AudioMemory,
    rows: Sequence[Row],
    *,
    level: str,
    samples: int,
    sampling: Sampling,
    seed: int,
) -> list[list[Sample]]:
    """`samples` answers to each row (`id`, `audio`, `transcript`), in their order; each prompt is computed once.

    sampling: all of it is told to transformers, which fills in what is not: 50 tokens, or what a checkpoint says.
    The same rows and seed give the same answers, whatever was sampled before; rows asked together share their draws.
    """
    heard = memory.hear([Path(row["audio"]) for row in rows], [row["id"] for row in rows])
    prompts = [prompter.prompt_ids(row["transcript"], h, level) for row, h in zip(rows, heard, strict=True)]
    key = hashlib.sha256("/".join([str(seed), *(row["id"] for row in rows)]).encode()).digest()
    with torch.random.fork_rng():
        torch.manual_seed(int.from_bytes(key[:8], "big") >> 1)
        written = generate_ids(
            loaded,
            prompt_batch(prompter, prompts, heard),
            samples=samples,
            do_sample=True,
            **asdict(sampling),
        )
    ends = stop_ids(loaded)
    texts = [prompter.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
    made = [Sample(text, len(ids), ids[-1] not in ends) for text, ids in zip(texts, written, strict=True)]
    return [made[i : i + samples] for i in range(0, len(made), samples)]


class SampleFile:
    """JSON lines open for appending: the first says how was sampled, each other one holds a clip's answers.

    answers: clip id -> its samples, those on disk and those added. A killed run goes on with the clips that it has not;
    a file of other settings is refused, so that answers of two policies never mix.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Raises ConfigError when `path` holds samples of other settings, CorpusError when it holds something else."""
        if not path.is_file():
            write_atomic(path, json.dumps(dict(settings)) + "\n")
        self.answers: dict[str, list[Sample]] = {}
        try:
            head, *lines = [json.loads(line) for line in whole_lines(path)]
            for line in lines:
                self.answers[line["id"]] = [Sample(**sample) for sample in line["samples"]]
        except (ValueError, KeyError, TypeError) as error:
            cure = f"remove {path} to sample again"
            raise CorpusError(f"is no file of sampled answers ({error})", row=str(path), cure=cure) from None
        if was := changes(head, settings):
            raise ConfigError(
                f"{path} holds answers that were sampled otherwise ({was})",
                field="out",
                cure=f"name another --out, or remove {path}",
            )
        drop_unfinished_line(path)
        self._stream: TextIO = path.open("a", encoding="utf-8")

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, answers: Mapping[str, Sequence[Sample]]) -> None:
        """Append these clips' samples and make sure that they are on disk."""
        for name, samples in answers.items():
            self.answers[name] = list(samples)
            line = {"id": name, "samples": [asdict(sample) for sample in samples]}
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()
