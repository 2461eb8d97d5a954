"""equivox evaluate --model DIR [--adapter DIR] --data CORPUS --fold F --name NAME --out DIR

Runs one system on a fold's held-out speakers (both readouts, controls, baselines), scores it and writes the report:
DIR/predictions.jsonl, scores.json, report.html. A killed run goes on where it stopped: give the same command again.
--engine vllm runs the model in vLLM, --engine server asks one that `equivox serve` or anybody else runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.cli import run
from launch.engines import Opened, add_options, open_engine
from reasoning.prompts import LEVELS, MAX_NEW_TOKENS

if TYPE_CHECKING:
    from data_builders.rows import Corpus
    from reasoning.clips import Clip

PROBE_BATCH = 8


def _names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(",") if part.strip())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="equivox evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(p)
    p.add_argument("--data", type=Path, required=True, help="corpus folder written by `equivox prepare`")
    p.add_argument("--fold", type=int, default=0, help="fold whose speakers are held out (default: 0)")
    p.add_argument("--folds", type=int, default=5, help="folds that the corpus is cut into (default: 5)")
    p.add_argument("--name", default="model", help="what the system is called in the results (default: model)")
    p.add_argument("--out", type=Path, required=True, help="folder to write")
    p.add_argument(
        "--readouts",
        type=_names,
        default="label,verbalized",
        help="of label, verbalized, guided, guided_mean (docs/evaluate.md; default: label,verbalized)",
    )
    p.add_argument(
        "--controls",
        type=_names,
        default="shuffled,silence,text_only",
        help="default: shuffled,silence,text_only; none: no control",
    )
    p.add_argument(
        "--control-readouts", type=_names, help="readouts used by controls (default: label, or else the first readout)"
    )
    p.add_argument(
        "--dev-readouts",
        type=_names,
        help="readouts that get a temperature from dev (default: label, or else the first readout)",
    )
    p.add_argument("--level", choices=LEVELS, default="no_think", help="prompt level (default: no_think)")
    p.add_argument("--max-new-tokens", type=int, help=f"default by level: {MAX_NEW_TOKENS}")
    p.add_argument("--limit", type=int, help="only so many test clips, in a seeded order (stated in the protocol)")
    p.add_argument("--no-probe", action="store_true", help="leave out the linear probe, which encodes the train clips")
    p.add_argument("--report-clips", type=int, default=40, help="clips with audio in the report (default: 40)")
    p.add_argument(
        "--seed", type=int, default=0, help="seed of the limit, the shuffled control and sampled answers (default: 0)"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)

    from data_builders.rows import read_corpus, split_clips
    from launch.lineage import check_held_out
    from reasoning.evaluation.baselines import fit_baselines
    from reasoning.evaluation.predict import Asked, PredictionFile, plan_jobs, predict, predict_baselines, some_clips
    from reasoning.evaluation.record import PREDICTIONS, open_run
    from reasoning.evaluation.results import summary, write_results

    one = ("label",) if "label" in args.readouts else args.readouts[:1]
    asked = Asked(
        system=args.name,
        fold=args.fold,
        readouts=args.readouts,
        controls=args.controls,
        control_readouts=one if args.control_readouts is None else args.control_readouts,
        dev_readouts=one if args.dev_readouts is None else args.dev_readouts,
        level=args.level,
        max_new_tokens=args.max_new_tokens or MAX_NEW_TOKENS[args.level],
        seed=args.seed,
    )
    corpus = read_corpus(args.data)
    emotions = corpus.info.emotions
    check_held_out(args.adapter, corpus, args.fold, args.folds)
    splits = split_clips(corpus, args.fold, args.folds)
    test = some_clips(splits["test"], args.limit, args.seed)
    jobs, plan = plan_jobs(asked, splits["dev"], test, splits["test"])
    baselines = fit_baselines(splits["train"], splits["dev"])
    opened = open_engine(args, emotions)
    features = None if args.no_probe or opened.memory is None else features_of(opened, corpus)
    open_run(args.out, record_of(args, asked, corpus, splits, opened, plan, baselines))
    with PredictionFile(args.out / PREDICTIONS) as sink:
        shown = {**splits, "test": test}
        predict_baselines(baselines, shown, args.fold, emotions, features, sink)
        predict(opened.engine, jobs, asked, emotions, corpus.root, sink)
    print(summary(write_results(args.out, [args.out], max_clips=args.report_clips)))
    print(f"\n{args.out}: report.html, scores.json, predictions.jsonl")
    return 0


def features_of(opened: Opened, corpus: Corpus) -> Any:
    """Clips -> pooled features of the model's audio tower. Tower passes are shared with the engine that has one."""
    import numpy as np
    from tqdm import tqdm

    from reasoning.evaluation.probe import pool

    def features(clips: Sequence[Clip]) -> Any:
        assert opened.memory is not None
        memory, pooled = opened.memory(), []
        for start in tqdm(range(0, len(clips), PROBE_BATCH), desc="linear probe: encoding", unit="batch"):
            part = clips[start : start + PROBE_BATCH]
            heard = memory.hear([corpus.root / clip.audio for clip in part], [clip.id for clip in part])
            pooled += pool([h.features.float().numpy() for h in heard]).tolist()
        return np.array(pooled)

    return features


def record_of(
    args: argparse.Namespace, asked: Any, corpus: Corpus, splits: Any, opened: Opened, plan: Any, baselines: Any
) -> Any:
    """The run's record: what decides its answers, and what was fitted on train."""
    from reasoning.evaluation.human import fit_dirichlet_multinomial
    from reasoning.evaluation.record import RunRecord, adapter_fingerprint, prompt_fingerprint

    alpha = fit_dirichlet_multinomial([clip.votes for clip in splits["train"]])
    return RunRecord(
        system=asked.system,
        corpus=corpus.info.name,
        statement=corpus.info.statement,
        rater_task=corpus.info.rater_task,
        corpus_fingerprint=corpus.fingerprint,
        audio_root=str(corpus.root.resolve()),
        emotions=corpus.info.emotions.to_dict(),
        fold=args.fold,
        folds=args.folds,
        n_train=len(splits["train"]),
        n_dev=len(splits["dev"]),
        n_test=len(splits["test"]),
        limit=args.limit,
        model=opened.model,
        model_fingerprint=opened.fingerprint,
        adapter=None if args.adapter is None else str(args.adapter),
        adapter_fingerprint=None if args.adapter is None else adapter_fingerprint(args.adapter),
        engine=opened.described,
        level=asked.level,
        prompt_fingerprint=prompt_fingerprint(asked.level, corpus.info.emotions),
        max_new_tokens=asked.max_new_tokens,
        seed=asked.seed,
        shuffled=None if plan is None else plan.counts(),
        fitted=baselines.to_dict() | {"dirichlet_alpha": alpha.tolist()},
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
