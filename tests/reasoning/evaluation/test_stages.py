"""Stages over seeds: how they are pooled, what each is compared with, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reasoning.cues import CUES
from reasoning.distributions import brier, jsd_bits, nll_bits, normalize_votes
from reasoning.emotions import CREMA_D
from reasoning.errors import EvaluationError
from reasoning.evaluation.comparisons import verdict_of
from reasoning.evaluation.human import raters_against_the_rest
from reasoning.evaluation.markdown import escape
from reasoning.evaluation.predictions import SAMPLES, Prediction, join_answers
from reasoning.evaluation.stages import Told, _said, compare_stages, pool_seeds
from reasoning.evaluation.stages_page import stages_markdown, stages_plot
from reasoning.evaluation.statistics import Interval, jackknife_interval, mean_of
from reasoning.grounding import is_measured
from reasoning.response import write_response
from reasoning.verifier import Trace, write_trace
from rewards.grounding import grounding

RNG = np.random.default_rng(0)
N, SPEAKERS = 24, 6
VOTES = RNG.multinomial(9, [0.3, 0.1, 0.1, 0.2, 0.2, 0.1], N)
HIGH, LOW = dict.fromkeys(CUES, 2), dict.fromkeys(CUES, -2)
TOLD = Told(
    CREMA_D,
    tokens=len,
    thinks=frozenset({"a@1", "a@2"}),
    levels={f"c{i}": HIGH if i % 2 else LOW for i in range(N)},
    donors={f"c{i}": f"c{(i + 1) % N}" for i in range(N)},
    minutes={"a@1": 2.0, "a@2": 4.0},
    alphas={0: [1.0, 0.5, 0.5, 1.0, 1.0, 0.5]},
)


def line(i: int, system: str, readout: str, shares, text: str | None = None) -> Prediction:
    return Prediction(
        system=system, readout=readout, prefix=None, control="none", split="test", id=f"c{i}",
        speaker=f"s{i % SPEAKERS}", fold=0, transcript="so", votes=tuple(int(v) for v in VOTES[i]),
        probabilities=None if shares is None else tuple(shares), vote=None, problems=(), text=text, audio=None,
    )  # fmt: skip


def lines(system: str, shares_NK, readout="label", texts=None) -> list[Prediction]:
    texts = texts or [None] * N
    return [line(i, system, readout, s, t) for i, (s, t) in enumerate(zip(shares_NK, texts, strict=True))]


def mixed(weight: float, noise_seed: int = 0) -> np.ndarray:
    """The votes' own shares mixed with uniform ones and a little noise."""
    noise = np.random.default_rng(noise_seed).dirichlet(np.ones(6), N)
    return weight * normalize_votes(VOTES) + (0.95 - weight) / 6 + 0.05 * noise


def test_seeds_are_pooled_by_the_clip_and_the_interval_is_clustered_by_speaker():
    seeds = [mixed(0.3, 1), mixed(0.5, 2), mixed(0.7, 3)]
    found = compare_stages([p for k, s in enumerate(seeds, 1) for p in lines(f"a@{k}", s)], TOLD)
    stage = found["stages"][0]
    for name, score in (("jsd_bits", jsd_bits), ("brier", brier)):
        per_seed = [score(normalize_votes(VOTES), s) for s in seeds]
        expected = jackknife_interval(mean_of(np.mean(per_seed, axis=0)), [f"s{i % SPEAKERS}" for i in range(N)])
        metric = stage["metrics"][name]
        assert metric["estimate"] == pytest.approx(expected.estimate)
        assert (metric["low"], metric["high"]) == pytest.approx((expected.low, expected.high))
        assert metric["seeds"] == pytest.approx([p.mean() for p in per_seed])
    assert stage["metrics"]["nll_bits"]["seeds"][0] == pytest.approx(nll_bits(VOTES, seeds[0]).mean())
    assert stage["seeds"] == ["1", "2", "3"]
    assert stage["minutes"] == 3


def test_a_stage_is_compared_with_what_it_stands_on():
    systems = ["base", "sft@1", "think@1", "think+dpo@1", "think+grpo@1", "think+grpo+gold@1", "think+grpo+gold@2"]
    found = compare_stages([p for k, name in enumerate(systems) for p in lines(name, mixed(0.4, k))], TOLD)
    assert {c["stage"]: c["under"] for c in found["comparisons"]} == {
        "sft": "base", "think": "sft", "think+dpo": "think", "think+grpo": "think", "think+grpo+gold": "think+grpo",
    }  # fmt: skip


