"""Every clip that would not fit is found before the first step, by id, and none that would."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_builders.rows import read_corpus
from reasoning.errors import AudioError, ModelError
from reasoning.models.loading import load_model
from reasoning.models.prompter import Prompter
from reasoning.rollouts.fitting import refuse_unfit


@pytest.fixture(scope="module")
def corpus_rows(untrained_checkpoint, tone_corpus):
    corpus = read_corpus(tone_corpus)
    loaded = load_model(untrained_checkpoint)
    rows = [{"id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript} for c in corpus.clips]
    return rows, Prompter(loaded, corpus.info.emotions), loaded.memory()


def test_the_limit_is_that_of_the_longest_prompt_to_one_token(corpus_rows):
    rows, prompter, memory = corpus_rows
    heard = memory.hear([Path(row["audio"]) for row in rows])
    longest = max(len(prompter.prompt_ids(r["transcript"], h, "no_think")) for r, h in zip(rows, heard, strict=True))
    refuse_unfit(rows, prompter, "no_think", 80, longest + 80 + 1)
    with pytest.raises(ModelError, match=rf"needs \d+ prompt tokens and up to 80 .* {longest + 79} fit"):
        refuse_unfit(rows, prompter, "no_think", 80, longest + 80 - 1)


def test_a_clip_that_does_not_fit_is_named_with_how_many_do_not(corpus_rows, tmp_path):
    rows, prompter, memory = corpus_rows
    wave = 0.1 * np.random.default_rng(0).standard_normal(20 * 44_100)
    soundfile.write(tmp_path / "long.wav", wave, 44_100)
    long = [{"id": f"long{i}", "audio": str(tmp_path / "long.wav"), "transcript": "a tone"} for i in range(2)]
    with pytest.raises(ModelError, match=r"\[long0\] prompt: needs (\d+) .*; 2 of 62 clips do not fit") as refused:
        refuse_unfit([*rows, *long], prompter, "no_think", 80, 500)
    (heard,) = memory.hear([tmp_path / "long.wav"])
    counted = int(re.findall(r"needs (\d+)", str(refused.value))[0])
    assert counted - len(prompter.prompt_ids("a tone", heard, "no_think")) in (0, 1)


def test_a_clip_that_is_too_long_to_hear_is_named(corpus_rows, tmp_path):
    soundfile.write(tmp_path / "hour.wav", np.full(31 * 16_000, 0.1, np.float32), 16_000)
    row = {"id": "hour", "audio": str(tmp_path / "hour.wav"), "transcript": None}
    with pytest.raises(AudioError, match=r"\[hour\] audio: lasts 31.0 s; the model hears at most 30 s"):
        refuse_unfit([row], corpus_rows[1], "no_think", 80, 10_000)
