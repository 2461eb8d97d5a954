"""python benchmarks/reward_floors.py --root CREMA-D --data data/crema_d

What does each reward pay an answer that does not listen? The mean reward of constant answers (prior: the mean of all
votes), of the votes themselves and of no answer, over all usable voice-only votes of CREMA-D (its official tables; no
audio is read); and what grounding pays constant Voice lines, over the measured cues of the prepared corpus in --data.
Takes a minute or two. Writes benchmarks/results/reward_floors.json and the tables of docs/reward.md.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from data_builders.crema_d import read_tables, voice_votes
from data_builders.rows import Corpus, read_corpus
from data_builders.traces.measured import corpus_cues
from data_builders.traces.template import TemplateWriter
from reasoning.cues import CUES
from reasoning.distributions import normalize_votes
from reasoning.emotions import CREMA_D
from reasoning.evaluation.controls import plan_shuffled
from reasoning.files import replace_section, write_atomic
from reasoning.grounding import MIN_CLAIMS, is_measured, level_shares, levels_of
from reasoning.response import write_response
from reasoning.verifier import Trace, read_trace, write_trace
from rewards.loading import load_reward

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "reward.md", ROOT / "benchmarks" / "results" / "reward_floors.json"
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
GROUNDING = ("grounding:grounding", "grounding:grounding_above_chance")


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


def grounding_means(corpus: Corpus, folder: Path) -> dict[str, dict[str, float]]:
    """Mean over the corpus of each reward of `rewards.grounding`, by what the Voice line says."""
    cues = corpus_cues(corpus, folder)
    clips = [clip for clip in corpus.clips if is_measured(levels_of(cues[clip.id]))]
    levels = [levels_of(cues[clip.id]) for clip in clips]
    usual = {cue: sum(level[cue] == 0 for level in levels) for cue in CUES}
    safest = sorted(usual, key=lambda cue: -usual[cue])
    lines: dict[str, list[str]] = {"no Voice line": [""] * len(clips)}
    for n, who in ((1, "the safest claim"), (MIN_CLAIMS, f"the {MIN_CLAIMS} safest"), (len(CUES), "all usual")):
        lines[who] = [", ".join(f"usual {cue}" for cue in safest[:n])] * len(clips)
    drafts = TemplateWriter(corpus.info.emotions, seed=0).write(clips, cues)
    own = {draft.id: read_trace(draft.thinking).voice for draft in drafts if draft.thinking}  # type: ignore[union-attr]
    donors = plan_shuffled(clips).donors
    lines["another clip's"] = [own.get(donors[clip.id].id, "") for clip in clips]
    lines["the clip's own"] = [own.get(clip.id, "") for clip in clips]
    names = [corpus.info.emotions.names] * len(clips)
    columns = {"emotions": names, "cue_levels": levels, "cue_shares": [level_shares(levels)] * len(levels)}
    return {
        name: {who: float(np.mean(load_reward(f"rewards.{name}")(_answers(v), **columns))) for who, v in lines.items()}
        for name in GROUNDING
    }


def _answers(voices: list[str]) -> list[str]:
    """An answer of the prior's kind after thinking with each Voice line; without thinking where it is empty."""
    traces = [write_trace(Trace("nothing", voice, "anger and fear", "-")) if voice else None for voice in voices]
    return [write_response([1 / len(CREMA_D)] * len(CREMA_D), "sad", CREMA_D, trace) for trace in traces]


def grounding_table(record: dict) -> str:
    """The floors of grounding as docs/reward.md shows them."""
    means = record["grounding"]["means"]
    who = list(means[GROUNDING[0]])
    head = f"| the Voice line says ({record['corpus']}, {record['grounding']['clips']} clips) | " + " | ".join(who)
    # A mean that is 0 by construction comes out as -0.000 or 0.000 by rounding.
    rows = [f"| `{name}` | " + " | ".join(f"{round(means[name][w], 3) + 0:.3f}" for w in who) + " |" for name in means]
    return "\n".join([f"{head} |", "|---" * (len(who) + 1) + "|", *rows, ""])


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
    parser.add_argument("--data", type=Path, required=True, help="the same as `equivox prepare crema_d` wrote it")
    args = parser.parse_args()
    votes = [clip.votes for clip in voice_votes(read_tables(args.root))[0]]
    corpus = read_corpus(args.data)
    record = {
        "corpus": "crema_d",
        "clips": len(votes),
        "means": mean_rewards(votes),
        "grounding": {"clips": len(corpus.clips), "means": grounding_means(corpus, args.data)},
    }
    write_atomic(RESULTS, json.dumps(record, indent=1) + "\n")
    for name, text in (("reward floors", table(record)), ("grounding floors", grounding_table(record))):
        replace_section(DOCUMENT, name, text)
        print(text)


if __name__ == "__main__":
    main()
