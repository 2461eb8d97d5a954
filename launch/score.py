"""equivox score RUN [RUN ...] --out DIR [--markdown README.md]

Pools the runs of `equivox evaluate` (systems, folds) and writes DIR/scores.json and DIR/report.html. Needs no model.
"""

import argparse
from pathlib import Path

from launch.cli import run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="equivox score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders that `equivox evaluate --out` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--markdown",
        type=Path,
        help="also put the results table into this file, between <!-- results --> and <!-- end -->",
    )
    parser.add_argument("--report-clips", type=int, default=40, help="clips with audio in the report (default: 40)")
    args = parser.parse_args(argv)

    from reasoning.evaluation.markdown import SECTION, results_markdown
    from reasoning.evaluation.results import summary, write_results
    from reasoning.files import replace_section

    scores = write_results(args.out, args.runs, max_clips=args.report_clips)
    if args.markdown is not None:
        replace_section(args.markdown, SECTION, results_markdown(scores))
    print(summary(scores))
    print(f"\n{args.out}: report.html, scores.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
