"""A merged folder is an ordinary checkpoint that answers as the model with its adapter does."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from reasoning.emotions import CREMA_D
from reasoning.errors import ModelError
from reasoning.models.loading import add_adapter, load_model, record_base
from reasoning.models.merging import MERGED_RECORD, merge_adapter
from reasoning.models.prompter import Prompter, prompt_batch


def save_adapter(model, folder, seed):
    """A LoRA adapter with a trained projector, all of it random and none of it zero."""
    loaded = add_adapter(load_model(model), r=4, alpha=8, dropout=0.0, train_projector=True)
    noise = torch.Generator().manual_seed(seed)
    for weight in loaded.model.parameters():
        if weight.requires_grad:
            weight.data = torch.randn(weight.shape, generator=noise) * 0.2
    loaded.model.save_pretrained(folder)
    record_base(folder, loaded)
    return folder


@pytest.fixture(scope="module")
def adapter(untrained_family, tmp_path_factory):
    return save_adapter(untrained_family, tmp_path_factory.mktemp("adapter"), 0)


@pytest.fixture(scope="module")
def merged(untrained_family, adapter, tmp_path_factory):
    return merge_adapter(untrained_family, adapter, tmp_path_factory.mktemp("out") / "merged")


@torch.no_grad()
def logits(loaded):
    """Of every position of two prompts, one with a second of noise and one with a second of another."""
    prompter = Prompter(loaded, CREMA_D)
    waves = [np.random.default_rng(i).normal(0, 0.1, 16_000).astype(np.float32) for i in range(2)]
    heard = loaded.memory().hear(waves)
    return loaded.model(
        **prompt_batch(prompter, [prompter.prompt_ids("a tone", h, "think") for h in heard], heard)
    ).logits


def tensors(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}


def test_merged_logits_equal_the_adapters_and_are_far_from_the_bases(untrained_family, adapter, merged):
    with_adapter, alone = logits(load_model(untrained_family, adapter)), logits(load_model(merged))
    torch.testing.assert_close(alone, with_adapter, atol=2e-5, rtol=1e-5)
    assert (with_adapter - logits(load_model(untrained_family))).abs().mean() > 0.05


def test_the_folder_holds_the_bases_names_shapes_and_number_types(untrained_family, merged, tmp_path):
    assert tensors(merged) == tensors(untrained_family)
    half = tmp_path / "half"
    load_model(untrained_family, dtype=torch.bfloat16).base.save_pretrained(half)
    load_model(untrained_family).processor.save_pretrained(half)
    again = merge_adapter(half, save_adapter(half, tmp_path / "adapter", 1), tmp_path / "merged")
    assert {kind for _, kind in tensors(again).values()} == {"BF16"}


def test_a_finished_merge_is_kept_and_another_adapters_replaces_it(untrained_family, adapter, tmp_path):
    folder, out = shutil.copytree(adapter, tmp_path / "adapter"), tmp_path / "merged"
    merge_adapter(untrained_family, folder, out)
    first = (out / "model.safetensors").stat()
    assert merge_adapter(untrained_family, folder, out) == out
    assert (out / "model.safetensors").stat() == first
    save_adapter(untrained_family, folder, 2)
    merge_adapter(untrained_family, folder, out)
    torch.testing.assert_close(
        logits(load_model(out)), logits(load_model(untrained_family, folder)), atol=2e-5, rtol=1e-5
    )
    assert json.loads((out / MERGED_RECORD).read_text())["base"] == str(untrained_family)


def test_a_folder_of_something_else_and_an_adapter_of_another_base_are_refused(untrained_family, adapter, tmp_path):
    with pytest.raises(ModelError, match="no folder of merged weights"):
        merge_adapter(untrained_family, adapter, tmp_path)
    other = shutil.copytree(untrained_family, tmp_path / "other")
    model = load_model(other).base
    model.get_output_embeddings().weight.data += 1
    model.save_pretrained(other)
    with pytest.raises(ModelError, match="whose weights differ"):
        merge_adapter(other, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_disk_without_room_is_one_error_and_leaves_no_folder(untrained_family, adapter, tmp_path):
    code = (
        "import sys; from pathlib import Path; from reasoning.models.merging import merge_adapter\n"
        "from reasoning.errors import StorageError\n"
        "try: merge_adapter(*map(Path, sys.argv[1:]))\n"
        "except StorageError as error: print(error)"
    )
    out = tmp_path / "merged"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, (untrained_family, adapter, out))],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert "cannot be written" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
