"""python benchmarks/share_parts.py --run runs/floor_04/eval_grpo --floor 0.04 --data data/crema_d

What does it cost to write shares in few parts, say quarters, and which floor should they have? Rounds a corpus's votes,
over all its clips, and the label readout that a run of `equivox evaluate --dev-readouts label,verbalized` has for its
dev clips, and scores both against the votes; then says what the parts that the model wrote for the dev clips, above
--floor, would score above others. Writes benchmarks/results/share_parts.json and docs/train.md's tables.
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
from reasoning.evaluation.predictions import Prediction, read_predictions
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
FLOORS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12)
METRICS = ("jsd_bits", "nll_bits", "brier")


def written(grid: ShareGrid, shares_NK: Sequence[Sequence[float]]) -> np.ndarray:
    """(N, K): the shares as the grid lets them be written."""
    return np.array([grid.hundredths(shares) for shares in shares_NK]) / WHOLE


def moved(lines: Sequence[Prediction], was: float, floor: float) -> np.ndarray:
    """(N, K): the parts that were written above the floor `was`, above another one; anything where unreadable."""
    k = len(lines[0].votes)
    written_NK = np.array([line.probabilities or (1 / k,) * k for line in lines])
    parts_NK = np.clip((written_NK - was) / (1 - k * was), 0, None)
    return floor + (1 - k * floor) * parts_NK / parts_NK.sum(axis=1, keepdims=True)


def scores(
    votes_NK: Sequence[Sequence[int]], shares_NK: np.ndarray, failed_N: np.ndarray | None = None
) -> dict[str, float]:
    """Means over the clips."""
    found = per_clip(votes_NK, shares_NK, failed_N)
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
    floors = "".join(
        f"| {r['floor']:.2f} | {r['jsd_bits']:.3f} | {r['nll_bits']:.3f} | {r['brier']:.3f} |\n"
        for r in record["floors"]
    )
    dev = f"{record['dev_clips']} dev clips ({record['dev_speakers']} speakers, {record['system']})"
    return (
        f"{head}{''.join(rows)}\n{record['corpus']}: the votes of {record['clips']} clips, and the label readout of "
        f"{dev}, each rounded and scored against the votes.\n\n"
        f"| floor | written: jsd_bits | nll_bits | brier |\n|---|---|---|---|\n{floors}\nWhat was written for the same "
        f"dev clips above a floor of {record['written_floor']:.2f}, part for part above others.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of `equivox evaluate`")
    parser.add_argument("--floor", type=float, required=True, help="share_floor that its adapter was trained with")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "crema_d")
    args = parser.parse_args()
    corpus = read_corpus(args.data)
    votes = [clip.votes for clip in corpus.clips]
    on_dev = [p for p in read_predictions(args.run / PREDICTIONS) if p.split == "dev"]
    dev, wrote = ([p for p in on_dev if p.readout == name] for name in ("label", "verbalized"))
    readout = [p.probabilities for p in dev if p.probabilities]
    failed = np.array([p.probabilities is None for p in wrote])
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
        "written_floor": args.floor,
        "floors": [
            {"floor": floor, **scores([p.votes for p in wrote], moved(wrote, args.floor, floor), failed)}
            for floor in FLOORS
        ],
    }
    write_atomic(RESULTS, json.dumps(record, indent=1) + "\n")
    replace_section(DOCUMENT, "share parts", table(record))
    print(table(record))


if __name__ == "__main__":
    main()
