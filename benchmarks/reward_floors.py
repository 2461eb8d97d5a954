"""python benchmarks/reward_floors.py --root CREMA-D

What does each reward pay an answer that does not listen? The mean reward of constant answers (prior: the mean of all
votes), of the votes themselves and of no answer, over all usable voice-only votes of CREMA-D (its official tables; no
audio is read). Takes a minute or two. Writes
benchmarks/results/reward_floors.json and the table of docs/reward.md.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from data_builders.crema_d import read_tables, voice_votes
from reasoning.distributions import normalize_votes
from reasoning.emotions import CREMA_D
from reasoning.files import write_atomic
from reasoning.response import write_response
from rewards.loading import load_reward

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "reward.md", ROOT / "benchmarks" / "results" / "reward_floors.json"
BEGIN, END = "<!-- reward floors -->\n", "<!-- end -->"
REWARDS = (
    "distribution:closeness",
    "distribution:tvd_closeness",
    "distribution:brier_closeness",
    "distribution:bhattacharyya_closeness",
    "distribution:earth_mover_closeness",
    "distribution:entropy_match",
    "majority:majority_accuracy",
    "format:format",
    "brevity:brevity",
)


def answers(shares_NK: np.ndarray) -> dict[str, list[str]]:
    """What is answered for each row of vote shares, by the name of who answers."""
    names, n = CREMA_D.names, len(shares_NK)
    prior = shares_NK.mean(axis=0)
    usual = names[int(prior.argmax())]
    constant = {
        "prior": write_response(prior.tolist(), usual, CREMA_D),
        "uniform": write_response([1 / len(names)] * len(names), usual, CREMA_D),
        f"always {usual}": write_response([float(name == usual) for name in names], usual, CREMA_D),
        "no answer": "",
    }
    votes = [write_response(p.tolist(), names[int(p.argmax())], CREMA_D) for p in shares_NK]
    return {who: [text] * n for who, text in constant.items()} | {"the votes": votes}


def mean_rewards(votes_NK: list[tuple[int, ...]]) -> dict[str, dict[str, float]]:
    """Mean reward over clips with these votes, by reward and by who answers."""
    shares = normalize_votes(votes_NK)
    answered = answers(shares)
    clips = Counter(zip(votes_NK, *answered.values(), strict=True))  # equal votes and answers are scored once
    votes = [key[0] for key in clips]
    means: dict[str, dict[str, float]] = {}
    for name in REWARDS:
        reward = load_reward(f"rewards.{name}")
        means[name] = {}
        for column, who in enumerate(answered, start=1):
            texts = [key[column] for key in clips]
            earned = reward(texts, votes=votes, emotions=[CREMA_D.names] * len(votes))
            means[name][who] = float(np.average(earned, weights=list(clips.values())))
    return means


def table(record: dict) -> str:
    """The record as docs/reward.md shows it."""
    means = record["means"]
    who = list(next(iter(means.values())))
    rows = [f"| `{name}` | " + " | ".join(f"{means[name][w]:.3f}" for w in who) + " |" for name in means]
    head = f"| mean reward ({record['corpus']}, {record['clips']} clips) | " + " | ".join(who) + " |"
    return "\n".join([head, "|---" * (len(who) + 1) + "|", *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the official CREMA-D release")
    votes = [clip.votes for clip in voice_votes(read_tables(parser.parse_args().root))[0]]
    record = {"corpus": "crema_d", "clips": len(votes), "means": mean_rewards(votes)}
    write_atomic(RESULTS, json.dumps(record, indent=1) + "\n")
    before, rest = DOCUMENT.read_text().split(BEGIN, 1)
    write_atomic(DOCUMENT, before + BEGIN + "\n" + table(record) + "\n" + END + rest.split(END, 1)[1])
    print(table(record))


if __name__ == "__main__":
    main()
