"""python benchmarks/rollout_step.py --model models/seed --adapter runs/mine/sft --data data/crema_d [--device cuda]

What a GRPO step costs outside of generation, ours against TRL's way, in one run on the same clips, answers and weights;
and tokens a second of rollouts, vLLM's against transformers'.

TRL 1.16 has no audio; TRL's way is what it does with a picture, done with a clip: whole rows, the tower run for each
sample in each pass, through TRL's own head (`add_fused_lm_head`, which scores every position unless Triton runs) and
its own walk over the weights for vLLM (`VLLMGeneration._iter_named_params`). Both sides compute the old policy's, the
reference's and the policy's log-probabilities and the gradient, then serialise what they would send. Ours forgets every
clip before each step, so its encoding is counted in the step. Ratios are what may be compared between machines.

Writes benchmarks/results/rollout_step.json and its section of docs/benchmarks.md. Runs without vLLM, and says so.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor
from train_step import ROOT, compare
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import add_fused_lm_head

from data_builders.rows import read_corpus, split_clips
from reasoning.clips import Clip
from reasoning.files import replace_section, write_atomic
from reasoning.models.answer_head import Completions, add_answer_head
from reasoning.models.generating import generate_ids
from reasoning.models.loading import Loaded, add_adapter, load_model
from reasoning.models.memory import mel_frames
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.response import ShareGrid, write_response
from reasoning.rollouts.rollouts import Prompt, Rollouts, Sampling
from reasoning.rollouts.weights import Touched
from reasoning.training.run_folder import environment

DOCUMENT, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results" / "rollout_step.json"
CONCURRENT = (1, 8, 64)
PASSES = ("generation", "old policy", "reference", "policy")


@dataclass(frozen=True)
class Step:
    """Clips, G answers to each, and the model. ids: (K x G, C) answers, right-padded; mask likewise."""

    loaded: Loaded
    prompter: Prompter
    sources: list[tuple[Path, str]]
    transcripts: list[str | None]
    ids: Tensor
    mask: Tensor
    samples: int
    bf16: bool

    @property
    def device(self) -> torch.device:
        return self.loaded.base.device

    def precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def without_adapter(self) -> Any:
        return cast(PeftModel, self.loaded.model).disable_adapter()


def step_of(loaded: Loaded, prompter: Prompter, clips: Sequence[Clip], root: Path, samples: int, bf16: bool) -> Step:
    """A step on these clips; the answers to each are its votes', written after one vote or another."""
    answers, names = [], prompter.emotions.names
    for clip in clips:
        shares = [v / clip.n_votes for v in clip.votes]
        for g in range(samples):
            text = write_response(shares, names[g % len(names)], prompter.emotions, grid=ShareGrid(10))
            answers.append([*prompter.encode(text), prompter.eos_id])
    longest = max(map(len, answers))
    ids = torch.tensor([a + [prompter.pad_id] * (longest - len(a)) for a in answers], device=loaded.base.device)
    mask = torch.tensor([[1] * len(a) + [0] * (longest - len(a)) for a in answers], device=loaded.base.device)
    sources = [(root / clip.audio, clip.id) for clip in clips]
    return Step(loaded, prompter, sources, [c.transcript for c in clips], ids, mask, samples, bf16)


