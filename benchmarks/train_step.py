"""python benchmarks/train_step.py --model models/seed --data data/crema_d [--device cuda] [--repeats 5]

What each way of saving time in a training step is worth: each is timed in turn with the plain way, in one run on the
same clips, and reported as a ratio, because machines are noisy. Writes benchmarks/results/train_step.json and its
section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data_builders.rows import read_corpus, split_clips
from reasoning.files import replace_section, write_atomic
from reasoning.models.answer_head import Completions, add_answer_head
from reasoning.models.loading import Loaded, add_adapter, load_model
from reasoning.models.memory import batch_heard, mel_frames
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.training.collate import AnswerCollator
from reasoning.training.run_folder import environment

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results" / "train_step.json"
CLIPS, SAMPLES = 8, 8
Timed = Callable[[], Any]


def compare(plain: Timed, ours: Timed, repeats: int) -> dict[str, float]:
    """Seconds of both, timed in turn after one warm-up each, and the median of the pairwise ratios plain / ours."""
    pairs = []
    for _ in range(repeats + 1):
        times = []
        for run in (plain, ours):
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        pairs.append(times)
    pairs = pairs[1:]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "plain_s": statistics.median(a for a, _ in pairs),
        "ours_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
    }


def backward(loaded: Loaded, inputs: dict[str, Any], bf16: bool) -> None:
    """One forward and backward through the answer head."""
    precision = torch.autocast(loaded.base.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    with precision:
        output = loaded.base(**inputs, answer_head=True)
    output.logps.sum().backward()


def with_attention(loaded: Loaded, inputs: dict[str, Any], kind: str) -> None:
    """`backward` in bfloat16 with one of transformers' attention implementations."""
    usual: Any = loaded.base.config._attn_implementation
    loaded.base.set_attn_implementation(kind)
    backward(loaded, inputs, True)
    loaded.base.set_attn_implementation(usual)


def full_logits(loaded: Loaded, inputs: dict[str, Any]) -> None:
    """The same response tokens by the model's own forward, which builds logits at every position."""
    labels = inputs["labels"][:, 1:]
    asked = {k: v for k, v in inputs.items() if k not in ("labels", "slots")}
    with torch.autocast(loaded.base.device.type, torch.bfloat16):
        logits = loaded.base(**asked, use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100).backward()


def comparisons(loaded: Loaded, rows: list[dict[str, Any]], prompter: Prompter) -> dict[str, tuple[Timed, Timed]]:
    """Name -> (the plain way, ours)."""
    device = loaded.base.device
    memory, tower = loaded.memory(), loaded.family.tower_of(loaded.base)
    mel, frames = mel_frames(loaded.processor.feature_extractor, [(Path(r["audio"]), r["id"]) for r in rows])
    batch = AnswerCollator(prompter, memory, level="no_think", seed=0)(rows)
    batch.pop("votes")
    batch = {k: v.to(device) for k, v in batch.items()}

    heard = memory.hear([Path(r["audio"]) for r in rows])
    prompts = [prompter.prompt_ids(r["transcript"], h, "no_think") for r, h in zip(rows, heard, strict=True)]
    answers = batch["labels"][0][batch["labels"][0] != -100].repeat(CLIPS // 2 * SAMPLES, 1)
    of = torch.arange(CLIPS // 2, device=device).repeat_interleave(SAMPLES)
    some = prompt_batch(prompter, prompts[: CLIPS // 2], heard[: CLIPS // 2])
    some = {k: v.to(device) for k, v in some.items()}
    shared = {**some, "completions": Completions(answers, torch.ones_like(answers), of), "labels": answers}
    whole = {
        "input_ids": torch.cat([some["input_ids"][of], answers], 1),
        "attention_mask": torch.cat([some["attention_mask"][of], torch.ones_like(answers)], 1),
        "labels": torch.cat([torch.full_like(some["input_ids"][of], -100), answers], 1),
        **{k: v.to(device) for k, v in batch_heard([heard[int(i)] for i in of], loaded.family).items()},
    }

    @torch.no_grad()
    def padded() -> Any:
        return tower(mel.to(device))

    @torch.no_grad()
    def cut() -> Any:
        return loaded.family.encode(tower, mel, frames)

    return {
        f"audio tower, {CLIPS} clips: padded to 30 s / cut after the longest": (padded, cut),
        f"SFT step, {CLIPS} clips: float32 / bfloat16 autocast": (
            lambda: backward(loaded, batch, False), lambda: backward(loaded, batch, True),
        ),
        f"SFT step, {CLIPS} clips: logits everywhere / logits of the answer": (
            lambda: full_logits(loaded, batch), lambda: backward(loaded, batch, True),
        ),
        f"SFT step, {CLIPS} clips: sdpa / eager attention": (
            lambda: with_attention(loaded, batch, "sdpa"), lambda: with_attention(loaded, batch, "eager"),
        ),
        f"GRPO step, {CLIPS // 2} clips x {SAMPLES} answers: whole rows / shared prompts": (
            lambda: backward(loaded, whole, True), lambda: backward(loaded, shared, True),
        ),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "seed")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "crema_d")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    corpus = read_corpus(args.data)
    clips = split_clips(corpus, 0)["train"][:CLIPS]
    rows = [
        {"id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": c.votes} for c in clips
    ]
    loaded = add_adapter(load_model(args.model, device=args.device), r=16, alpha=32, dropout=0.0, train_projector=True)
    prompter = Prompter(loaded, corpus.info.emotions)
    add_answer_head(loaded.base, prompter.labels)
    results = {}
    for name, (plain, ours) in comparisons(loaded, rows, prompter).items():
        results[name] = compare(plain, ours, args.repeats)
        print(f"{name}: {results[name]['ratio']:.2f}x")
    record = {"environment": environment(), "device": args.device, "threads": torch.get_num_threads()}
    write_atomic(RESULTS, json.dumps({**record, "repeats": args.repeats, "results": results}, indent=1) + "\n")
    replace_section(DOCUMENT, "train step", section({**record, "repeats": args.repeats}, results))


def section(record: dict[str, Any], results: dict[str, dict[str, float]]) -> str:
    """The record as docs/benchmarks.md shows it."""
    versions = record["environment"]["versions"]
    lines = [
        f"    python benchmarks/train_step.py --model models/seed --data data/crema_d --repeats {record['repeats']}",
        "",
        f"Timed both ways in turn, {record['repeats']} pairs after a warm-up, on {record['device']} with "
        f"torch.get_num_threads() {record['threads']}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}. "
        "Read the ratio: the seconds are medians on a shared machine. Higher is better for the second way.", "",
        "| first way / second way | first, s | second, s | ratio (min to max) |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, r in results.items():
        span = f"**{r['ratio']:.2f}** ({r['ratio_min']:.2f} to {r['ratio_max']:.2f})"
        lines.append(f"| {name} | {r['plain_s']:.2f} | {r['ours_s']:.2f} | {span} |")
    if record["device"] == "cpu":
        lines += ["", "No figure here was taken on a GPU; `--device cuda` runs the same script there."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