def test_a_stage_that_only_sharpens_is_said_to():
    """Three votes a clip from one distribution: answering it sharpened lowers jsd_bits, and both proper scores rise."""
    truth = np.array([0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    sharp = truth**1.3 / (truth**1.3).sum()
    votes = np.random.default_rng(0).multinomial(3, truth, 240)

    def answers(system, shares):
        made = [replace(line(0, system, "label", shares), id=f"c{i}", speaker=f"s{i % 24}") for i in range(240)]
        return [replace(p, votes=tuple(int(v) for v in row)) for p, row in zip(made, votes, strict=True)]

    found = compare_stages([*answers("true", truth), *answers("true+sharp", sharp)], replace(TOLD, levels={}))
    assert found["said"]["sharpens"] == ["true+sharp label over true"]
    said = "but nll_bits and brier are clearly higher: the gain counts as sharpening"
    assert said in found["comparisons"][0]["sentence"]


def test_helping_doing_nothing_and_hurting_are_told_apart():
    uniform = np.full((N, 6), 1 / 6)
    near = mixed(0.6)
    found = compare_stages([*lines("none", uniform), *lines("none+near", near), *lines("none+same", uniform)], TOLD)
    assert found["said"]["helps"] == ["none+near label over none"]
    assert found["said"]["does not help"] == ["none+same label over none"]
    verdicts = {c["stage"]: c for c in found["comparisons"]}
    assert verdicts["none+near"]["sentence"].startswith("none+near label beats none label")
    back = compare_stages([*lines("near", near), *lines("near+lost", uniform)], TOLD)
    assert back["said"]["hurts"] == ["near+lost label over near"]


def test_a_stage_that_proper_scores_praise_is_not_said_to_be_useless():
    """As near by jsd_bits, which forgives a zero more than nll_bits does."""
    zeros = np.where(np.arange(6) == 5, 0.0, 0.2) + np.zeros((N, 6))
    shared = np.where(np.arange(6) == 5, 0.02, 0.196) + np.zeros((N, 6))
    found = compare_stages([*lines("a", zeros), *lines("a+b", shared)], TOLD)
    assert found["comparisons"][0]["verdict"] in ("ahead", "better")
    assert "a+b label over a" not in found["said"]["does not help"]


def test_stages_of_other_seeds_are_compared_on_the_seeds_that_both_have():
    """A seed that went wrong in one stage and was not run in the next is not the next one's doing."""
    bad = np.full((N, 6), 1 / 6)
    rows = [*lines("a@1", mixed(0.5)), *lines("a@2", bad), *lines("a+b@1", mixed(0.5))]
    found = compare_stages(rows, TOLD)
    assert found["comparisons"][0]["seeds"] == ["1"]
    assert found["comparisons"][0]["metrics"]["jsd_bits"]["estimate"] == 0
    with pytest.raises(EvaluationError, match=r"\[a\+b\] seeds: has no seed in common with a,"):
        compare_stages([*lines("a@2", bad), *lines("a+b@1", mixed(0.5))], TOLD)


def test_thinking_that_was_closed_by_force_is_counted_beside_its_label_readout():
    rows = [replace(p, problems=("forced",) if i < 6 else ()) for i, p in enumerate(lines("a@1", mixed(0.5)))]
    stages = compare_stages([*rows, *lines("b@1", mixed(0.5))], TOLD)["stages"]
    assert stages[0]["metrics"]["forced"]["estimate"] == 6 / N
    assert "forced" not in stages[1]["metrics"]


def test_a_stage_is_not_said_to_be_useless_where_a_gain_is_still_possible():
    """The same clips by few speakers who differ: the interval is wide, and nothing is shown."""
    torn = np.where((np.arange(N) % SPEAKERS < 3)[:, None], mixed(0.8), mixed(0.1))
    found = compare_stages([*lines("a", mixed(0.45)), *lines("a+b", torn)], TOLD)
    jsd = found["comparisons"][0]["metrics"]["jsd_bits"]
    assert jsd["low"] < -0.01 < 0.01 < jsd["high"]
    assert found["said"]["undecided"] == ["a+b label over a"]


def answer(i: int, claim: str) -> str:
    voice = ", ".join(f"{claim} {noun}" for noun in ("pitch", "loudness"))
    voice += f", {'fast' if claim == 'very high' else 'slow'} pace"
    thinking = write_trace(Trace("plain", voice, "fear and sad", "high pitch suits fear and sad"))
    return write_response(normalize_votes(VOTES)[i].tolist(), "sad", CREMA_D, thinking)


def test_written_answers_have_closeness_parse_rate_tokens_and_grounding_for_their_sound_and_anothers():
    texts = [answer(i, "very high" if i % 2 else "very low") for i in range(N)]
    shares = list(normalize_votes(VOTES))
    texts[0], shares[0] = "I cannot tell", None
    metrics = compare_stages(lines("a@1", shares, "verbalized", texts), TOLD)["stages"][0]["metrics"]
    assert metrics["parsed"]["estimate"] == pytest.approx((N - 1) / N)
    assert metrics["closeness"]["estimate"] == pytest.approx((N - 1) / N)
    assert metrics["jsd_bits"]["estimate"] == pytest.approx(1 / N), "what cannot be read scores as badly as possible"
    assert metrics["tokens"]["estimate"] == pytest.approx(np.mean([len(t) for t in texts]))
    assert metrics["grounding"]["estimate"] == pytest.approx((N - 1) / N)
    assert metrics["grounding_swapped"]["estimate"] == 0, "every other clip is the other way round"
    assert metrics["grounding_heard"]["estimate"] == pytest.approx((N - 1) / N)


def test_only_systems_that_were_asked_to_think_have_grounding_and_not_thinking_then_earns_nothing():
    shares = normalize_votes(VOTES)
    silent = [write_response(s.tolist(), "sad", CREMA_D) for s in shares]
    thought = [answer(i, "very high" if i % 2 else "very low") for i in range(N)]
    rows = [*lines("a@1", shares, "verbalized", thought), *lines("a@2", shares, "verbalized", silent)]
    stages = compare_stages([*rows, *lines("b@1", shares, "verbalized", silent)], TOLD)["stages"]
    assert stages[0]["metrics"]["grounding"]["seeds"] == [1, 0]
    assert "grounding" not in stages[1]["metrics"]


def test_a_clip_of_which_nothing_could_be_measured_is_not_judged_as_the_reward_does_not():
    """Half of the clips say what is true and half what is false; two true ones lose their cues, one a donor's."""
    shares = normalize_votes(VOTES)
    texts = [answer(i, "very high" if i < N // 2 else "very low") for i in range(N)]
    levels: dict[str, Any] = {f"c{i}": dict.fromkeys(CUES, 2) for i in range(N)}
    levels["c0"] = levels["c1"] = dict.fromkeys(CUES)
    told = replace(TOLD, levels=levels)
    metrics = compare_stages(lines("a@1", shares, "verbalized", texts), told)["stages"][0]["metrics"]
    for key, clips in (("grounding", [f"c{i}" for i in range(N)]), ("grounding_swapped", list(TOLD.donors.values()))):
        known = [levels[clip] if is_measured(levels[clip]) else None for clip in clips]
        paid = [p for p in grounding(texts, [CREMA_D.names] * N, known) if p is not None]
        assert len(paid) == N - 2
        assert metrics[key]["estimate"] == pytest.approx(np.mean(paid))
        assert metrics[key]["seeds"] == pytest.approx([np.mean(paid)])
        assert metrics[key]["low"] < np.mean(paid) < metrics[key]["high"]
    nothing = replace(TOLD, levels={f"c{i}": dict.fromkeys(CUES) for i in range(N)})
    assert "grounding" not in compare_stages(lines("a@1", shares, "verbalized", texts), nothing)["stages"][0]["metrics"]


def test_eight_answers_to_a_clip_are_eight_in_tokens_and_in_grounding():
    """Half of each clip's samples say what is true: as many tokens as one answer has, and half of its grounding."""
    shares = normalize_votes(VOTES)
    true, false = (lambda i: "very high" if i % 2 else "very low"), (lambda i: "very low" if i % 2 else "very high")
    one = [answer(i, true(i)) for i in range(N)]
    eight = [join_answers([answer(i, (true if k % 2 else false)(i)) for k in range(SAMPLES)]) for i in range(N)]
    rows = [*lines("a@1", shares, "guided", one), *lines("a@1", shares, "guided_mean", eight)]
    single, mean = (stage["metrics"] for stage in compare_stages(rows, TOLD)["stages"])
    assert mean["tokens"]["estimate"] == pytest.approx(single["tokens"]["estimate"])
    assert (single["grounding"]["estimate"], mean["grounding"]["estimate"]) == pytest.approx((1, 0.5))


def test_baselines_stand_first_and_are_compared_with_nothing():
    rows = [*lines("a@1", mixed(0.5)), *(replace(p, readout="none") for p in lines("training_prior", mixed(0.1)))]
    rows += [replace(p, readout="none") for p in lines("uniform", mixed(0.0))]
    stages = pool_seeds(rows, TOLD)
    assert [(s.name, s.readout) for s in stages] == [("training_prior", "none"), ("a", "label")]
    assert compare_stages(rows, TOLD)["comparisons"] == []


def test_people_stand_beside_the_stages_on_the_same_clips():
    found = compare_stages(lines("a@1", mixed(0.5)), TOLD)["human"]
    for k, interval in found["raters"].items():
        assert interval["estimate"] == pytest.approx(raters_against_the_rest(VOTES, k).mean())
    assert found["n_rated"] == N
    assert 0 < found["sampling_floor"]["estimate"] < found["raters"][4]["estimate"]


def test_a_seed_that_lacks_a_clip_is_named():
    with pytest.raises(
        EvaluationError, match=r"a@2/label.*has no answer for 1 of the 24 clips that others answer \(c0"
    ):
        compare_stages([*lines("a@1", mixed(0.5)), *lines("a@2", mixed(0.5))[1:]], TOLD)
    with pytest.raises(EvaluationError, match="no answer of a model"):
        compare_stages([replace(p, split="dev") for p in lines("a@1", mixed(0.5))], TOLD)


def test_the_page_has_every_stage_and_sentence_and_the_plot_is_the_same_twice():
    rows = [p for k in (1, 2) for p in lines(f"a@{k}", mixed(0.2 * k, k))] + lines("a+b@1", mixed(0.6))
    found = {**compare_stages(rows, TOLD), "statement": "test", "protocol": "none"}
    page = stages_markdown(found, "the command", "plot.svg", ["A note."])
    for stage in found["stages"]:
        metric = stage["metrics"]["jsd_bits"]
        assert f"| {stage['title']} | {metric['estimate']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]" in page
    low, high = (f(found["stages"][0]["metrics"]["jsd_bits"]["seeds"]) for f in (min, max))
    assert f"{{{low:.3f}–{high:.3f}}}" in page
    assert escape(found["comparisons"][0]["sentence"]) in page
    assert "![jsd_bits of every stage, and its difference from the stage that it stands on](plot.svg)" in page
    assert "A note." in page
    assert f"costs an oracle {found['human']['sampling_floor']['estimate']:.3f}; raters" in page
    assert stages_plot(found) == stages_plot(found)
    assert "a+b label" in stages_plot(found)


def test_what_lies_off_the_plots_scales_stands_there_as_a_figure():
    votes = mixed(1.0)
    shares = np.eye(votes.shape[1])[votes.argmin(axis=1)]
    plots = []
    for other in (mixed(0.9), shares):
        found = compare_stages([*lines("a", mixed(0.9)), *lines("a+b", other)], TOLD)
        plots.append((stages_plot(found), found["comparisons"][0]["metrics"]["jsd_bits"]["estimate"]))
    (near, _), (away, difference) = plots
    assert difference > 0.1
    assert f"<!-- {difference:.3f} -->" in away
    assert f"<!-- {difference:.3f} -->" not in near


@pytest.mark.parametrize("jsd", [0.02, 0.0])
def test_a_stage_that_a_proper_score_praises_is_not_said_not_to_help(jsd):
    differences = {
        "jsd_bits": Interval(jsd, jsd - 0.005, jsd + 0.005),
        "nll_bits": Interval(-0.2, -0.3, -0.1),
        "brier": Interval(0.03, 0.01, 0.05),
    }
    assert _said(verdict_of(differences), differences) == "undecided"
    differences["nll_bits"] = Interval(0.2, 0.1, 0.3)
    assert _said("farther", differences) == "does not help"
