"""What a GRPO step keeps in memory: arithmetic on a checkpoint's config and the run's shapes, nothing loaded.

One process, adapter training with AdamW, no sharding and no activation checkpointing (GRPO here refuses it). The counts
of saved activations follow transformers' Qwen2 layers, peft's LoRA and this project's answer head line by line; the
test holds them against what torch really keeps and against the peak of a real process.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reasoning.errors import ModelError

CHUNK = 4096
"""Positions multiplied by the LM head at once; the answer head's own, stated again because it imports torch."""

TRUST = 1.5
"""The estimate is within this factor of the measured peak (tests/reasoning/training/test_memory_estimate.py)."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a checkpoint. attention: heads x head size. key_values: key-value heads x head size. width: of the
    tower's features. parameters: all of them.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    attention: int
    key_values: int
    vocabulary: int
    width: int
    parameters: int

    @property
    def linears(self) -> int:
        """Weights of the linear layers of the language model, which LoRA adapts."""
        per_layer = 2 * self.hidden * (self.attention + self.key_values) + 3 * self.hidden * self.intermediate
        return self.layers * per_layer

    def lora(self, r: int) -> int:
        """Parameters of a LoRA of rank r on all of them."""
        inputs = 3 * self.hidden + self.attention + 2 * self.hidden + self.intermediate
        outputs = self.attention + 2 * self.key_values + self.hidden + 2 * self.intermediate + self.hidden
        return self.layers * r * (inputs + outputs)

    @classmethod
    def read(cls, folder: Path) -> ModelShape:
        """From config.json and the headers of the safetensors files. Raises ModelError where there are none."""
        from transformers import AutoConfig

        files = sorted(folder.glob("*.safetensors"))
        if not (folder / "config.json").is_file() or not files:
            what = f"{folder} is not a checkpoint folder (config.json and *.safetensors)"
            raise ModelError(what, field="model_name_or_path", cure="run `equivox seed --out models/seed`")
        # By transformers: a file may leave out what is its family's default, and families name sizes differently.
        config = AutoConfig.from_pretrained(folder)
        text = config.get_text_config()
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=heads,
            attention=heads * size,
            key_values=text.num_key_value_heads * size,
            vocabulary=text.vocab_size,
            width=config.audio_config.hidden_size,
            parameters=sum(map(stored_parameters, files)),
        )


def stored_parameters(file: Path, module: str | None = None) -> int:
    """Numbers in a safetensors file, from its header; only those below a module of this name where one is given."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    wanted = [tensor for name, tensor in header.items() if module is None or module in name.split(".")]
    return sum(math.prod(tensor["shape"]) for tensor in wanted)


@dataclass(frozen=True)
class RunShape:
    """What a run asks of one process.

    weight_bytes: of a number of the base, 4 or 2. autocast: whether float32 weights are computed with in bfloat16.
    eager: attention that keeps its weights. adapter: trained parameters; a frozen copy of the projector that an adapter
    brings is some megabytes and not counted. rank: of the LoRA. micro: completions in one
    training pass (per_device_train_batch_size). group: num_generations. steps: training passes one rollout serves
    (steps_per_generation). prompt: tokens of the longest prompt, audio included. completion: max_completion_length.
    clip_tokens: audio tokens of all training clips. memory_gib: for encoded audio. vllm_gib: what vLLM takes beside the
    trainer, 0 with transformers or a server. generates: whether transformers generates.
    """

    weight_bytes: int
    autocast: bool
    eager: bool
    adapter: int
    rank: int
    micro: int
    group: int
    steps: int
    prompt: int
    completion: int
    clip_tokens: int
    memory_gib: float
    vllm_gib: float = 0.0
    generates: bool = True

    @property
    def prompts(self) -> int:
        """Distinct prompts in a training pass: TRL shuffles the completions of a rollout before it cuts them."""
        return min(self.micro, math.ceil(self.micro * self.steps / self.group))


@dataclass(frozen=True)
class Need:
    """Bytes for one purpose. when: "always", "sampling" or "training"; the last two never meet. host: in the machine's
    memory even where the model is on a GPU.
    """

    name: str
    bytes: float
    when: str
    host: bool = False


def needs(model: ModelShape, run: RunShape) -> list[Need]:
    """What one process needs, beside Python and its libraries."""
    passed = f"activations: {run.micro} completions of {run.completion} tokens, {run.prompts} prompts of {run.prompt}"
    found = [
        Need(f"weights of the base ({run.weight_bytes} bytes a number)", model.parameters * run.weight_bytes, "always"),
        Need("adapter: weights, gradients, AdamW's two moments", 16 * run.adapter, "always"),
        Need("encoded audio of the training clips", _encoded(model, run), "always", host=True),
        Need(passed, activations(model, run), "training"),
        Need("logits of the completions", logits(model, run), "training"),
    ]
    if run.vllm_gib:
        found.append(Need("vLLM: its weights and its cache", run.vllm_gib * 2**30, "always"))
    if run.generates:
        cached = f"cache of generate: {run.micro * run.steps} completions"
        found.append(Need(cached, generation_cache(model, run), "sampling"))
        found.append(Need("next tokens' logits", 12.0 * run.micro * run.steps * model.vocabulary, "sampling"))
    return found


