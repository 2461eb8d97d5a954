"""equivox prepare preferences on the trained checkpoint: pairs of the policy's own answers and of the votes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_builders.pair_file import read_pairs
from data_builders.rows import read_corpus, split_clips
from data_builders.traces.measured import corpus_cues
from data_builders.traces.trace_file import read_traces
from launch.prepare import main
from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.errors import ConfigError
from reasoning.grounding import ground, levels_of
from reasoning.response import read_response


def arguments(trained, out: Path, **changes) -> list[str]:
    options = {
        "data": trained.corpus, "model": trained.model, "out": out, "limit": 6, "samples": 4, "temperature": 1.3,
        "own-margin": 0.05, "own-good": 0.9, "batch-size": 3,
    } | changes  # fmt: skip
    return ["preferences", *(part for key, value in options.items() for part in (f"--{key}", str(value)))]


@pytest.fixture(scope="module")
def finished(trained_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    assert main(arguments(trained_checkpoint, out)) == 0
    return out


def test_every_pair_is_about_a_training_clip_and_its_chosen_answer_is_nearer_by_the_margin(
    finished, trained_checkpoint
):
    corpus = read_corpus(trained_checkpoint.corpus)
    train = {clip.id: clip for clip in split_clips(corpus, 0)["train"][:6]}
    pairs, made = read_pairs(finished)
    assert made == {"corpus": "tones", "emotions": list(corpus.info.emotions.names), "level": "no_think"}
    assert {pair.kind for pair in pairs} == {"own", "contrast"}
    assert all(pair.chosen_bits <= 0.9 for pair in pairs)
    for pair in pairs:
        votes = normalize_votes([train[pair.id].votes])
        chosen = read_response(pair.chosen, corpus.info.emotions).probabilities
        rejected = read_response(pair.rejected, corpus.info.emotions).probabilities
        far = float(jsd_bits(votes, [rejected])[0]) if rejected else 1.0
        assert float(jsd_bits(votes, [chosen])[0]) == pytest.approx(pair.chosen_bits)
        assert far == pytest.approx(pair.rejected_bits)
        assert far - pair.chosen_bits >= (0.05 if pair.kind == "own" else 0.2)


def test_the_report_beside_the_pairs_adds_up(finished):
    told = json.loads(finished.with_suffix(".json").read_text())
    pairs, _ = read_pairs(finished)
    assert sum(told["pairs"].values()) == len(pairs)
    assert told["asked"] == {"clips": 6, "speakers": 1, "speakers_heard": 0}
    reasons = told["left_out"].get("own", {})
    assert told["pairs"].get("own", 0) + sum(n for why, n in reasons.items() if why != "truncated sample") == 6
    differences = [p.chosen_tokens - p.rejected_tokens for p in pairs]
    assert told["token_difference_after"]["all"] == pytest.approx(sum(differences) / len(pairs), abs=1e-3)


def test_what_was_sampled_otherwise_than_from_the_whole_policy_is_refused(finished, trained_checkpoint, tmp_path):
    whole = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert json.loads(finished.with_suffix(".json").read_text())["policy"].items() >= whole.items()
    head, *answers = finished.with_suffix(".samples.jsonl").read_text().splitlines(keepends=True)
    before = {key: value for key, value in json.loads(head).items() if key not in whole}  # as it was once written
    out = tmp_path / "old.parquet"
    out.with_suffix(".samples.jsonl").write_text(json.dumps(before) + "\n" + "".join(answers))
    with pytest.raises(ConfigError, match=r"sampled otherwise \(min_p was None, is 0.0, .*top_k was None, is 0"):
        main(arguments(trained_checkpoint, out))


def test_a_killed_run_samples_only_what_is_missing_and_ends_with_the_same_pairs(
    finished, trained_checkpoint, tmp_path, capsys
):
    out = tmp_path / "again.parquet"
    samples = finished.with_suffix(".samples.jsonl").read_bytes().splitlines(keepends=True)
    assert len(samples) == 7
    # Two clips of the first three are there and half a line: those three are sampled again, as they were.
    out.with_suffix(".samples.jsonl").write_bytes(b"".join(samples[:3]) + samples[3][:20])
    assert main(arguments(trained_checkpoint, out)) == 0
    assert read_pairs(out) == read_pairs(finished)
    assert "pairs about" in capsys.readouterr().out


def test_parts_of_the_speakers_do_not_overlap_and_the_samples_of_another_part_are_refused(
    finished, trained_checkpoint, tmp_path
):
    speakers = []
    clips = {clip.id: clip.speaker for clip in read_corpus(trained_checkpoint.corpus).clips}
    for part in ("0:0.5", "0.5:1"):
        out = tmp_path / f"{part[-1]}.parquet"
        main([*arguments(trained_checkpoint, out, limit=0, speakers=part), "--kinds", "contrast"])
        speakers.append({clips[pair.id] for pair in read_pairs(out)[0]})
    assert all(speakers)
    assert not speakers[0] & speakers[1]
    with pytest.raises(ConfigError, match=r"sampled otherwise \(speakers was None, is '0:0.5'\)"):
        main(arguments(trained_checkpoint, finished, speakers="0:0.5"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"speakers": "0.5"}, "speakers: is '0.5', expected FROM:TO"),
        ({"speakers": "0.5:0.2"}, "expected FROM:TO"),
        ({"samples": 1}, "--samples: is 1, expected 2 or more"),
        ({"own-margin": 0}, "--own-margin"),
        ({"share-parts": 3}, "--share-parts: is 3, expected one of 2, 4, 5, 10"),
        ({"temperature": 0}, "--temperature"),
        ({"level": "think"}, "--traces: is missing: level think asks contrast pairs for thinking"),
        ({"kinds": "grounding"}, "--kinds grounding: is of use only where the model thinks"),
        ({"traces": "traces.parquet"}, "--traces: is of use only where the model thinks"),
        ({"contradictions": 0}, "--contradictions: is 0, expected 1 or more"),
        ({"out": "pairs.json"}, "expected a name that ends in .parquet"),
    ],
)
def test_options_that_would_give_no_pairs_are_refused_at_once(changes, says, trained_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=says):
        main(arguments(trained_checkpoint, **({"out": tmp_path / "never.parquet"} | changes)))
    assert not list(tmp_path.iterdir())


def test_at_level_think_contrast_and_grounding_pairs_think_verified_traces_of_the_clip(trained_checkpoint, tmp_path):
    data, traces_file, out = tmp_path / "tones", tmp_path / "traces.parquet", tmp_path / "pairs.parquet"
    shutil.copytree(trained_checkpoint.corpus, data)  # what is measured is kept in the corpus folder
    main(["cot", "--data", str(data), "--out", str(traces_file), "--show-votes", "--workers", "1"])
    options = {"data": data, "level": "think", "traces": traces_file, "limit": 0}
    main([*arguments(trained_checkpoint, out, **options), "--kinds", "contrast", "grounding"])

    corpus = read_corpus(data)
    traces = read_traces(traces_file, corpus)
    levels = {name: levels_of(cues) for name, cues in corpus_cues(corpus, data).items()}
    pairs, made = read_pairs(out)
    training = {clip.id for clip in split_clips(corpus, 0)["train"]}
    voices = {text.splitlines()[1] for name, text in traces.items() if name in training}
    assert made["level"] == "think"
    assert {pair.kind for pair in pairs} == {"contrast", "grounding"}
    for pair in pairs:
        chosen, rejected = (read_response(text, corpus.info.emotions) for text in (pair.chosen, pair.rejected))
        assert chosen.thinking == traces[pair.id]
        if pair.kind == "grounding":
            assert rejected.probabilities == chosen.probabilities
            lines = list(zip(chosen.thinking.splitlines(), rejected.thinking.splitlines(), strict=True))
            assert [a == b for a, b in lines] == [True, False, True, True]
            assert lines[1][1] in voices
            true, false = (line.removeprefix("Voice: ") for line in lines[1])
            assert not ground(true, levels[pair.id]).false
            assert len(ground(false, levels[pair.id]).false) >= 2
        else:
            assert rejected.thinking in traces.values()
            assert rejected.thinking != chosen.thinking
