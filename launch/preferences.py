"""equivox prepare preferences --data data/crema_d --model models/seed --adapter runs/my/sft --out data/pairs.parquet

Makes pairs of answers for `equivox dpo`: samples the policy, ranks what it wrote by distance to the votes, contrasts
clips with each other, and writes the pairs, what was left out and why, and the balance of lengths. A killed run goes on
with the clips that are not sampled yet.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasoning.errors import ConfigError
from reasoning.prompts import LEVELS, MAX_NEW_TOKENS

if TYPE_CHECKING:
    from data_builders.preferences import Built
    from data_builders.rows import Corpus
    from reasoning.clips import Clip
    from reasoning.models.loading import Loaded
    from reasoning.models.prompter import Prompter
    from reasoning.response import ShareGrid
    from reasoning.rollouts.rollouts import Sampling
    from reasoning.training.sampling import Sample

KINDS = ("own", "contrast", "grounding")


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    p.add_argument("--data", type=Path, required=True, help="corpus folder written by `equivox prepare`")
    p.add_argument("--fold", type=int, default=0, help="fold whose speakers are held out (default: %(default)s)")
    p.add_argument("--folds", type=int, default=5, help="folds that the corpus is cut into (default: %(default)s)")
    p.add_argument(
        "--speakers",
        help="part of the training speakers, FROM:TO, such as 0.7:1 where SFT had --speakers 0:0.7 (default: all)",
    )
    p.add_argument("--limit", type=int, default=0, help="only the first so many of these clips (default: all)")
    p.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    p.add_argument("--adapter", type=Path, help="adapter folder of the policy that answers (default: none)")
    p.add_argument("--out", type=Path, required=True, help="file to write, such as data/pairs.parquet")
    p.add_argument("--kinds", nargs="+", choices=KINDS, default=["own", "contrast"], help="default: own contrast")
    p.add_argument("--level", choices=LEVELS, default="no_think", help="prompt level (default: %(default)s)")
    p.add_argument("--traces", type=Path, help="file of `equivox prepare cot`: what contrast and grounding think")
    p.add_argument("--samples", type=int, default=8, help="answers sampled for a clip (default: %(default)s)")
    p.add_argument("--temperature", type=float, default=1.0, help="default: %(default)s")
    p.add_argument("--max-new-tokens", type=int, help="default: 96, and 512 at level think")
    p.add_argument("--pairs-per-clip", type=int, default=1, help="own pairs of a clip, at most (default: %(default)s)")
    p.add_argument(
        "--own-margin", type=float, default=0.1, help="jsd_bits between two own answers, least (default: %(default)s)"
    )
    p.add_argument(
        "--own-good", type=float, default=0.4, help="jsd_bits of a chosen own answer, most (default: %(default)s)"
    )
    p.add_argument(
        "--contrast-margin",
        type=float,
        default=0.3,
        help="jsd_bits between the votes of two clips, least (default: %(default)s)",
    )
    p.add_argument(
        "--contradictions", type=int, default=2, help="false claims of a rejected Voice line, least (default: 2)"
    )
    p.add_argument(
        "--share-parts", type=int, default=100, help="shares are written in so many parts, as in SFT (default: 100)"
    )
    p.add_argument("--share-floor", type=float, default=0.0, help="smallest share, as in SFT (default: 0)")
    p.add_argument(
        "--balance", type=float, default=0.5, help="tokens that chosen may exceed rejected by (default: %(default)s)"
    )
    p.add_argument("--batch-size", type=int, default=4, help="clips sampled at a time (default: %(default)s)")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    p.add_argument("--seed", type=int, default=0, help="other samples and contrasts (default: %(default)s)")


def check(args: argparse.Namespace) -> None:
    """Raise ConfigError on values that would give no pairs or fail late."""
    from data_builders.folds import speaker_part

    speaker_part(args.speakers)
    least = {"samples": 2, "pairs_per_clip": 1, "batch_size": 1, "limit": 0, "contradictions": 1}
    for name, value in least.items():
        if getattr(args, name) < value:
            raise ConfigError(
                f"is {getattr(args, name)}, expected {value} or more", field=f"--{name.replace('_', '-')}"
            )
    for name in ("own_margin", "own_good", "contrast_margin"):
        if not 0 < getattr(args, name) < 1:
            what = f"is {getattr(args, name)}, expected more than 0 and less than 1 bit"
            raise ConfigError(what, field=f"--{name.replace('_', '-')}")
    if not args.temperature > 0:
        raise ConfigError(f"is {args.temperature}, expected more than 0", field="--temperature")
    if not args.balance >= 0:
        raise ConfigError(f"is {args.balance}, expected 0 or more", field="--balance")
    thinking = {"contrast", "grounding"} & set(args.kinds) if args.level == "think" else set()
    if thinking and not args.traces:
        what = f"is missing: level think asks {' and '.join(sorted(thinking))} pairs for thinking"
        cure = "--traces FILE, as `equivox prepare cot` wrote it, or --kinds own"
        raise ConfigError(what, field="--traces", cure=cure)
    if args.level == "no_think" and (args.traces or "grounding" in args.kinds):
        field = "--traces" if args.traces else "--kinds grounding"
        raise ConfigError("is of use only where the model thinks", field=field, cure="--level think")
    if args.out.suffix != ".parquet":
        raise ConfigError(f"is {args.out}, expected a name that ends in .parquet", field="--out")


def prepare(args: argparse.Namespace) -> None:
    """Make the pairs file of these arguments and print what is in it."""
    check(args)

    from data_builders.folds import some_speakers
    from data_builders.pair_file import made_of, write_pairs
    from data_builders.preferences import length_balanced, report, without_near_duplicates
    from data_builders.rows import read_corpus, split_clips
    from launch.lineage import check_held_out, heard_speakers
    from reasoning.files import write_atomic

    corpus = read_corpus(args.data)
    grid_of(args).check(len(corpus.info.emotions), "--share-parts", "--share-floor")
    check_held_out(args.adapter, corpus, args.fold, args.folds)
    train = split_clips(corpus, args.fold, args.folds)["train"]
    clips = some_speakers(train, args.speakers)[: args.limit or None]
    if not clips:
        raise ConfigError(f"leaves none of the {len(train)} training clips", field="--speakers")
    asked = {clip.speaker for clip in clips}
    if heard := asked & heard_speakers(args.adapter, corpus):
        print(
            f"{len(heard)} of the {len(asked)} speakers of these pairs were in the training of {args.adapter}: what it "
            "answers to clips that it knows by heart says less. Parts of --speakers that do not overlap keep them apart"
        )
    stages, policy = build(args, corpus, clips)
    made = [pair for stage in stages for pair in stage.pairs]
    distinct = without_near_duplicates(made, corpus.info.emotions)
    kept = length_balanced(distinct.pairs, args.balance)
    told = {
        **report(
            made,
            kept.pairs,
            sum((stage.left_out for stage in (*stages, distinct, kept)), Counter()),
            corpus.info.emotions,
        ),
        "asked": {"clips": len(clips), "speakers": len(asked), "speakers_heard": len(heard)},
        "policy": policy,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
    }
    write_atomic(args.out.with_suffix(".json"), json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    write_pairs(args.out, kept.pairs, made_of(corpus, args.level))
    print(summary(told, args.out))


def grid_of(args: argparse.Namespace) -> ShareGrid:
    """Which Shares answers are written with that the policy did not write."""
    from reasoning.response import ShareGrid

    return ShareGrid(args.share_parts, args.share_floor)


def build(args: argparse.Namespace, corpus: Corpus, clips: Sequence[Clip]) -> tuple[list[Built], dict[str, Any]]:
    """(pairs of each kind that was asked for, what the policy and its sampling are)."""
    import torch

    from data_builders.preferences import contrast_pairs, grounding_pairs, own_pairs
    from data_builders.traces.measured import corpus_cues
    from data_builders.traces.trace_file import read_traces
    from reasoning.grounding import levels_of
    from reasoning.models.loading import best_device, load_model
    from reasoning.models.prompter import Prompter

    traces = read_traces(args.traces, corpus) if args.traces else None
    loaded = load_model(args.model, args.adapter, dtype=getattr(torch, args.dtype), device=best_device())
    policy = settings(args, corpus, loaded.fingerprint)
    emotions = corpus.info.emotions
    prompter = Prompter(loaded, emotions)

    def has_slot(text: str) -> bool:
        return prompter.slot_of(prompter.encode(text)) is not None

    def tokens(text: str) -> int:
        return len(prompter.encode(text)) + 1

    written = {"seed": args.seed, "grid": grid_of(args)}
    stages = []
    if "own" in args.kinds:
        answers = sampled(args, corpus, clips, loaded, prompter, policy)
        whole = {name: [s.text for s in found if not s.truncated] for name, found in answers.items()}
        stages.append(
            own_pairs(
                clips,
                whole,
                emotions,
                tokens,
                has_slot=has_slot,
                margin_bits=args.own_margin,
                good_bits=args.own_good,
                per_clip=args.pairs_per_clip,
            )
        )
        stages[-1].left_out["own", "truncated sample"] = sum(s.truncated for found in answers.values() for s in found)
    if "contrast" in args.kinds:
        stages.append(
            contrast_pairs(clips, emotions, tokens, margin_bits=args.contrast_margin, traces=traces, **written)
        )
    if traces is not None and "grounding" in args.kinds:
        levels = {name: levels_of(cues) for name, cues in corpus_cues(corpus, args.data).items()}
        stages.append(
            grounding_pairs(clips, traces, levels, emotions, tokens, contradictions=args.contradictions, **written)
        )
    return stages, policy


def settings(args: argparse.Namespace, corpus: Corpus, model: str) -> dict[str, Any]:
    """What the sampled answers depend on, besides which clips were asked about."""
    from reasoning.evaluation.record import adapter_fingerprint, prompt_fingerprint

    named = ("level", "samples", "batch_size", "dtype", "seed", "fold", "folds", "speakers")
    return {
        "corpus": corpus.fingerprint,
        "model": model,
        "adapter": adapter_fingerprint(args.adapter) if args.adapter else None,
        "prompt": prompt_fingerprint(args.level, corpus.info.emotions),
        **{name: getattr(args, name) for name in named},
        **asdict(sampling(args)),
    }


def sampling(args: argparse.Namespace) -> Sampling:
    """How answers are drawn: from the policy's whole distribution, whatever its checkpoint would cut off."""
    from reasoning.rollouts.rollouts import Sampling

    return Sampling(args.max_new_tokens or MAX_NEW_TOKENS[args.level], args.temperature)


