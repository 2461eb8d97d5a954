"""python benchmarks/share_parts.py --run runs/crema_d/fold0/eval_sft --data data/crema_d

What does it cost to write shares in few parts, say quarters, above a floor? Rounds a corpus's votes, over all its
clips, and the label readout that a run of `equivox evaluate` has for its dev clips, and scores both against the votes.
Writes benchmarks/results/share_parts.json and docs/train.md's table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_builders.rows import read_corpus
from reasoning.distributions import normalize_votes
from reasoning.evaluation.metrics import per_clip
from reasoning.evaluation.predictions import read_predictions
from reasoning.evaluation.record import PREDICTIONS
from reasoning.files import replace_section, write_atomic
from reasoning.response import WHOLE, ShareGrid

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "train.md", ROOT / "benchmarks" / "results" / "share_parts.json"
GRIDS = (
    *(ShareGrid(4, floor) for floor in (0.0, 0.02, 0.04, 0.06, 0.08)),
    ShareGrid(5),
    ShareGrid(5, 0.05),
    *map(ShareGrid, (10, 20, 100)),
)
METRICS = ("jsd_bits", "nll_bits", "brier")


def written(grid: ShareGrid, shares_NK: Sequence[Sequence[float]]) -> np.ndarray:
    """(N, K): the shares as the grid lets them be written."""
    return np.array([grid.hundredths(shares) for shares in shares_NK]) / WHOLE


def scores(votes_NK: Sequence[Sequence[int]], shares_NK: np.ndarray) -> dict[str, float]:
    """Means over the clips."""
    found = per_clip(votes_NK, shares_NK)
    return {name: float(found[name].mean()) for name in METRICS}


def table(record: dict) -> str:
    """The record as docs/train.md shows it."""
    head = (
        "| parts | floor | votes: jsd_bits | nll_bits | readout: jsd_bits | nll_bits | brier |\n" + "|---" * 7 + "|\n"
    )
    rows = [
        f"| {r['parts']} | {r['floor']:.2f} | {r['votes']['jsd_bits']:.3f} | {r['votes']['nll_bits']:.3f} "
        f"| {r['readout']['jsd_bits']:.3f} | {r['readout']['nll_bits']:.3f} | {r['readout']['brier']:.3f} |\n"
        for r in record["results"]
    ]
    said = (
        f"{record['corpus']}: the votes of {record['clips']} clips, and the label readout of {record['dev_clips']} dev "
        f"clips ({record['dev_speakers']} speakers, {record['system']}), each rounded and scored against the votes.\n"
    )
    return head + "".join(rows) + "\n" + said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of `equivox evaluate`")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "crema_d")
    args = parser.parse_args()
    corpus = read_corpus(args.data)
    votes = [clip.votes for clip in corpus.clips]
    dev = [p for p in read_predictions(args.run / PREDICTIONS) if p.split == "dev" and p.readout == "label"]
    readout = [p.probabilities for p in dev if p.probabilities]
    record = {
        "corpus": corpus.info.name,
        "clips": len(votes),
        "fingerprint": corpus.fingerprint,
        "system": dev[0].system,
        "dev_clips": len(dev),
        "dev_speakers": len({p.speaker for p in dev}),
        "results": [
            {
                **asdict(grid),
                "votes": scores(votes, written(grid, normalize_votes(votes).tolist())),
                "readout": scores([p.votes for p in dev], written(grid, readout)),
            }
            for grid in GRIDS
        ],
    }
    write_atomic(RESULTS, json.dumps(record, indent=1) + "\n")
    replace_section(DOCUMENT, "share parts", table(record))
    print(table(record))


if __name__ == "__main__":
    main()