def _encoded(model: ModelShape, run: RunShape) -> float:
    return min(run.memory_gib * 2**30, run.clip_tokens * model.width * run.weight_bytes)


def activations(model: ModelShape, run: RunShape) -> float:
    """Bytes that autograd keeps of the language model's layers, of the prompts' pass and the completions'."""
    half = run.autocast or run.weight_bytes == 2
    queries = run.prompts * run.prompt + run.micro * run.completion
    keys = run.prompts * run.prompt + run.micro * (run.prompt + run.completion)
    # Weights of attention: those of the prompts among themselves, those of the completions to all before them.
    weights = run.prompts * run.prompt**2 + run.micro * run.completion * (run.prompt + run.completion)
    if half:
        # Two residuals in float32; the input of each of the five adapted linears that share one is cast for itself.
        a_token = 18 * model.hidden + 4 * model.attention + 8 * model.intermediate + 14 * run.rank
        a_key, a_weight = 4 * model.attention + 6 * model.key_values, 6 * model.heads
    else:
        # Two residuals and two norms' outputs; queries and the attention's output; gate, its silu, up, their product.
        a_token = 16 * model.hidden + 8 * model.attention + 16 * model.intermediate + 28 * run.rank
        a_key, a_weight = 8 * model.attention + 8 * model.key_values, 4 * model.heads
    if not run.eager:
        # The kernel's output is kept beside the copy of it that is cast for the output projection's adapter.
        a_token += 2 * model.attention if half else 0
        a_weight = 0
    kept = model.layers * (queries * a_token + keys * a_key + weights * a_weight)
    # Frozen weights are cast anew in each of the two passes, and each copy is kept for the gradient of its input.
    casts = 2 * 2 * model.linears if run.autocast and run.weight_bytes == 4 else 0
    return kept + casts


def logits(model: ModelShape, run: RunShape) -> float:
    """Bytes at the peak of the LM head: logits, two log-softmaxes, the probabilities and their product, float32."""
    return 20.0 * min(run.micro * run.completion, CHUNK) * model.vocabulary


def generation_cache(model: ModelShape, run: RunShape) -> float:
    """Bytes of keys and values at the end of a rollout by transformers, all its completions at once."""
    tokens = run.micro * run.steps * (run.prompt + run.completion)
    return 2.0 * model.layers * model.key_values * tokens * run.weight_bytes


def peak(found: Sequence[Need], *, host: bool | None = None) -> float:
    """Bytes at the worst moment. host: only what lies in the machine's memory (True) or on the GPU (False)."""
    own = [need for need in found if host is None or need.host == host]
    total = {when: sum(n.bytes for n in own if n.when == when) for when in ("always", "sampling", "training")}
    return total["always"] + max(total["sampling"], total["training"])


def cures(model: ModelShape, run: RunShape, free: float, *, host: bool | None = None) -> list[str]:
    """What to set so that the peak of one memory is within `free` bytes: the smallest change of each option that is
    enough alone. host: which memory, as `peak` takes it.
    """
    found = []
    for option in (_passes(run), _completions(run), _audio(run), _halves(run)):
        enough = (says for says, changed in option if peak(needs(model, changed), host=host) <= free)
        found += [says for says in (next(enough, None),) if says]
    return found or ["no single option is enough: lower several, or take a larger machine"]


Option = Iterator[tuple[str, RunShape]]


def _passes(run: RunShape) -> Option:
    """The same step in more passes of fewer completions."""
    micro, times = run.micro, 1
    while micro % 2 == 0:
        micro, times = micro // 2, times * 2
        says = f"per_device_train_batch_size {micro} and gradient_accumulation_steps times {times}"
        yield says, replace(run, micro=micro, steps=run.steps * times)


def _completions(run: RunShape) -> Option:
    length = run.completion
    while length >= 64:
        length //= 2
        yield f"max_completion_length {length}", replace(run, completion=length)


def _audio(run: RunShape) -> Option:
    gib = run.memory_gib
    while gib > 0.25:
        gib /= 2
        yield f"memory_gib {gib:g}", replace(run, memory_gib=gib)


def _halves(run: RunShape) -> Option:
    if run.weight_bytes == 4:
        yield "dtype bfloat16", replace(run, weight_bytes=2)