class Ours:
    """Each clip is heard once, each prompt computed once a pass, the head asked for answers only, touched weights sent.

    As AudioGRPOTrainer._answers and the rollouts' weight sync do it.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.forget()

    def forget(self) -> None:
        self.memory = self.step.loaded.memory()

    def prompts(self) -> tuple[dict[str, Tensor], list[list[int]]]:
        step = self.step
        heard = self.memory.hear(*zip(*step.sources, strict=True))
        pairs = zip(step.transcripts, heard, strict=True)
        ids = [step.prompter.prompt_ids(transcript, h, "no_think") for transcript, h in pairs]
        batch = prompt_batch(step.prompter, ids, heard)
        return {k: v.to(step.device) for k, v in batch.items()}, ids

    def generate(self) -> None:
        generate_ids(self.step.loaded, self.prompts()[0], samples=self.step.samples, max_new_tokens=2, do_sample=True)

    def logps(self) -> Tensor:
        step = self.step
        batch, _ = self.prompts()
        of = torch.arange(len(step.sources), device=step.device).repeat_interleave(step.samples)
        completions = Completions(step.ids, step.mask, of)
        labels = step.ids.masked_fill(step.mask == 0, -100)
        with step.precision():
            return step.loaded.model(
                **batch, completions=completions, labels=labels, entropy=True, answer_head=True
            ).logps

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from Touched(cast(PeftModel, self.step.loaded.model)).items()


class TrlsWay:
    """Whole rows with mel frames of their own, TRL's head, every parameter."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def rows(self) -> dict[str, Tensor]:
        """Prompt and audio of each sample; the processor is called once for a clip, as TRL does for pictures."""
        step = self.step
        mel, frames = mel_frames(step.loaded.processor.feature_extractor, step.sources)
        prompts = [
            step.prompter.prompt_ids(transcript, cast(Any, SimpleNamespace(frames=f)), "no_think")
            for transcript, f in zip(step.transcripts, frames, strict=True)
        ]
        batch = prompt_batch(step.prompter, prompts, [])
        mask = (torch.arange(mel.shape[-1])[None] < torch.tensor(frames)[:, None]).to(torch.long)
        batch |= {"input_features": mel, step.loaded.family.frames_mask: mask}
        return {k: v.repeat_interleave(step.samples, dim=0).to(step.device) for k, v in batch.items()}

    def forget(self) -> None:
        pass

    def generate(self) -> None:
        rows = self.rows()
        with torch.no_grad():
            self.step.loaded.base.generate(**rows, max_new_tokens=2, do_sample=True)  # type: ignore[operator]

    def logps(self) -> Tensor:
        step = self.step
        rows = self.rows()
        ids = torch.cat([rows.pop("input_ids"), step.ids], 1)
        mask = torch.cat([rows.pop("attention_mask"), step.mask], 1)
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : -step.ids.shape[1]] = -100
        with step.precision():
            out = step.loaded.model(input_ids=ids, attention_mask=mask, **rows, labels=labels, fused_lm_head=True)
        return out.log_probs[:, -step.ids.shape[1] :]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        asking = VLLMGeneration.__new__(VLLMGeneration)
        asking.model = self.step.loaded.model
        asking._dist = cast(Any, SimpleNamespace(is_fsdp=False, gather_params=lambda _: contextlib.nullcontext()))
        yield from asking._iter_named_params()


def passes(way: Ours | TrlsWay) -> float:
    """Old policy, reference and policy with its gradient, as a step with an importance ratio and a KL needs them."""
    way.forget()
    with torch.no_grad():
        old = way.logps()
        with way.step.without_adapter():
            reference = way.logps()
    logps = way.logps()
    gap = reference - logps
    loss = (-torch.exp(logps - old) + 0.04 * (gap.exp() - gap - 1)) * way.step.mask
    (loss.sum() / way.step.mask.sum()).backward()
    way.step.loaded.model.zero_grad()
    return float(loss.detach().sum())


def sync(way: Ours | TrlsWay) -> int:
    """Bytes of the weights that would be sent, each serialised in turn."""
    with torch.no_grad():
        return sum(len(save({name: tensor.contiguous().cpu()})) for name, tensor in way.weights())


@contextlib.contextmanager
def counted(loaded: Loaded) -> Iterator[Callable[[], int]]:
    """Counts the clips that pass the tower's first layer."""
    rows = 0

    def count(_: Any, inputs: tuple[Tensor, ...], __: Any) -> None:
        nonlocal rows
        rows += inputs[0].shape[0] if inputs[0].dim() == 3 else 1

    handle = cast(Any, loaded.family.tower_of(loaded.base)).conv1.register_forward_hook(count)
    try:
        yield lambda: rows
    finally:
        handle.remove()


def tower_passes(way: Ours | TrlsWay) -> int:
    """Clips through the tower in one whole step: generation, then the passes of training."""
    way.forget()
    with counted(way.step.loaded) as rows:
        way.generate()
        with torch.no_grad():
            for _ in PASSES[1:]:
                way.logps()
        return rows()


