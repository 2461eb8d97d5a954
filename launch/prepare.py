"""equivox prepare crema_d --root CREMA-D --out data/crema_d

Reads a corpus in its official layout (or, with `studio`, makes one on the spot) and writes a corpus folder:
clips.parquet, corpus.json and left_out.tsv. Run again, it reuses the folder if nothing it was made from has changed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from launch import cot, preferences
from launch.cli import run


def parser() -> argparse.ArgumentParser:
    """Arguments of `equivox prepare`, one subcommand per corpus."""
    top = argparse.ArgumentParser(
        prog="equivox prepare", description="Turn a corpus into clips and votes.", epilog="Guide: docs/data.md"
    )
    corpora = top.add_subparsers(dest="corpus", required=True, metavar="CORPUS")
    crema_d = corpora.add_parser(
        "crema_d",
        help="CREMA-D as released: acted speech, 4 to 12 human voice-only votes a clip",
        description="Read the official CREMA-D folder, or any part of it; what is missing or broken is reported.",
    )
    crema_d.add_argument(
        "--root",
        type=Path,
        required=True,
        help="folder that holds AudioWAV/, processedResults/ and VideoDemographics.csv",
    )
    studio = corpora.add_parser(
        "studio",
        help="synthetic speech, simulated raters: no download, made here by hibari-tts",
        description="Make the embedded corpus: SYNTHETIC SPEECH, SIMULATED RATERS. It tries the pipeline out; its "
        "scores say nothing about how people hear emotion.",
    )
    studio.add_argument("--clips", type=int, default=200, help="how many clips to make (default: %(default)s)")
    studio.add_argument("--seed", type=int, default=0, help="other mixtures and votes (default: %(default)s)")
    pairs = corpora.add_parser(
        "preferences",
        help="pairs of answers to a prepared corpus's clips, for `equivox dpo`",
        description=str(preferences.__doc__).split("\n\n", 1)[1],
    )
    preferences.add_arguments(pairs)
    traces = corpora.add_parser(
        "cot",
        help="reasoning traces for a prepared corpus's clips, grounded in measured vocal cues",
        description=str(cot.__doc__).split("\n\n", 1)[1],
    )
    cot.add_arguments(traces)
    for corpus in (crema_d, studio):
        corpus.add_argument("--out", type=Path, required=True, help="corpus folder to write, such as data/crema_d")
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.corpus == "cot":
        cot.prepare(args)
        return 0
    if args.corpus == "preferences":
        preferences.prepare(args)
        return 0
    start = time.perf_counter()
    # Imported here: `--help` should not wait for pyarrow and a speech synthesizer.
    if args.corpus == "crema_d":
        from data_builders import crema_d

        corpus, reused = crema_d.prepare(args.root, args.out)
    else:
        from data_builders import studio

        corpus, reused = studio.prepare(args.out, clips=args.clips, seed=args.seed)
    print(summary(corpus, args.out, reused, time.perf_counter() - start))
    return 0


def summary(corpus, out: Path, reused: bool, seconds: float) -> str:
    """What the corpus is, what is not in it and why, and the command to go on with; `seconds`: wall time of the run."""
    from data_builders.rows import LEFT_OUT_FILE, reasons

    counts, left_out = corpus.info.counts, corpus.info.left_out
    votes, splits, task = counts["votes_per_clip"], counts["splits"], corpus.info.rater_task
    lines = [
        f"{corpus.info.name}: {corpus.info.statement}",
        f"  clips     {counts['clips']:,} by {counts['speakers']} speakers, {counts['hours']:.2f} hours",
        f"  votes     {votes['min']} to {votes['max']} a clip, {votes['mean']:.1f} on average ({task})",
        f"  fold 0    {splits['train']} train, {splits['dev']} dev, {splits['test']} test; no speaker in two of them",
    ]
    for reason, count in reasons(left_out).items():
        names = [item["row"] for item in left_out if item["reason"] == reason]
        shown = ", ".join(names[:4]) + (", ..." if count > 4 else "")
        lines.append(f"  left out  {count:,} {reason}: {shown}")
    if left_out:
        lines.append(f"            every one of them with its reason: {out / LEFT_OUT_FILE}")
    speed = counts["hours"] * 3600 / seconds
    done = "already prepared, reused" if reused else f"written in {seconds:.1f} s ({speed:,.0f}x real time)"
    lines += [
        f"  {out}: {done}",
        f"next: equivox seed --out models/seed && equivox sft --config launch/configs/sft.yaml --data {out}"
        " --output_dir runs/mine/sft",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
