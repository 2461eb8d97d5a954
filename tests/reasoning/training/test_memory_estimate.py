"""The memory estimate against what torch keeps, what checkpoint and adapter weigh, and the peak of a real process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from reasoning.errors import ModelError
from reasoning.models import answer_head
from reasoning.models.answer_head import Completions, add_answer_head
from reasoning.models.families import QWEN2_AUDIO
from reasoning.models.generating import generate_ids
from reasoning.models.loading import add_adapter, load_model
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.training import memory_estimate
from reasoning.training.memory_estimate import (
    TRUST,
    ModelShape,
    Need,
    RunShape,
    activations,
    cures,
    generation_cache,
    logits,
    needs,
    peak,
)

REPOSITORY = Path(__file__).parents[3]
SHAPE = ModelShape(2, 96, 256, 6, 96, 32, 400, 64, 10**6)
RUN = RunShape(
    4, False, True, 1000, 4, micro=8, group=4, steps=1, prompt=50, completion=40, clip_tokens=10, memory_gib=8
)


def model_of(shape: ModelShape, attention: str) -> Qwen2AudioForConditionalGeneration:
    config = Qwen2AudioConfig(
        audio_config=dict(
            model_type="qwen2_audio_encoder", num_mel_bins=80, encoder_layers=1, encoder_attention_heads=2,
            encoder_ffn_dim=64, d_model=shape.width, max_source_positions=1500,
        ),
        text_config=dict(
            model_type="qwen2", vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
            intermediate_size=shape.intermediate, num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_values * shape.heads // shape.attention,
        ),
        audio_token_index=3,
    )  # fmt: skip
    model = Qwen2AudioForConditionalGeneration._from_config(config, attn_implementation=attention)
    return model.requires_grad_(False)


def with_lora(model, trie, rank: int):
    from peft import LoraConfig, get_peft_model

    get_peft_model(model, LoraConfig(r=rank, lora_alpha=8, target_modules=QWEN2_AUDIO.lora_targets))
    add_answer_head(model, trie)
    return model


def kept_bytes(model, run: RunShape, vocabulary: int) -> int:
    """Bytes of every tensor that autograd saves in one forward of the answer head, weights left out."""
    ids = torch.randint(4, vocabulary, (run.prompts, run.prompt))
    answers = torch.randint(4, vocabulary, (run.micro, run.completion))
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=run.autocast),
    ):
        model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            completions=Completions(answers, torch.ones_like(answers), torch.arange(run.micro) % run.prompts),
            labels=answers,
            answer_head=True,
        )
    return sum(storage.nbytes() for storage in saved.values())


@pytest.fixture(scope="module")
def trie(trained_checkpoint):
    from reasoning.emotions import CREMA_D

    return Prompter(load_model(trained_checkpoint.model), CREMA_D).labels


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("autocast", [False, True])
def test_activations_are_what_autograd_keeps(attention, autocast, trie):
    """Within a tenth, for shapes that weigh prompts, completions and attention differently."""
    model = with_lora(model_of(SHAPE, attention), trie, RUN.rank)
    for changes in ({}, {"group": 1}, {"prompt": 150}, {"completion": 120}):
        run = replace(RUN, autocast=autocast, eager=attention == "eager", **changes)
        # What the LM head keeps is counted apart: its log-softmax, in float32.
        head = run.micro * run.completion * 4 * SHAPE.vocabulary
        measured = kept_bytes(model, run, SHAPE.vocabulary) - head
        assert activations(SHAPE, run) == pytest.approx(measured, rel=0.1), changes


def test_parameters_and_adapter_are_counted_as_the_loaded_model_has_them(untrained_family):
    shape = ModelShape.read(untrained_family)
    loaded = load_model(untrained_family)
    assert shape.width == loaded.memory().hear([np.zeros(16_000, np.float32)])[0].features.shape[1]
    assert shape.parameters == sum(p.numel() for p in loaded.base.parameters())
    linears = [
        m for name, m in loaded.base.named_modules() if isinstance(m, nn.Linear) and ".language_model.layers." in name
    ]
    assert shape.linears == sum(m.weight.numel() for m in linears)
    adapted = add_adapter(loaded, r=3, alpha=4, dropout=0.0, train_projector=False)
    assert shape.lora(3) == sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)


def test_encoded_audio_is_what_the_memory_holds_up_to_its_limit(trained_checkpoint):
    loaded = load_model(trained_checkpoint.model)
    memory = loaded.memory()
    clips = sorted(trained_checkpoint.corpus.glob("*.flac"))[:5]
    heard = memory.hear(clips)
    shape = ModelShape.read(trained_checkpoint.model)
    run = replace(RUN, clip_tokens=sum(len(h.features) for h in heard))
    (need,) = [need for need in needs(shape, run) if "audio" in need.name]
    assert need.bytes == memory._bytes
    assert need.host
    (small,) = [need for need in needs(shape, replace(run, memory_gib=2**-20)) if "audio" in need.name]
    assert small.bytes == 1024


def test_the_cache_of_generate_is_counted_as_transformers_holds_it(trained_checkpoint, monkeypatch):
    from reasoning.emotions import CREMA_D

    loaded = load_model(trained_checkpoint.model)
    prompter = Prompter(loaded, CREMA_D)
    ids = prompter.prompt_ids("a tone", None, "no_think")
    caches = []
    generate: Any = loaded.base.generate
    monkeypatch.setattr(loaded.base, "generate", lambda **kw: caches.append(kw["past_key_values"]) or generate(**kw))
    generate_ids(loaded, prompt_batch(prompter, [ids], [None]), samples=6, max_new_tokens=7, min_new_tokens=7)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches[0].layers)
    run = replace(RUN, micro=6, group=6, prompt=len(ids), completion=7)
    expected = generation_cache(ModelShape.read(trained_checkpoint.model), run)
    # The last token that is drawn is never fed back.
    assert held == pytest.approx(expected * (len(ids) + 6) / (len(ids) + 7))


def test_the_head_computes_as_many_positions_at_once_as_are_counted():
    assert memory_estimate.CHUNK == answer_head.CHUNK
    assert logits(SHAPE, replace(RUN, micro=1000)) == logits(SHAPE, replace(RUN, micro=2000))


STEP = """
import json, sys
import torch
sys.path.insert(0, {repository!r})
from pathlib import Path
from typing import Any
from reasoning.emotions import CREMA_D
from reasoning.models.answer_head import Completions, add_answer_head
from reasoning.models.loading import add_adapter, load_model
from reasoning.models.prompter import Prompter

