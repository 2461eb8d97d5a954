"""python benchmarks/share_parts.py --data data/crema_d

What does it cost to write shares in few parts, say quarters? The mean jsd_bits and nll_bits between a corpus's votes
and their own rounded shares, over all its clips. Writes benchmarks/results/share_parts.json and docs/train.md's table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from data_builders.rows import read_corpus
from reasoning.distributions import entropy_bits, jsd_bits, nll_bits, normalize_votes
from reasoning.files import replace_section, write_atomic
from reasoning.response import round_shares

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "train.md", ROOT / "benchmarks" / "results" / "share_parts.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "crema_d")
    corpus = read_corpus(parser.parse_args().data)
    votes = [clip.votes for clip in corpus.clips]
    shares = normalize_votes(votes)
    results = []
    for parts in (4, 5, 10, 20, 100):
        written = np.array([round_shares(p.tolist(), parts) for p in shares]) / parts
        lost = nll_bits(votes, written) - entropy_bits(shares)
        results.append({"parts": parts, "jsd_bits": jsd_bits(shares, written).mean(), "nll_bits_lost": lost.mean()})
    record = {"corpus": corpus.info.name, "clips": len(votes), "fingerprint": corpus.fingerprint, "results": results}
    write_atomic(RESULTS, json.dumps(record, indent=1) + "\n")
    rows = [f"| {r['parts']} | {r['jsd_bits']:.5f} | {r['nll_bits_lost']:.4f} |" for r in results]
    counted = f"{corpus.info.name}, {len(votes)} clips"
    head = f"| parts of the whole ({counted}) | jsd_bits | nll_bits above the votes' own (flooring included) |"
    table = "\n".join([head, "|---|---|---|", *rows, ""])
    replace_section(DOCUMENT, "share parts", table)
    print(table)


if __name__ == "__main__":
    main()
