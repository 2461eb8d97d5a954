"""equivox diagnose --model DIR [--adapter DIR] --data CORPUS --traces FILE [--out FILE.json]

Does a reference trace fix the answer by itself? Reads the label slot of held-out clips after their own trace and sound,
after another clip's trace, and with another clip's sound, and says which of the two the answer follows. A diagnostic of
traces and of what a model learned from them (`label_teacher_forced`); it is no score of the model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.cli import run
from reasoning.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="equivox diagnose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    p.add_argument("--adapter", type=Path, help="adapter folder (default: none)")
    p.add_argument("--data", type=Path, required=True, help="corpus folder written by `equivox prepare`")
    p.add_argument("--traces", type=Path, required=True, help="file of traces written by `equivox prepare cot`")
    p.add_argument("--fold", type=int, default=0, help="fold whose speakers are held out (default: 0)")
    p.add_argument("--folds", type=int, default=5, help="folds that the corpus is cut into (default: 5)")
    p.add_argument("--split", choices=("dev", "test"), default="dev", help="held-out clips to ask about (default: dev)")
    p.add_argument("--limit", type=int, help="only so many clips, in a seeded order")
    p.add_argument("--seed", type=int, default=0, help="seed of the limit and of the swaps (default: 0)")
    p.add_argument("--batch-size", type=int, default=8, help="clips at a time (default: 8)")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    p.add_argument("--out", type=Path, help="also write the figures as JSON")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.batch_size < 1:
        raise ConfigError(f"is {args.batch_size}, expected at least 1", field="--batch-size")

    import torch

    from data_builders.rows import read_corpus, split_clips
    from data_builders.traces.trace_file import read_traces
    from launch.lineage import check_held_out
    from reasoning.evaluation.trace_swap import swap_traces
    from reasoning.files import write_atomic
    from reasoning.inference.transformers_engine import TransformersEngine
    from reasoning.models.loading import best_device, load_model

    corpus = read_corpus(args.data)
    check_held_out(args.adapter, corpus, args.fold, args.folds)
    traces = read_traces(args.traces, corpus)
    clips = split_clips(corpus, args.fold, args.folds)[args.split]
    loaded = load_model(args.model, args.adapter, dtype=getattr(torch, args.dtype), device=best_device())
    engine = TransformersEngine(loaded, corpus.info.emotions, batch_size=args.batch_size)
    found = swap_traces(engine, clips, traces, corpus.root, args.seed, args.limit)
    found = {"corpus": corpus.info.name, "split": args.split, "fold": args.fold, **found}
    if args.out is not None:
        write_atomic(args.out, json.dumps(found, indent=1) + "\n")
    print(summary(found))
    return 0


def summary(found: Mapping[str, Any]) -> str:
    """The figures as a table for the terminal, above what they let one say."""
    from reasoning.evaluation.trace_swap import CONDITIONS

    lines = [
        f"{found['corpus']}, {found['split']} speakers of fold {found['fold']}: {found['n_clips']} clips with a trace "
        f"({found['n_without_trace']} have none), {found['n_speakers']} speakers; readout {found['readout']}",
        "",
        f"{'':<42}{'jsd_bits to the votes':<26}{'nll_bits':>9}{'brier':>8}{'answer moved':>14}",
    ]
    for name, what in CONDITIONS.items():
        scores = found["conditions"][name]
        moved = found["moved"].get(name)
        lines.append(
            f"{what:<42}{_figure(scores['jsd_bits']):<26}{scores['nll_bits']['estimate']:>9.3f}"
            f"{scores['brier']['estimate']:>8.3f}{'' if moved is None else format(moved['estimate'], '>14.3f')}"
        )
    lines += [
        f"{'(one answer for all: the mean of these votes)':<42}{_figure(found['prior_jsd_bits'])}",
        "",
        found["verdict"],
    ]
    return "\n".join([*lines, *([found["few_speakers"]] if found["few_speakers"] else [])])


def _figure(interval: Mapping[str, float | None]) -> str:
    ends = "" if interval["low"] is None else f" [{interval['low']:.3f}, {interval['high']:.3f}]"
    return f"{interval['estimate']:.3f}{ends}"


if __name__ == "__main__":
    raise SystemExit(run(main))
