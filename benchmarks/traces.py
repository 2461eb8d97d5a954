"""python benchmarks/traces.py --data data/crema_d

How many traces of the template writer does the verifier keep, with the votes hidden from the writer and shown? The
counts that `equivox prepare cot` prints, without and with --show-votes. Cues are measured through the corpus's cache.
Writes benchmarks/results/traces.json and the table of docs/traces.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from data_builders.rows import Corpus, read_corpus
from data_builders.traces import cot
from data_builders.traces.template import TemplateWriter
from reasoning.files import replace_section, write_atomic

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "traces.md", ROOT / "benchmarks" / "results" / "traces.json"
SEED = 0
WRITERS = {"votes not shown": False, "`--show-votes`": True}


def counts(corpus: Corpus, folder: Path) -> dict[str, dict[str, Any]]:
    """What becomes of the clips, by whether the writer saw their votes."""
    found = {}
    for who, saw_votes in WRITERS.items():
        made = cot.prepare(corpus, folder, TemplateWriter(corpus.info.emotions, SEED, saw_votes))
        found[who] = {
            "kept": len(made.kept),
            "rejected": dict(made.rejected),
            "no trace": sum(made.unwritten.values()),
        }
    return found


def table(record: dict[str, Any]) -> str:
    """The record as docs/traces.md shows it."""
    clips, made = record["clips"], record["made"]
    reasons = sorted({reason for column in made.values() for reason in column["rejected"]})
    kept = [f"{column['kept']} ({column['kept'] / clips:.0%})" for column in made.values()]
    rows = [
        [f"{record['corpus']}, {clips} clips, seed {record['seed']}", *made],
        ["---"] * (len(made) + 1),
        ["kept", *kept],
    ]
    for reason in reasons:
        rows.append([f"rejected, `{reason}`", *(str(column["rejected"].get(reason, 0)) for column in made.values())])
    what = "no trace: what was measured speaks for fewer than two emotions"
    rows.append([what, *(str(column["no trace"]) for column in made.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "crema_d")
    args = parser.parse_args()
    corpus = read_corpus(args.data)
    record = {
        "corpus": corpus.info.name,
        "clips": len(corpus.clips),
        "seed": SEED,
        "made": counts(corpus, args.data),
    }
    write_atomic(RESULTS, json.dumps(record, indent=1) + "\n")
    replace_section(DOCUMENT, "traces", table(record))
    print(table(record))


if __name__ == "__main__":
    main()
