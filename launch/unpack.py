"""equivox unpack FILE [FILE ...] --data CORPUS --out DIR

Makes runs of `equivox evaluate` out of files of `equivox pack`, with the votes and sentences of the corpus, which has
to be the one they were made of: DIR/FILE'S NAME/00_SYSTEM and so on. They can be scored and compared like any others.
"""

import argparse
from pathlib import Path

from launch.cli import run

MINUTES = "minutes"
"""File in a run's folder: minutes that its adapter's training took where it was trained."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="equivox unpack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="files that `equivox pack` wrote")
    parser.add_argument("--data", type=Path, required=True, help="the corpus that they were made of")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)

    from data_builders.rows import read_corpus
    from launch.packed import read_packed
    from reasoning.evaluation.record import PREDICTIONS, open_run
    from reasoning.files import write_atomic

    corpus = read_corpus(args.data)
    for file in args.files:
        for number, one in enumerate(read_packed(file, corpus)):
            folder = args.out / file.stem / f"{number:02d}_{one.record.system.replace('/', '_')}"
            open_run(folder, one.record)
            write_atomic(folder / PREDICTIONS, "".join(f"{line.to_json()}\n" for line in one.predictions))
            if one.minutes is not None:
                write_atomic(folder / MINUTES, f"{one.minutes}\n")
            print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
