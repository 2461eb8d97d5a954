"""equivox compare on predictions, and launch/compare.sh with `equivox` recorded: what runs, and what is kept."""

import argparse
import importlib
import json
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from os import environ
from pathlib import Path

import numpy as np
import pytest

import launch.arguments
from data_builders.rows import read_corpus, split_clips
from launch import HOME
from launch.compare import main
from launch.preferences import add_arguments, check
from reasoning.distributions import normalize_votes
from reasoning.emotions import CREMA_D
from reasoning.errors import EvaluationError
from reasoning.evaluation.predictions import Prediction
from reasoning.evaluation.record import RunRecord
from reasoning.response import write_response

# Writes its arguments down, one line a call, fails where $FAILS says so, and leaves what the real command leaves. Only
# help is the real command's.
EQUIVOX = """#!/usr/bin/env bash
case "$*" in *--help*) exec "$REAL" "$@" ;; esac
printf '%q ' "$@" >> "$EQUIVOX_CALLS" && echo >> "$EQUIVOX_CALLS"
[ -z "$FAILS" ] || case "$*" in *"$FAILS"*) exit 2 ;; esac
while [ $# -gt 0 ]; do
    case "$1" in
        --out | --output_dir)
            case "$2" in
                *.parquet | *.json) mkdir -p "$(dirname "$2")" && echo made >"$2" ;;
                *) mkdir -p "$2" && (cd "$2" && touch corpus.json adapter_model.safetensors predictions.jsonl) ;;
            esac ;;
    esac
    shift
done
"""


REAL = str(Path(sys.executable).parent / "equivox")