def outside_generation(step: Step, repeats: int) -> dict[str, Any]:
    """Both ways of everything in a step but sampling: seconds, ratios, tower passes, bytes."""
    theirs, ours = TrlsWay(step), Ours(step)
    found: dict[str, Any] = {
        "tower_passes": {"plain": tower_passes(theirs), "ours": tower_passes(ours)},
        "sync_bytes": {"plain": sync(theirs), "ours": sync(ours)},
    }
    with torch.no_grad():
        gap = ((theirs.logps() - ours.logps()) * step.mask).abs().max()
    found["largest_logp_difference"] = float(gap)
    found["passes"] = compare(partial(passes, theirs), partial(passes, ours), repeats)
    found["sync"] = compare(partial(sync, theirs), partial(sync, ours), repeats)
    sums = [found["passes"][f"{side}_s"] + found["sync"][f"{side}_s"] for side in ("plain", "ours")]
    found["step"] = {"plain_s": sums[0], "ours_s": sums[1], "ratio": sums[0] / sums[1]}
    return found


def prompts_of(loaded: Loaded, prompter: Prompter, clips: Sequence[Clip], root: Path) -> list[Prompt]:
    """What is asked about each clip, heard already."""
    heard = loaded.memory().hear([root / c.audio for c in clips], [c.id for c in clips])
    return [
        Prompt(c.id, prompter.prompt_ids(c.transcript, h, "no_think"), c.transcript, "no_think", root / c.audio, h)
        for c, h in zip(clips, heard, strict=True)
    ]


def by_transformers(loaded: Loaded, prompter: Prompter, prompts: Sequence[Prompt], tokens: int) -> int:
    """Tokens that `generate` wrote for all prompts in one batch, as FromTransformers asks it."""
    batch = prompt_batch(prompter, [p.ids for p in prompts], [p.heard for p in prompts])
    return sum(map(len, generate_ids(loaded, batch, samples=1, max_new_tokens=tokens, do_sample=True)))


def by_vllm(rollouts: Rollouts, prompts: Sequence[Prompt], tokens: int) -> int:
    """Tokens that vLLM wrote for the same prompts."""
    drawn = rollouts.sample(prompts, 1, range(len(prompts)), Sampling(tokens))
    return sum(len(samples[0].ids) for samples in drawn)


