"""What the docstrings say a deaf constant earns is what it earns on the official votes."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import re
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from reasoning.distributions import normalize_votes
from reasoning.emotions import CREMA_D
from reasoning.response import write_response
from rewards.loading import load_reward

NAMES = CREMA_D.names
ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "benchmarks" / "results" / "reward_floors.json").read_text())
SLOW = {"distribution:earth_mover_closeness"}


def documented(name: str) -> float:
    found = re.search(r"Prior: (\d\.\d{3})", str(load_reward(f"rewards.{name}").__doc__))
    assert found, f"{name} does not say what the prior earns"
    return float(found[1])


def test_every_reward_of_the_package_is_measured():
    defined = set()
    for file in (ROOT / "rewards").glob("*.py"):
        for name, value in vars(importlib.import_module(f"rewards.{file.stem}")).items():
            if inspect.isfunction(value) and {"completions", "columns"} <= set(inspect.signature(value).parameters):
                defined.add(f"{file.stem}:{name}")
    assert defined == {*RECORD["means"], *RECORD["grounding"]["means"]}


def test_the_guide_shows_the_tables_that_were_measured():
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "reward_floors.py"))
    guide = (ROOT / "docs" / "reward.md").read_text()
    assert benchmark["table"](RECORD) in guide
    assert benchmark["grounding_table"](RECORD) in guide


def test_a_true_voice_line_earns_more_than_any_constant_one_and_what_does_not_think_earns_nothing():
    for name, means in RECORD["grounding"]["means"].items():
        assert means["no Voice line"] == documented(name) == 0
        constant = (means["the safest claim"], means["the 3 safest"], means["all usual"])
        assert max(constant) < means["the clip's own"]
        assert means["another clip's"] < means["the clip's own"]
    above = RECORD["grounding"]["means"]["grounding:grounding_above_chance"]
    assert [above[who] for who in ("the safest claim", "the 3 safest", "all usual")] == pytest.approx([0, 0, 0])
    assert above["the clip's own"] > 0.5 > 0.05 > abs(above["another clip's"])


@pytest.mark.parametrize("name", RECORD["means"])
def test_the_docstring_says_what_was_measured(name):
    assert documented(name) == pytest.approx(RECORD["means"][name]["prior"], abs=5.1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else []) for n in RECORD["means"]]
)
def test_the_prior_earns_what_is_documented_on_the_official_votes(name, shared_crema_d):
    with (shared_crema_d / "processedResults" / "tabulatedVotes.csv").open() as stream:
        votes = [tuple(int(r[k]) for k in "ADFHNS") for r in csv.DictReader(stream) if r[""].startswith("1")]
    assert len(votes) == RECORD["clips"]
    prior = normalize_votes(votes).mean(axis=0)
    kinds = Counter(votes)
    text = write_response(prior.tolist(), NAMES[int(prior.argmax())], CREMA_D)
    earned = load_reward(f"rewards.{name}")([text] * len(kinds), votes=list(kinds), emotions=[NAMES] * len(kinds))
    assert np.average(earned, weights=list(kinds.values())) == pytest.approx(documented(name), abs=5.1e-4)
