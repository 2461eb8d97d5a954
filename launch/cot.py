"""equivox prepare cot --data data/crema_d --out data/crema_d/traces.parquet

Measures the vocal cues of every clip, writes a reasoning trace for each and keeps those that the verifier finds true of
the clip, in line with its votes, and not giving them away. Measured cues stay in cues.parquet in the corpus folder, so
that a run that was killed, or one with other options, does not measure again; a teacher's replies stay beside --out.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from reasoning.errors import ConfigError

if TYPE_CHECKING:
    from data_builders.rows import Corpus
    from data_builders.traces.cot import Made, Writer
    from data_builders.traces.teacher import TeacherWriter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `equivox prepare cot`."""
    parser.add_argument("--data", type=Path, required=True, help="corpus folder written by `equivox prepare`")
    parser.add_argument("--out", type=Path, required=True, help="file of traces to write, such as traces.parquet")
    parser.add_argument(
        "--teacher",
        nargs="?",
        const="http://127.0.0.1:8000/v1",
        metavar="URL",
        help="have a language model behind an OpenAI-compatible endpoint write (default URL: %(const)s; key: "
        "OPENAI_API_KEY); without this option a rule-and-template writer does",
    )
    parser.add_argument("--teacher-model", help="the model's name at the endpoint")
    parser.add_argument("--concurrency", type=int, default=4, help="clips asked for at a time (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="seconds to wait for the teacher (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="other wording of the same claims (default: %(default)s)")
    parser.add_argument(
        "--show-votes",
        action="store_true",
        help="let the writer see the votes: it names the true cues that speak for them first; stored as saw_votes",
    )
    parser.add_argument(
        "--keep-unverified", action="store_true", help="write rejected traces too, each with the reasons against it"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--show", type=int, default=1, help="kept traces to print (default: %(default)s)")


def prepare(args: argparse.Namespace) -> None:
    """Write the file of traces and print what was measured, kept and rejected, and why."""
    from data_builders.rows import read_corpus
    from data_builders.traces import cot
    from data_builders.traces.template import TemplateWriter
    from data_builders.traces.trace_file import write_traces

    for name in ("workers", "concurrency"):
        if getattr(args, name) < 1:
            raise ConfigError(f"is {getattr(args, name)}, expected 1 or more", field=f"--{name}")
    start = time.perf_counter()
    corpus = read_corpus(args.data)
    writer = teacher(args, corpus) if args.teacher else TemplateWriter(corpus.info.emotions, args.seed, args.show_votes)
    made = cot.prepare(corpus, args.data, writer, args.workers)
    rows = made.rows if args.keep_unverified else made.kept
    write_traces(args.out, rows, corpus)
    print(summary(corpus, writer, made, args.out, len(rows), time.perf_counter() - start))
    votes = {clip.id: clip.votes for clip in corpus.clips}
    for row in made.kept[: args.show]:
        counts = ", ".join(f"{n} {v}" for n, v in zip(corpus.info.emotions.names, votes[row.id], strict=True) if v)
        print(f"\n{row.id} (votes: {counts})\n{row.thinking}")


def teacher(args: argparse.Namespace, corpus: Corpus) -> TeacherWriter:
    """The teacher that the options name. Raises EvaluationError when nothing answers there."""
    from data_builders.traces.teacher import TeacherWriter
    from reasoning.inference.endpoint import Endpoint

    if not args.teacher_model:
        raise ConfigError("is missing", field="--teacher-model", cure="give the model's name at the endpoint")
    key = os.environ.get("OPENAI_API_KEY")
    endpoint = Endpoint(args.teacher, timeout=args.timeout, retries=4, api_key=key)
    endpoint.get("/models")  # a wrong address should cost one line and not one failure a clip
    replies = args.out.with_name(f"{args.out.name}.replies.jsonl")
    replies.parent.mkdir(parents=True, exist_ok=True)
    return TeacherWriter(
        endpoint.post,
        args.teacher_model,
        corpus.info.emotions,
        replies,
        args.seed,
        args.show_votes,
        args.concurrency,
        hurry=endpoint.hurry,
    )


def summary(corpus: Corpus, writer: Writer, made: Made, out: Path, written: int, seconds: float) -> str:
    """What was measured, what is not and why, and what the verifier said; `seconds`: wall time of the run."""
    from data_builders.traces.trace_file import by_whom
    from reasoning.cues import MIN_CLIPS
    from reasoning.verifier import REASONS

    clips, kept = len(corpus.clips), len(made.kept)
    lines = [f"{corpus.info.name}: {clips:,} clips, traces by {by_whom(writer.name, writer.saw_votes)}"]
    if made.with_others:
        why = f"fewer than {MIN_CLIPS} clips of their speaker could be measured"
        lines.append(f"  compared      {made.with_others:,} clips with other speakers too, in some cue: {why}")
    lines += [f"  not measured  {n:,} {name}: {gap}" for (name, gap), n in made.gaps.items()]
    lines += [f"  no trace      {n:,} {problem}" for problem, n in made.unwritten.items()]
    lines += [f"  rejected      {n:,} {reason}: {REASONS[reason]}" for reason, n in made.rejected.items()]
    lines.append(f"  kept          {kept:,} of {clips:,} ({kept / clips:.0%})")
    unverified = f", {written - kept:,} of them unverified" if written > kept else ""
    lines.append(f"  {out}: {written:,} traces{unverified}, written in {seconds:.1f} s")
    return "\n".join(lines)
