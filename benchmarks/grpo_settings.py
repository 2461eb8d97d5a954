"""python benchmarks/grpo_settings.py --adapter runs/crema_d/fold0/own --set scale_rewards=none scale_rewards=group

What does one setting of GRPO do? Trains launch/configs/grpo.yaml from the same SFT adapter once with each value, all
else equal: the same clips in the same order, the same seed. No clip comes twice, so the rewards of the last steps are
of clips that no step before has learned from. What a run costs the label readout is measured on the dev speakers, whom
no training hears. One run with each value: no seed is repeated. Finished runs in --work are kept; --set may be given
again, with other values or another option. Adds to benchmarks/results/grpo_settings.json and writes the table of
docs/train.md.
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
from reasoning.distributions import jsd_bits, nll_bits, normalize_votes
from reasoning.evaluation.statistics import difference_of, jackknife_interval, mean_of
from reasoning.files import replace_section, write_atomic

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "train.md", ROOT / "benchmarks" / "results" / "grpo_settings.json"
LAST = 4
"""Steps at the end of a run whose rewards are averaged."""


def train(setting: str, args: argparse.Namespace) -> Path:
    """The run folder of GRPO with this KEY=VALUE on top of the config."""
    key, value = setting.split("=")
    run = args.work / setting
    command = ["grpo", "--config", "launch/configs/grpo.yaml", "--adapter", str(args.adapter)]
    command += ["--model_name_or_path", str(args.model), "--data", str(args.data), "--fold", str(args.fold)]
    command += ["--output_dir", str(run), f"--{key}", value]
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


def dev_labels(adapter: Path, corpus: Corpus, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Per dev clip, how far the label readout is from the votes."""
    from reasoning.inference.engine import Request
    from reasoning.inference.transformers_engine import TransformersEngine
    from reasoning.models.loading import load_model

    dev = split_clips(corpus, args.fold)["dev"]
    engine = TransformersEngine(load_model(args.model, adapter), corpus.info.emotions, batch_size=16)
    asked = [Request(clip.id, corpus.root / clip.audio, clip.transcript) for clip in dev]
    readout = np.array([scores.probabilities for scores in engine.score_labels(asked)])
    votes = [clip.votes for clip in dev]
    return {"jsd_bits": jsd_bits(normalize_votes(votes), readout), "nll_bits": nll_bits(votes, readout)}


def against(before: dict[str, np.ndarray], after: dict[str, np.ndarray], speakers: list[str]) -> dict[str, Any]:
    """after minus before by metric, clip by clip, with intervals over speakers."""
    return {
        name: jackknife_interval(difference_of(mean_of(after[name]), mean_of(before[name])), speakers).to_dict()
        for name in before
    }


def table(record: dict[str, Any]) -> str:
    """The record as docs/train.md shows it."""
    start = record["label_before"]
    head = (
        "| setting | closeness | parsed | entropy, nats | label jsd_bits: change [95%] | nll_bits: change [95%] |\n"
        "|---|---|---|---|---|---|\n"
    )
    rows = [
        f"| `{setting}` | {run['closeness']:.3f} | {run['parsed']:.0%} | {run['entropy']:.3f} "
        f"| {_change(run['label']['jsd_bits'])} | {_change(run['label']['nll_bits'])} |\n"
        for setting, run in sorted(record["runs"].items())
    ]
    steps = sorted({run["steps"] for run in record["runs"].values()})
    said = (
        f"{record['corpus']}, fold {record['fold']}, {', '.join(map(str, steps))} steps, one run each. Closeness, "
        f"share of parsed answers and entropy: sampled at temperature 1 in the last {LAST} steps. Label readout: "
        f"{record['dev_clips']} clips of {record['dev_speakers']} dev speakers, after minus before "
        f"(before: {start['jsd_bits']:.3f} jsd_bits, {start['nll_bits']:.3f} nll_bits).\n"
    )
    return head + "".join(rows) + "\n" + said


def _change(found: dict[str, float]) -> str:
    return f"{found['estimate']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="of `equivox sft`")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of `equivox grpo`")
    parser.add_argument("--model", type=Path, default=Path("models/seed"))
    parser.add_argument("--data", type=Path, default=Path("data/crema_d"))
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/grpo_settings"), help="folder of the runs")
    args = parser.parse_args()
    corpus = read_corpus(args.data)
    dev = split_clips(corpus, args.fold)["dev"]
    speakers = [clip.speaker for clip in dev]
    before = dev_labels(args.adapter, corpus, args)
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
    for setting in args.set:
        run = train(setting, args)
        runs[setting] = {**end_of(run), "label": against(before, dev_labels(run, corpus, args), speakers)}
        record = {
            "corpus": corpus.info.name,
            "fold": args.fold,
            "dev_clips": len(dev),
            "dev_speakers": len(set(speakers)),
            "label_before": {name: float(values.mean()) for name, values in before.items()},
            "runs": runs,
        }
        write_atomic(RESULTS, json.dumps(record, indent=1) + "\n")
        replace_section(DOCUMENT, "grpo settings", table(record))
    print(table(record))


if __name__ == "__main__":
    main()