def tokens_a_second(ways: Mapping[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Tokens a second of each way, timed in turn after one warm-up each."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, write in ways.items():
            began = time.perf_counter()
            written = write()
            rates[name].append(written / (time.perf_counter() - began))
    return {name: found[1:] for name, found in rates.items()}


def rollout_speed(
    loaded: Loaded, prompter: Prompter, prompts: Sequence[Prompt], dtype: str, tokens: int, repeats: int
) -> dict[str, Any]:
    """By how many prompts are under way at once: tokens a second of each engine, and vLLM's weight sync."""
    from reasoning.rollouts.colocate import Colocate

    rollouts = Colocate(loaded, dtype=dtype, max_num_seqs=max(CONCURRENT))
    synced = rollouts.sync(Touched(cast(PeftModel, loaded.model), without=loaded.family.projector))
    found: dict[str, Any] = {"sync_s": synced.seconds, "sync_bytes": synced.bytes}
    for n in CONCURRENT:
        some = [prompts[i % len(prompts)] for i in range(n)]
        ways = {
            "transformers": partial(by_transformers, loaded, prompter, some, tokens),
            "vllm": partial(by_vllm, rollouts, some, tokens),
        }
        rates = tokens_a_second(ways, repeats)
        ratios = sorted(b / a for a, b in zip(rates["transformers"], rates["vllm"], strict=True))
        found[str(n)] = {name: statistics.median(rate) for name, rate in rates.items()}
        found[str(n)] |= {"ratio": statistics.median(ratios), "ratio_min": ratios[0], "ratio_max": ratios[-1]}
        print(f"{n} prompts: {found[str(n)]}")
    rollouts.close()
    return found


def section(record: Mapping[str, Any]) -> str:
    """The record as docs/benchmarks.md shows it."""
    versions, part = record["environment"]["versions"], record["outside_generation"]
    of = f"{record['clips']} clips x {record['samples']} answers"
    lines = [
        "    python benchmarks/rollout_step.py --model models/seed --adapter runs/mine/sft --data data/crema_d "
        f"--clips {record['clips']} --samples {record['samples']} --repeats {record['repeats']}",
        "",
        f"One GRPO step of {of}, everything but sampling: old policy, reference, policy and gradient, and the weights "
        f"serialised. {record['repeats']} of both in turn after a warm-up, on {record['device']} with "
        f"torch.get_num_threads() {record['threads']}, torch {versions['torch']}, "
        f"TRL {versions['trl']}. *TRL's way* is what TRL does with a picture, done with a clip, "
        "through TRL's own head and its own walk over the weights; TRL itself has no audio. "
        "Ours encodes its clips anew in every timed step. Seconds are a busy machine's.",
        "",
        "| outside of generation | TRL's way, s | ours, s | ratio (min to max) |",
        "|---|---|---|---|",
    ]
    for name, key in (("log-probabilities and gradient", "passes"), ("weights, serialised", "sync")):
        r = part[key]
        span = f"**{r['ratio']:.2f}** ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})"
        lines.append(f"| {name} | {r['plain_s']:.2f} | {r['ours_s']:.2f} | {span} |")
    whole, sent, tower = part["step"], part["sync_bytes"], part["tower_passes"]
    lines += [
        f"| both | {whole['plain_s']:.2f} | {whole['ours_s']:.2f} | **{whole['ratio']:.2f}** |",
        "",
        f"Clips through the audio tower in the whole step, generation included: {tower['plain']} against "
        f"{tower['ours']}. Bytes to send: {sent['plain'] / 2**20:.0f} MiB against {sent['ours'] / 2**20:.0f} MiB. "
        f"The two ways' log-probabilities differ by at most {part['largest_logp_difference']:.3g} nats "
        f"({'bfloat16 autocast, in which it also runs the tower' if record['bf16'] else record['dtype']}).",
    ]
    rollouts = record["rollouts"]
    if rollouts is None:
        lines += ["", "Rollouts were not timed: vLLM is not installed where this ran."]
    else:
        lines += [
            "",
            f"| rollouts ({record['dtype']}), prompts at once | transformers, tokens/s | vLLM, tokens/s "
            "| ratio (min to max) |",
            "|---|---|---|---|",
        ]
        for n in CONCURRENT:
            r = rollouts[str(n)]
            span = f"**{r['ratio']:.2f}** ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})"
            lines.append(f"| {n} | {r['transformers']:.1f} | {r['vllm']:.1f} | {span} |")
    if record["device"] == "cpu":
        lines += ["", "No figure here was taken on a GPU; `--device cuda` runs the same script there."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "seed", help="folder of a Qwen2-Audio")
    parser.add_argument("--adapter", type=Path, help="adapter of that model; a fresh one without it")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "crema_d")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    parser.add_argument("--no-bf16", dest="bf16", action="store_false", help="train without bfloat16 autocast")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=80, help="longest answer of the rollouts")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    corpus = read_corpus(args.data)
    clips = split_clips(corpus, 0)["train"][: max(CONCURRENT)]
    dtype = getattr(torch, args.dtype)
    loaded = load_model(args.model, args.adapter, trainable=True, dtype=dtype, device=args.device)
    if args.adapter is None:
        loaded = add_adapter(loaded, r=16, alpha=32, dropout=0.0, train_projector=True)
    prompter = Prompter(loaded, corpus.info.emotions)
    add_fused_lm_head(loaded.base, outputs=("log_probs", "entropy"))
    add_answer_head(loaded.base, prompter.labels)
    step = step_of(loaded, prompter, clips[: args.clips], corpus.root, args.samples, args.bf16)
    outside = outside_generation(step, args.repeats)
    print(json.dumps(outside, indent=1))
    gc.collect()
    rollouts = None
    if find_spec("vllm") is None:
        print("vLLM is not installed: rollouts are not timed (docs/engines.md, `Installing vLLM`)")
    else:
        prompts = prompts_of(loaded, prompter, clips, corpus.root)
        rollouts = rollout_speed(loaded, prompter, prompts, args.dtype, args.tokens, args.repeats)
    named = {key: getattr(args, key) for key in ("device", "dtype", "bf16", "clips", "samples", "tokens", "repeats")}
    record = {
        "environment": environment(),
        "threads": torch.get_num_threads(),
        **named,
        "outside_generation": outside,
        "rollouts": rollouts,
    }
    write_atomic(RESULTS, json.dumps(record, indent=1) + "\n")
    replace_section(DOCUMENT, "rollout step", section(record))


if __name__ == "__main__":
    main()
