"""equivox compare RUN [RUN ...] --data CORPUS --out DIR [--markdown docs/results.md]

Puts stages of training side by side over seeds: the runs of `equivox evaluate` whose --name is STAGE@SEED, where A+B is
stage B on top of A. Writes DIR/comparison.json and, with --markdown, the page and a plot beside it. Needs no model's
weights. `bash launch/compare.sh` trains and evaluates everything that it compares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launch.cli import run
from launch.unpack import MINUTES

if TYPE_CHECKING:
    from data_builders.rows import Corpus
    from reasoning.evaluation.record import RunRecord

SECONDS = "seconds"
"""File that launch/stages.sh leaves in a stage's folder."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="equivox compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "runs", type=Path, nargs="+", help="folders that `equivox evaluate --out` wrote, in order of training"
    )
    p.add_argument("--data", type=Path, required=True, help="the corpus, whose cues thinking is held against")
    p.add_argument("--out", type=Path, required=True, help="folder to write")
    p.add_argument(
        "--swaps", type=Path, nargs="*", default=[], help="files that `equivox diagnose --out` wrote, to quote"
    )
    p.add_argument(
        "--tokenizer",
        type=Path,
        help="checkpoint folder that tokens are counted by (default: of the first run with one)",
    )
    p.add_argument("--markdown", type=Path, help="page to write, such as docs/results.md, with an .svg beside it")
    p.add_argument("--made-by", default="equivox compare", help="the command that the page names")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)

    from data_builders.rows import read_corpus
    from reasoning.evaluation.predictions import pool, read_predictions
    from reasoning.evaluation.record import PREDICTIONS, read_record
    from reasoning.evaluation.stages import Told, compare_stages
    from reasoning.evaluation.stages_page import stages_markdown, stages_plot
    from reasoning.files import write_atomic

    swaps = [read_swaps(path) for path in args.swaps]
    records = [read_record(folder) for folder in args.runs]
    predictions = pool([read_predictions(folder / PREDICTIONS) for folder in args.runs])
    corpus = read_corpus(args.data)
    check(records, corpus)
    told = Told(
        corpus.info.emotions,
        token_counter(args.tokenizer or folder_of(records)),
        frozenset(record.system for record in records if record.level == "think"),
        *cues_of(corpus, args.data, records),
        minutes_of(records, args.runs),
        {record.fold: record.fitted["dirichlet_alpha"] for record in records},
    )
    found = {**compare_stages(predictions, told), "statement": f"{corpus.info.name} ({corpus.info.statement})"}
    found["protocol"] = protocol(records)
    notes = [
        f"Trace and sound swapped ({s['n_clips']} {s['split']} clips, {s['readout']}): {s['verdict']}." for s in swaps
    ]
    write_atomic(args.out / "comparison.json", json.dumps({**found, "swaps": swaps}, indent=1) + "\n")
    page = stages_markdown(found, args.made_by, args.markdown.with_suffix(".svg").name if args.markdown else "", notes)
    if args.markdown is not None:
        write_atomic(args.markdown, page)
        write_atomic(args.markdown.with_suffix(".svg"), stages_plot(found))
    print(page)
    return 0


def check(records: Sequence[RunRecord], corpus: Corpus) -> None:
    """Raise EvaluationError where the runs are of another corpus, or a stage was asked in two ways."""
    from reasoning.errors import EvaluationError
    from reasoning.evaluation.protocol import ALIKE

    seen: dict[tuple[str, str], Any] = {}
    for record in records:
        if record.corpus_fingerprint != corpus.fingerprint:
            what = f"was evaluated on another corpus than this {corpus.info.name}"
            raise EvaluationError(what, row=record.system, field="data", cure="give the --data of the evaluations")
        for name in (*ALIKE, "folds"):
            stage = record.system.partition("@")[0]
            was = seen.setdefault((stage, name), getattr(record, name))
            if was != getattr(record, name):
                what = f"is {getattr(record, name)!r} here and {was!r} for another seed"
                raise EvaluationError(what, row=record.system, field=name, cure="evaluate all seeds of a stage alike")