torch.set_num_threads(1)
loaded = add_adapter(load_model(Path({checkpoint!r})), r=4, alpha=8, dropout=0.0, train_projector=False)
prompter = Prompter(loaded, CREMA_D)
add_answer_head(loaded.base, prompter.labels)
text = prompter.encode("a tone")

def step(prompts, prompt, micro, completion):
    ids = torch.tensor([(text * prompt)[:prompt]] * prompts)
    answers = torch.tensor([(text * completion)[:completion]] * micro)
    out = loaded.model(
        input_ids=ids, attention_mask=torch.ones_like(ids), labels=answers, entropy=True, answer_head=True,
        completions=Completions(answers, torch.ones_like(answers), torch.arange(micro) % prompts),
    )
    (-out.logps.mean()).backward()

def kib(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

step(1, 4, 1, 4)
before = kib("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here: imports had one of their own
step(*{shapes!r})
print(json.dumps((kib("VmHWM") - before) * 1024))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_peak_of_a_real_step_is_within_the_factor_that_is_printed(trained_checkpoint):
    """In a process of its own, where a step of hundreds of megabytes stands out from what was there before."""
    run = replace(RUN, eager=False, micro=48, group=12, prompt=300, completion=300)
    code = STEP.format(
        repository=str(REPOSITORY), checkpoint=str(trained_checkpoint.model),
        shapes=(run.prompts, run.prompt, run.micro, run.completion),
    )  # fmt: skip
    # Freed blocks go back to the system, so that the peak is of what is held at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    shape = ModelShape.read(trained_checkpoint.model)
    estimate = activations(shape, run) + logits(shape, run)
    assert estimate > 100e6
    assert measured / TRUST <= estimate <= measured * TRUST, (estimate, measured)


def test_sampling_and_training_share_their_memory_and_gpu_and_host_do_not():
    found = [
        Need("weights", 5.0, "always"), Need("clips", 3.0, "always", host=True), Need("cache", 7.0, "sampling"),
        Need("activations", 6.0, "training"), Need("logits", 2.0, "training"),
    ]  # fmt: skip
    assert peak(found) == 16
    assert peak(found, host=False) == 13
    assert peak(found, host=True) == 3


def test_every_cure_fits_and_is_the_smallest_of_its_kind():
    shape = ModelShape(30, 576, 1536, 9, 576, 192, 49155, 512, 177_441_152)
    run = RunShape(4, True, False, 5_000_000, 16, 32, 8, 2, 230, 80, 60_000, 8.0)
    free = 0.4 * peak(needs(shape, run))
    found = cures(shape, run, free)
    assert found[0].startswith("per_device_train_batch_size ")
    micro = int(found[0].split()[1])
    times = 32 // micro
    assert found[0].endswith(f"times {times}")
    assert peak(needs(shape, replace(run, micro=micro, steps=2 * times))) <= free
    assert peak(needs(shape, replace(run, micro=2 * micro, steps=times))) > free
    assert "no single option" in cures(shape, run, 0.1 * shape.parameters)[0]


def test_a_cure_is_about_the_memory_that_is_short():
    """Clips weigh 4 GiB in the machine's memory, where a shorter step frees nothing, as fewer clips free no GPU."""
    shape = ModelShape(30, 576, 1536, 9, 576, 192, 49155, 512, 177_441_152)
    run = RunShape(4, True, False, 5_000_000, 16, 32, 8, 2, 230, 80, 2**21, 8.0)
    gpu, host = (peak(needs(shape, run), host=host) for host in (False, True))
    assert host == 4 * 2**30
    on_gpu = cures(shape, run, 0.6 * gpu, host=False)
    assert on_gpu[0].startswith("per_device_train_batch_size ")
    assert not [says for says in on_gpu if "memory_gib" in says]
    assert cures(shape, run, 0.6 * host, host=True) == ["memory_gib 2", "dtype bfloat16"]
    assert cures(shape, run, gpu, host=False)[0].startswith("per_device_train_batch_size 16 "), (
        "clips take no GPU memory"
    )


def test_sizes_that_a_config_leaves_out_are_the_familys_own(untrained_checkpoint, tmp_path):
    """A config without what is Qwen2's own default, as those of 7B models are: 32 layers of 32 heads, 4096 wide."""
    folder = shutil.copytree(untrained_checkpoint, tmp_path / "checkpoint")
    settings = json.loads((folder / "config.json").read_text())
    for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "layer_types"):
        del settings["text_config"][name]
    (folder / "config.json").write_text(json.dumps(settings))
    shape = ModelShape.read(folder)
    assert (shape.hidden, shape.heads, shape.layers) == (4096, 32, 32)
    assert shape.key_values == shape.attention == 4096


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ModelError, match="not a checkpoint folder"):
        ModelShape.read(tmp_path)