class Clone:
    def __init__(self, home: Path) -> None:
        self.home, self.log = home, home.parent / "calls"

    def compare(self, *options: str, fails: str = "") -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        self.log.write_text("")
        done = subprocess.run(
            ["bash", str(self.home / "launch" / "compare.sh"), *options],
            cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
            env={**environ, "EQUIVOX_CALLS": str(self.log), "FAILS": fails, "CI": "true", "REAL": REAL},
        )  # fmt: skip
        return done, [shlex.split(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def clone(recorded_clone) -> Clone:
    return Clone(recorded_clone("compare.sh", EQUIVOX))


def systems(calls: list[list[str]]) -> list[str]:
    return [call[call.index("--name") + 1] for call in calls if call[0] == "evaluate"]


STAGES = ["sft", "think", "think+no_think", "think+sft", "think+dpo", "think+grpo", "think+grpo+gold", "think+grpo+kl"]
TRAINED = [name for name in STAGES if name != "think+no_think"]


def test_every_stage_of_every_seed_is_trained_and_evaluated_and_the_base_once(clone: Clone):
    done, calls = clone.compare("--seeds", "1 2")
    assert done.returncode == 0, done.stderr
    assert systems(calls) == ["base", *(f"{name}@{seed}" for seed in (1, 2) for name in STAGES)]
    assert [call[0] for call in calls if call[0] in ("sft", "dpo", "grpo")] == [*["sft"] * 3, "dpo", *["grpo"] * 3] * 2
    pages = [call for call in calls if call[0] == "compare"]
    assert [len([part for part in call if "/eval_" in part]) for call in pages] == [
        1 + len(STAGES),
        1 + 2 * len(STAGES),
    ]
    assert calls[-1] == pages[-1], "a page after every seed"
    assert "runs/compare_studio/results.md" in done.stdout
    for name in TRAINED:
        assert (clone.home / "runs/compare_studio/seed2" / name / "seconds").read_text().strip().isdigit()


def test_every_option_is_one_that_its_command_takes(clone: Clone, monkeypatch):
    """Each recorded call through the real parser of its command, the shipped configs included."""
    _, calls = clone.compare("--seeds", "3", "--limit", "5", "--steps", "2", "--ablate", "grpo.agreement_weight=0.5")
    monkeypatch.chdir(HOME)
    asked = [(call[0], options_of(call, monkeypatch)) for call in calls if call[0] not in ("seed", "prepare")]
    by_folder = {Path(o["output_dir"]).name: o for name, o in asked if name in ("sft", "dpo", "grpo")}
    assert list(by_folder) == [*TRAINED, "think+grpo+agreement_weight=0.5"]
    assert {o["seed"] for o in by_folder.values()} == {3}
    assert {name: o["adapter"] and Path(o["adapter"]).name for name, o in by_folder.items()} == {
        name: {"sft": None, "think": "sft"}.get(name, "think") for name in by_folder
    }
    assert {o["max_steps"] for o in by_folder.values()} == {2}
    assert {name: o["level"] for name, o in by_folder.items()} == {
        name: "no_think" if name == "sft" else "think" for name in by_folder
    }
    assert {name: o["kl_weight"] for name, o in by_folder.items() if "grpo" in name} == {
        "think+grpo": 0, "think+grpo+gold": 0, "think+grpo+kl": 0.2, "think+grpo+agreement_weight=0.5": 0,
    }  # fmt: skip
    assert by_folder["think+grpo+gold"]["gold_traces"]
    assert by_folder["think+grpo"]["gold_traces"] is None
    assert {o["limit"] for name, o in asked if name in ("evaluate", "diagnose")} == {5}
    preferences = next(call for call in calls if call[:2] == ["prepare", "preferences"])
    reader = argparse.ArgumentParser()
    add_arguments(reader)
    options = reader.parse_args(preferences[2:])
    check(options)
    assert options.level == "think"


def options_of(call: list[str], monkeypatch: pytest.MonkeyPatch) -> dict:
    command = importlib.import_module(f"launch.{call[0]}")
    if hasattr(command, "parser"):
        return vars(command.parser().parse_args(call[1:]))
    real = launch.arguments.parse
    read: dict = {}

    def stop(*args, **kwargs):
        for part in real(*args, **kwargs):
            read.update(vars(part))
        raise EvaluationError("read")

    with monkeypatch.context() as patch:
        patch.setattr(launch.arguments, "parse", stop)
        with pytest.raises(EvaluationError, match="read"):
            command.main(call[1:])
    return read


def test_a_second_run_keeps_what_is_finished_and_a_new_seed_adds_to_it(clone: Clone):
    clone.compare("--seeds", "1")
    done, calls = clone.compare("--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert [call[:2] for call in calls] == [["prepare", "studio"], ["seed", "--out"]]
    done, calls = clone.compare("--seeds", "1 2")
    assert done.returncode == 0, done.stderr
    assert systems(calls) == [f"{name}@2" for name in STAGES]
    assert calls[-1][0] == "compare", "the page is written again"


def test_an_interrupted_run_goes_on_at_the_stage_that_failed(clone: Clone):
    done, calls = clone.compare("--seeds", "1", fails="--gold_traces")
    assert done.returncode == 2
    assert systems(calls)[-1] == "think+grpo@1"
    done, calls = clone.compare("--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert systems(calls) == ["think+grpo+gold@1", "think+grpo+kl@1"]


def test_an_ablated_key_is_trained_with_each_value_on_top_of_its_stage(clone: Clone):
    ablations = ("sft.kl_weight=0", "think.trace_weight=0.5", "dpo.kl_weight=0.5", "grpo.kl_weight=0.1,1")
    done, calls = clone.compare("--seeds", "1", *(part for one in ablations for part in ("--ablate", one)))
    assert done.returncode == 0, done.stderr
    assert systems(calls)[-5:] == [
        "sft+kl_weight=0@1", "think+trace_weight=0.5@1", "think+dpo+kl_weight=0.5@1",
        "think+grpo+kl_weight=0.1@1", "think+grpo+kl_weight=1@1",
    ]  # fmt: skip
    last = next(call for call in calls if call[0] == "grpo" and "kl_weight=1" in call[-1])
    assert last[last.index("--kl_weight", last.index("--kl_weight") + 1) + 1] == "1", "the last of two wins"
    done, calls = clone.compare("--seeds", "1", "--ablate", "grpo.agreement_weight=0.5")
    assert systems(calls) == ["think+grpo+agreement_weight=0.5@1"], "what is trained is kept"


def test_ablated_pairs_are_made_anew_and_dpo_is_trained_on_them(clone: Clone):
    done, calls = clone.compare("--seeds", "1", "--ablate", "pairs.speakers=0:0.7")
    assert done.returncode == 0, done.stderr
    _, made = (call for call in calls if call[:2] == ["prepare", "preferences"])
    assert [made[i + 1] for i, part in enumerate(made) if part == "--speakers"][-1] == "0:0.7"
    *_, trained = (call for call in calls if call[0] == "dpo")
    assert trained[trained.index("--pairs") + 1] == made[made.index("--out") + 1]
    assert systems(calls)[-1] == "think+dpo+speakers=0:0.7@1"


def test_the_page_is_written_where_the_user_is(clone: Clone):
    done, calls = clone.compare("--seeds", "1", "--page", "results.md")
    assert done.returncode == 0, done.stderr
    assert calls[-1][calls[-1].index("--markdown") + 1] == "//results.md"
    assert "--page results.md" in calls[-1][-1]


def test_seeds_that_were_evaluated_elsewhere_join_every_page(clone: Clone, tmp_path):
    there = tmp_path / "theirs" / "seed1" / "00_sft"
    there.mkdir(parents=True)
    (there / "evaluation.json").touch()
    done, calls = clone.compare("--seeds", "2 3", "--with", str(tmp_path / "theirs"))
    assert done.returncode == 0, done.stderr
    pages = [call for call in calls if call[0] == "compare"]
    assert [call[call.index("--data") - 1] for call in pages] == [str(there)] * 2
    done, calls = clone.compare("--with", str(tmp_path))
    assert done.returncode == 2
    assert "expected a folder that equivox unpack wrote" in done.stderr
    assert calls == []


@pytest.mark.parametrize(
    ("options", "command"),
    [
        (["--ablate", "grpo.nonsense=1"], "grpo"),
        (["--ablate", "sft.kl_weigh=1"], "sft"),
        (["--ablate", "think.kl_weigh=1"], "sft"),
        (["--ablate", "grpo.trace_weight=1"], "grpo"),
        (["--ablate", "pairs.kl_weight=1"], "prepare preferences"),
    ],
)
def test_a_key_that_the_ablated_command_lacks_is_refused_before_anything_runs(clone: Clone, options, command):
    done, calls = clone.compare(*options)
    assert done.returncode == 2
    assert "compare: --ablate" in done.stderr
    assert f"equivox {command} has no" in done.stderr
    assert calls == []


@pytest.mark.parametrize(
    "options",
    [
        ["--corpus", "crema_d"], ["--corpus", "x"], ["--sed", "1"], ["--ablate", "grpo.kl_weight"],
        ["--ablate", "grpo.kl_weight="], ["--ablate", "grpo.rewards=my/x.py:f"], ["--ablate", "kl_weight=1"],
        ["--ablate", "ppo.kl_weight=1"],
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_anything_runs(clone: Clone, options: list[str]):
    done, calls = clone.compare(*options)
    assert done.returncode == 2
    assert done.stderr.startswith("compare: ")
    assert calls == []


# --- the command


def line(clip, system: str, readout: str, probs, text=None) -> Prediction:
    return Prediction(
        system=system, readout=readout, prefix="no_think", control="none", split="test", id=clip.id,
        speaker=clip.speaker, fold=0, transcript=clip.transcript, votes=clip.votes,
        probabilities=None if probs is None else tuple(probs), vote=None, problems=(), text=text, audio=clip.audio,
    )  # fmt: skip


def write_run(folder: Path, corpus, model: Path, lines: list[Prediction], **changes) -> Path:
    folder.mkdir(parents=True)
    record = RunRecord(
        system=lines[0].system, corpus=corpus.info.name, statement=corpus.info.statement, rater_task="none",
        corpus_fingerprint=corpus.fingerprint, audio_root=str(corpus.root), emotions=corpus.info.emotions.to_dict(),
        fold=0, folds=5, n_train=1, n_dev=1, n_test=len(lines), limit=None, model=str(model), model_fingerprint="m",
        adapter=None, adapter_fingerprint=None, engine="transformers", level="no_think", prompt_fingerprint="p",
        max_new_tokens=96, seed=0, shuffled=None, fitted={"dirichlet_alpha": [1.0] * 6},
    )  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(asdict(replace(record, **changes))))
    (folder / "predictions.jsonl").write_text("".join(f"{x.to_json()}\n" for x in lines))
    return folder


@pytest.fixture
def runs(tone_corpus, untrained_checkpoint, tmp_path):
    """base knows nothing; sft answers the votes; sft+sharp halves the distance to one-hot. Two seeds of the latter."""
    corpus = read_corpus(tone_corpus)
    clips = split_clips(corpus, 0)["test"]
    truth = normalize_votes([c.votes for c in clips])
    folders = [
        write_run(
            tmp_path / "base", corpus, untrained_checkpoint, [line(c, "base", "label", [1 / 6] * 6) for c in clips]
        )
    ]
    for seed in (1, 2):
        noisy = normalize_votes(truth + 0.05 * seed)
        text = [write_response(p.tolist(), "sad", CREMA_D) for p in noisy]
        lines = [line(c, f"sft@{seed}", "label", p.tolist()) for c, p in zip(clips, noisy, strict=True)]
        lines += [
            line(c, f"sft@{seed}", "verbalized", p.tolist(), t) for c, p, t in zip(clips, noisy, text, strict=True)
        ]
        adapter = tmp_path / f"adapter{seed}"
        adapter.mkdir()
        (adapter / "seconds").write_text(f"{60 * seed}\n")
        folders.append(write_run(tmp_path / f"sft{seed}", corpus, untrained_checkpoint, lines, adapter=str(adapter)))
    return folders


def test_the_page_and_the_plot_say_what_the_figures_say(runs, tone_corpus, tmp_path, capsys):
    page = tmp_path / "results.md"
    argv = [*map(str, runs), "--data", str(tone_corpus), "--out", str(tmp_path / "out"), "--markdown", str(page)]
    assert main(argv) == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [s["title"] for s in found["stages"]] == ["base label", "sft label", "sft verbalized"]
    sft = found["stages"][1]
    assert sft["seeds"] == ["1", "2"]
    assert sft["minutes"] == pytest.approx(1.5)
    assert sft["metrics"]["jsd_bits"]["estimate"] == pytest.approx(np.mean(sft["metrics"]["jsd_bits"]["seeds"]))
    assert found["said"]["helps"] == ["sft label over base"]
    text = page.read_text()
    assert "sft label beats base label" in text
    assert f"{sft['metrics']['jsd_bits']['estimate']:.3f} [" in text
    assert page.with_suffix(".svg").read_text().startswith("<?xml")
    assert text in capsys.readouterr().out
    before = page.with_suffix(".svg").read_bytes()
    assert main(argv) == 0
    assert page.with_suffix(".svg").read_bytes() == before


def test_runs_through_a_server_need_a_tokenizer_to_count_by(runs, tone_corpus, untrained_checkpoint, tmp_path):
    served = [*map(str, runs[1:]), "--data", str(tone_corpus), "--out", str(tmp_path / "out")]
    counted = tokens_of(served, tmp_path)
    for run in runs[1:]:
        record = json.loads((run / "evaluation.json").read_text())
        (run / "evaluation.json").write_text(json.dumps({**record, "model": "some-model at http://127.0.0.1:8000/v1"}))
    with pytest.raises(EvaluationError, match=r"--tokenizer: is not given.*some-model at http.*name the folder"):
        main(served)
    assert tokens_of([*served, "--tokenizer", str(untrained_checkpoint)], tmp_path) == counted
    assert tokens_of([str(runs[0]), *served], tmp_path) == counted, "a run of a folder lends its own"


def tokens_of(argv: list[str], folder: Path) -> float:
    assert main(argv) == 0
    stages = json.loads((folder / "out" / "comparison.json").read_text())["stages"]
    return next(s["metrics"]["tokens"]["estimate"] for s in stages if s["title"] == "sft verbalized")


def test_seeds_of_a_stage_that_were_asked_in_two_ways_are_refused(runs, tone_corpus, tmp_path):
    record = json.loads((runs[2] / "evaluation.json").read_text())
    (runs[2] / "evaluation.json").write_text(json.dumps({**record, "max_new_tokens": 50}))
    with pytest.raises(EvaluationError, match=r"sft@2.*max_new_tokens: is 50 here and 96 for another seed"):
        main([*map(str, runs), "--data", str(tone_corpus), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("option", "content", "said"),
    [
        ("--swaps", None, "--swaps: cannot be read: .*equivox diagnose --out"),
        ("--swaps", "<html>", "--swaps: cannot be read: .*equivox diagnose --out"),
        ("--swaps", "[1]", "--swaps: holds no verdict on swapped traces.*equivox diagnose --out"),
        ("--tokenizer", None, "--tokenizer: is no folder.*checkpoint"),
    ],
)
def test_a_file_that_is_not_what_its_option_asks_for_is_named(runs, tone_corpus, tmp_path, option, content, said):
    given = tmp_path / "given"
    if content is not None:
        given.write_text(content)
    with pytest.raises(EvaluationError, match=said):
        main([*map(str, runs), "--data", str(tone_corpus), "--out", str(tmp_path / "out"), option, str(given)])
    assert not (tmp_path / "out").exists()