def read_swaps(path: Path) -> dict[str, Any]:
    """What `equivox diagnose --out` wrote. Raises EvaluationError when the file is none of its."""
    from reasoning.errors import EvaluationError

    cure = "give a file that `equivox diagnose --out` wrote"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot be read: {error}", row=str(path), field="--swaps", cure=cure) from None
    if not isinstance(found, dict) or not {"n_clips", "split", "readout", "verdict"} <= found.keys():
        raise EvaluationError("holds no verdict on swapped traces", row=str(path), field="--swaps", cure=cure)
    return found


def protocol(records: Sequence[RunRecord]) -> str:
    """What stands beside the figures: folds, subset, levels, decoding."""
    folds = ", ".join(str(fold) for fold in sorted({record.fold for record in records}))
    limits = {record.limit for record in records}
    subset = "every test clip" if limits == {None} else f"at most {max(x for x in limits if x)} test clips a fold"
    levels: dict[str, list[str]] = {}
    for record in records:
        names = levels.setdefault(f"{record.level}, at most {record.max_new_tokens} new tokens", [])
        if (stage := record.system.partition("@")[0]) not in names:
            names.append(stage)
    asked = "; ".join(f"{', '.join(names)}: {how}" for how, names in levels.items())
    return f"fold {folds} of {records[0].folds}, speakers never trained on; {subset}; greedy; {asked}"


def folder_of(records: Sequence[RunRecord]) -> Path:
    """The first folder that a run's model is; a server that was asked blindly left only a name and a URL."""
    from reasoning.errors import EvaluationError

    found = next((Path(record.model) for record in records if Path(record.model).is_dir()), None)
    if found is None:
        what = f"is not given, and no run names a checkpoint that is here ({records[0].model})"
        raise EvaluationError(what, field="--tokenizer", cure="name the folder of the checkpoint that answered")
    return found


def token_counter(model: Path) -> Callable[[str], int]:
    """Text -> its tokens by the model's tokenizer, the end of turn counted. Raises EvaluationError without one."""
    from transformers import AutoTokenizer

    from reasoning.errors import EvaluationError

    if not model.is_dir():  # anything else would be looked for on a hub
        cure = "name the folder of a checkpoint"
        raise EvaluationError("is no folder", row=str(model), field="--tokenizer", cure=cure)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False)) + 1


def cues_of(
    corpus: Corpus, folder: Path, records: Sequence[RunRecord]
) -> tuple[dict[str, dict[str, int | None]], dict[str, str]]:
    """(clip id -> cue levels, clip id -> the test clip whose cues stand for swapped sound); empty without thinking."""
    from data_builders.rows import split_clips
    from data_builders.traces.measured import corpus_cues
    from reasoning.evaluation.controls import plan_shuffled
    from reasoning.grounding import levels_of

    if not any(record.level == "think" for record in records):
        return {}, {}
    levels = {name: levels_of(cues) for name, cues in corpus_cues(corpus, folder).items()}
    donors: dict[str, str] = {}
    for fold in sorted({record.fold for record in records}):
        plan = plan_shuffled(split_clips(corpus, fold, records[0].folds)["test"])
        donors |= {name: clip.id for name, clip in plan.donors.items()}
    return levels, donors


def minutes_of(records: Sequence[RunRecord], folders: Sequence[Path]) -> Mapping[str, float]:
    """`STAGE@SEED` -> minutes of its own training and of sampling the pairs it was trained on, where they are known:
    by what lies beside its adapter, or in its own folder if it was unpacked."""
    found = {}
    for record, folder in zip(records, folders, strict=True):
        if (folder / MINUTES).is_file():
            found[record.system] = float((folder / MINUTES).read_text())
            continue
        if record.adapter is None:
            continue
        config = Path(record.adapter) / "config.yaml"
        pairs = (yaml.safe_load(config.read_text()) or {}).get("pairs") if config.is_file() else None
        files = [Path(record.adapter) / SECONDS, *([Path(pairs).parent / SECONDS] if pairs else [])]
        known = [float(file.read_text()) for file in files if file.is_file()]
        if known:
            found[record.system] = sum(known) / 60
    return found


if __name__ == "__main__":
    raise SystemExit(run(main))
