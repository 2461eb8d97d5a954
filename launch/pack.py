"""equivox pack RUN [RUN ...] --out FILE.parquet

Puts runs of `equivox evaluate` into one small file: what systems answered, without votes, sentences or sound. It may be
published or carried to another machine, where `equivox unpack` makes runs of it again for whoever has the corpus.
"""

import argparse
from pathlib import Path

from launch.cli import run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="equivox pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folders that `equivox evaluate --out` wrote, in order of training"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write, a parquet table")
    args = parser.parse_args(argv)

    from launch.compare import minutes_of
    from launch.packed import Run, write_packed
    from reasoning.evaluation.predictions import read_predictions
    from reasoning.evaluation.record import PREDICTIONS, read_record

    records = [read_record(folder) for folder in args.runs]
    packed = [
        Run(record, minutes_of([record], [folder]).get(record.system), read_predictions(folder / PREDICTIONS))
        for record, folder in zip(records, args.runs, strict=True)
    ]
    write_packed(args.out, packed)
    answers = sum(len(one.predictions) for one in packed)
    print(f"{args.out}: {len(packed)} runs, {answers} answers, {args.out.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
