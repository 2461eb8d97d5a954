"""python benchmarks/grpo_settings.py --adapter runs/crema_d/fold0/own --set temperature=1.0 temperature=0.7,max_steps=6

What do settings of GRPO bring, and what do they cost? Trains launch/configs/grpo.yaml from the same adapter once with
each KEY=VALUE[,KEY=VALUE...], all else equal: the same clips in the same order, the same seed. No clip comes twice, so
the rewards of the last steps are of clips that no step before has learned from. Before and after, the dev speakers,
whom no training hears, are asked as in evaluation: for written Shares, greedily, and for the label readout. One run
with each setting: no seed is repeated. Finished runs in --work are kept; --set may be given again, with other settings.
Adds to benchmarks/results/grpo_settings.json and writes the table of docs/train.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from data_builders.rows import Corpus, read_corpus, split_clips
from reasoning.evaluation.metrics import per_clip
from reasoning.evaluation.statistics import difference_of, jackknife_interval, mean_of
from reasoning.files import replace_section, write_atomic
from reasoning.prompts import MAX_NEW_TOKENS
from reasoning.response import read_response

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "train.md", ROOT / "benchmarks" / "results" / "grpo_settings.json"
LAST = 4
"""Steps at the end of a run whose rewards are averaged."""

METRICS = ("jsd_bits", "nll_bits", "brier")


def train(setting: str, args: argparse.Namespace) -> Path:
    """The run folder of GRPO with these KEY=VALUE on top of the config."""
    run = args.work / setting
    command = ["grpo", "--config", "launch/configs/grpo.yaml", "--adapter", str(args.adapter)]
    command += ["--model_name_or_path", str(args.model), "--data", str(args.data), "--fold", str(args.fold)]
    command += ["--output_dir", str(run)]
    for pair in setting.split(","):
        key, value = pair.split("=")
        command += [f"--{key}", value]
    subprocess.run([sys.executable, "-m", "launch.cli", *command], check=True)
    return run


def end_of(run: Path) -> dict[str, Any]:
    """Means over the last steps of what a run logged of its sampled answers."""
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in logged if "rewards/closeness/mean" in line]
    names = {"closeness": "rewards/closeness/mean", "parsed": "parse_rate", "entropy": "entropy"}
    return {"steps": len(steps)} | {
        name: float(np.mean([step[logged_as] for step in steps[-LAST:]])) for name, logged_as in names.items()
    }


def on_dev(adapter: Path, corpus: Corpus, args: argparse.Namespace) -> dict[str, dict[str, np.ndarray]]:
    """By readout, what each dev clip scores: METRICS of `verbalized` and `label`, and whether Shares could be read."""
    from reasoning.inference.engine import Request
    from reasoning.inference.transformers_engine import TransformersEngine
    from reasoning.models.loading import load_model

    dev, emotions = split_clips(corpus, args.fold)["dev"], corpus.info.emotions
    engine = TransformersEngine(load_model(args.model, adapter), emotions, batch_size=32)
    asked = [Request(clip.id, corpus.root / clip.audio, clip.transcript) for clip in dev]
    votes = [clip.votes for clip in dev]
    labels = per_clip(votes, [scores.probabilities for scores in engine.score_labels(asked)])
    answers = engine.generate(asked, max_new_tokens=MAX_NEW_TOKENS["no_think"])
    shares = [read_response(answer.text, emotions).probabilities for answer in answers]
    failed = np.array([share is None for share in shares])
    uniform = (1 / len(emotions),) * len(emotions)  # where nothing was read: scored as failed, whatever stands there
    written = per_clip(votes, [share or uniform for share in shares], failed)
    return {
        "verbalized": {name: written[name] for name in METRICS} | {"parsed": ~failed},
        "label": {name: labels[name] for name in METRICS},
    }


def against(before: dict[str, np.ndarray], after: dict[str, np.ndarray], speakers: list[str]) -> dict[str, Any]:
    """after minus before by metric, clip by clip, with intervals over speakers."""
    return {
        name: jackknife_interval(difference_of(mean_of(after[name]), mean_of(before[name])), speakers).to_dict()
        for name in METRICS
    }


def means(found: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """By readout and metric, the mean over the dev clips."""
    return {readout: {name: float(values.mean()) for name, values in of.items()} for readout, of in found.items()}


def table(record: dict[str, Any]) -> str:
    """The record as docs/train.md shows it."""
    start = record["before"]
    head = (
        "| setting | steps | sampled: closeness | parsed | written: parsed | jsd_bits: change [95%] | brier "
        "| label: jsd_bits | nll_bits |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    rows = [
        f"| `{setting}` | {run['steps']} | {run['closeness']:.3f} | {run['parsed']:.0%} "
        f"| {run['after']['verbalized']['parsed']:.1%} "
        f"| {_change(run['verbalized']['jsd_bits'])} | {_change(run['verbalized']['brier'])} "
        f"| {_change(run['label']['jsd_bits'])} | {_change(run['label']['nll_bits'])} |\n"
        for setting, run in sorted(record["runs"].items())
    ]
    written = start["verbalized"]
    said = (
        f"{record['corpus']}, fold {record['fold']}, one run each. Sampled: in the last {LAST} steps, at the run's "
        f"temperature. Written (greedy Shares) and label readout: {record['dev_clips']} clips of "
        f"{record['dev_speakers']} dev speakers, after minus before. Before: {written['parsed']:.1%} parsed, "
        f"{written['jsd_bits']:.3f} jsd_bits, {written['brier']:.3f} brier; label {start['label']['jsd_bits']:.3f} "
        f"jsd_bits, {start['label']['nll_bits']:.3f} nll_bits.\n"
    )
    return head + "".join(rows) + "\n" + said


def _change(found: dict[str, float]) -> str:
    return f"{found['estimate']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="of `equivox sft`")
    parser.add_argument("--set", nargs="+", required=True, metavar="KEY=VALUE[,KEY=VALUE]", help="of `equivox grpo`")
    parser.add_argument("--model", type=Path, default=Path("models/seed"))
    parser.add_argument("--data", type=Path, default=Path("data/crema_d"))
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/grpo_settings"), help="folder of the runs")
    args = parser.parse_args()
    corpus = read_corpus(args.data)
    dev = split_clips(corpus, args.fold)["dev"]
    speakers = [clip.speaker for clip in dev]
    before = on_dev(args.adapter, corpus, args)
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
    for setting in args.set:
        run = train(setting, args)
        after = on_dev(run, corpus, args)
        changed = {readout: against(before[readout], after[readout], speakers) for readout in before}
        runs[setting] = {**end_of(run), "after": means(after), **changed}
        record = {
            "corpus": corpus.info.name,
            "fold": args.fold,
            "dev_clips": len(dev),
            "dev_speakers": len(set(speakers)),
            "before": means(before),
            "runs": runs,
        }
        write_atomic(RESULTS, json.dumps(record, indent=1) + "\n")
        replace_section(DOCUMENT, "grpo settings", table(record))
        print(table(record))


if __name__ == "__main__":
    main()
