"""Own shares: what is taught is the label readout of each clip's sound."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from launch.arguments import DataArguments
from launch.own_shares import with_own_shares
from launch.training import training_rows
from reasoning.models.loading import load_model
from reasoning.models.prompter import Prompter, prompt_batch


def test_own_shares_are_the_label_readout_of_each_clips_sound(trained_checkpoint, capsys):
    corpus, rows = training_rows(DataArguments(data=str(trained_checkpoint.corpus), limit=12))
    loaded = load_model(trained_checkpoint.model)
    args = SimpleNamespace(device="cpu", process_index=0, world_size=1, per_device_eval_batch_size=5)
    found = with_own_shares(rows, loaded, loaded.memory(), corpus.info.emotions, "no_think", args)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert "the label readout of 12 training clips" in capsys.readouterr().out
    prompter = Prompter(loaded, corpus.info.emotions)
    swapped = {**found[0], "audio": next(row["audio"] for row in rows if row["votes"] != rows[0]["votes"])}
    for row in found[:4]:
        assert row["shares"] == pytest.approx(readout_alone(loaded, prompter, row), abs=1e-4)
    change = np.abs(np.subtract(readout_alone(loaded, prompter, swapped), found[0]["shares"]))
    assert change.max() > 0.05


def readout_alone(loaded, prompter: Prompter, row) -> list[float]:
    """Softmax over the labels' first tokens after the bare answer prefix, from the full logits of one clip alone."""
    heard = loaded.memory().hear([Path(row["audio"])])[0]
    ids = [*prompter.prompt_ids(row["transcript"], heard, "no_think"), *prompter.answer_prefix_ids]
    with torch.no_grad():
        logits = loaded.base(**prompt_batch(prompter, [ids], [heard])).logits[0, -1]
    return torch.softmax(logits[list(prompter.labels.steps[0].tokens)], -1).tolist()