def sampled(
    args: argparse.Namespace,
    corpus: Corpus,
    clips: Sequence[Clip],
    loaded: Loaded,
    prompter: Prompter,
    policy: dict[str, Any],
) -> dict[str, list[Sample]]:
    """Clip id -> the policy's answers; those that an earlier run left beside the output are not sampled again."""
    from tqdm import tqdm

    from reasoning.training.sampling import SampleFile, sample_answers

    memory = loaded.memory()
    rows = [{"id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript} for c in clips]
    parts = [rows[i : i + args.batch_size] for i in range(0, len(rows), args.batch_size)]
    with (
        SampleFile(args.out.with_suffix(".samples.jsonl"), policy) as file,
        tqdm(total=len(rows), desc="sampling", unit="clip") as bar,
    ):
        for part in parts:
            if not all(row["id"] in file.answers for row in part):
                made = sample_answers(
                    loaded,
                    prompter,
                    memory,
                    part,
                    level=args.level,
                    samples=args.samples,
                    sampling=sampling(args),
                    seed=args.seed,
                )
                file.add({row["id"]: answers for row, answers in zip(part, made, strict=True)})
            bar.update(len(part))
        return {row["id"]: file.answers[row["id"]] for row in rows}


def summary(told: dict[str, Any], out: Path) -> str:
    """What the file holds, what was left out and why, the balance of lengths, and the command to go on with."""
    counts, asked = told["pairs"], told["asked"]
    lines = [
        f"{out}: {sum(counts.values())} pairs about {told['clips']} of {asked['clips']} clips by {asked['speakers']} "
        "training speakers"
    ]
    for kind in sorted({*counts, *told["left_out"]}):
        reasons = ", ".join(f"{n} {reason}" for reason, n in told["left_out"].get(kind, {}).items())
        lines.append(f"  {kind:<10}{counts.get(kind, 0):>6} pairs; left out: {reasons or 'nothing'}")
    before, after = (told[f"token_difference_{when}"].get("all") for when in ("before", "after"))
    lines += [
        f"  length    chosen minus rejected: {before} tokens a pair before balancing, {after} after",
        f"  distance  jsd_bits to the votes: chosen {told['chosen_bits']}, rejected {told['rejected_bits']}; "
        f"{told['rejected_unreadable']} rejected answers cannot be read",
        f"next: equivox dpo --config launch/configs/dpo.yaml --pairs {out} --adapter ... --output_dir runs/mine/dpo",
    ]
    return "\n".join(lines)
