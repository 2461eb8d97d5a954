import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from reasoning.distributions import jsd_bits, nll_bits, normalize_votes, temper
from reasoning.errors import EvaluationError
from reasoning.evaluation.baselines import jsd_constant, training_prior
from reasoning.evaluation.comparisons import compare, verdict_of
from reasoning.evaluation.markdown import SECTION, results_markdown
from reasoning.evaluation.metrics import METRICS, additive_metrics, worst_scores
from reasoning.evaluation.predict import Asked
from reasoning.evaluation.predictions import pool, read_predictions
from reasoning.evaluation.record import PREDICTIONS, RECORD, REPORT, SCORES, read_record
from reasoning.evaluation.results import summary, write_results
from reasoning.evaluation.score import score
from reasoning.evaluation.statistics import Interval
from reasoning.files import replace_section


@pytest.fixture(scope="module")
def runs(bench, finished_run, tmp_path_factory) -> dict[str, Path]:
    """good (folds 0 and 1), poor (fold 0: half of it noise) and sharp (fold 0: good, with every share squared)."""
    folder = tmp_path_factory.mktemp("more")
    engines = {"poor": bench.engine(noise=0.7), "sharp": bench.engine(sharpness=2.0)}
    made = {name: bench.run(folder / name, engine, Asked(name)) for name, engine in engines.items()}
    made["good 1"] = bench.run(folder / "good1", bench.engine(), Asked("good", fold=1))
    return {"good": finished_run, **made}


@pytest.fixture(scope="module")
def scores(runs, tmp_path_factory) -> dict:
    return write_results(tmp_path_factory.mktemp("out"), [runs["good"], runs["poor"], runs["sharp"]], max_clips=2)


def by_key(scores: dict, key: str) -> dict:
    return next(s for s in scores["systems"] if s["key"] == key)


def comparison(scores: dict, system: str, versus: str) -> dict:
    return next(c for c in scores["comparisons"] if (c["system"], c["versus"]) == (system, versus))


def test_every_series_is_scored_with_every_metric_and_interval(scores):
    keys = [s["key"] for s in scores["systems"]]
    baselines = ["uniform", "training_prior", "jsd_constant", "sentence_only", "linear_probe"]
    for name in baselines:
        assert f"{name}/none/none" in keys
    for name in ("good", "poor", "sharp"):
        for rest in ("label/none", "verbalized/none", "label/shuffled", "label/silence", "label/text_only"):
            assert f"{name}/{rest}" in keys
    assert len(keys) == len(set(keys)) == 20
    for system in scores["systems"]:
        assert set(system["metrics"]) == set(METRICS)
        jsd = system["metrics"]["jsd_bits"]
        assert jsd["low"] < jsd["estimate"] < jsd["high"]
        assert system["n_clips"] == 48
        assert np.sum(system["confusion"]) == pytest.approx(system["hard"]["n_scored"])
        assert sum(b["n_clips"] for b in system["by_vote_entropy"]) == 48


def test_scores_are_those_of_the_lines(scores, runs):
    lines = [x for x in read_predictions(runs["good"] / PREDICTIONS) if x.series == ("good", "label", "none")]
    test = [x for x in lines if x.split == "test"]
    votes, probs = np.array([x.votes for x in test]), np.array([x.probabilities for x in test])
    found = by_key(scores, "good/label/none")
    assert found["metrics"]["jsd_bits"]["estimate"] == pytest.approx(jsd_bits(normalize_votes(votes), probs).mean())
    temperature = found["tempered"]["temperature"]["0"]
    expected = nll_bits(votes, temper(probs, temperature)).mean()
    assert found["tempered"]["metrics"]["nll_bits"]["estimate"] == pytest.approx(expected)


def test_unreadable_answers_stay_in_the_mean_at_their_worst(scores, runs):
    found = by_key(scores, "good/verbalized/none")
    assert found["n_failed"] == 2
    assert found["problems"]["truncated"] == 2
    assert found["parse_rate"]["estimate"] == pytest.approx(46 / 48)
    lines = [x for x in read_predictions(runs["good"] / PREDICTIONS) if x.series == ("good", "verbalized", "none")]
    kept = [x for x in lines if x.probabilities is not None]
    each = jsd_bits(normalize_votes([x.votes for x in kept]), [x.probabilities for x in kept])
    assert found["metrics"]["jsd_bits"]["estimate"] == pytest.approx((each.sum() + 2) / 48)
    each = nll_bits([x.votes for x in kept], [x.probabilities for x in kept])
    worst = worst_scores(6)["nll_bits"]
    assert found["metrics"]["nll_bits"]["estimate"] == pytest.approx((each.sum() + 2 * worst) / 48)


def test_a_readout_without_dev_answers_has_no_tempered_scores(scores):
    assert by_key(scores, "good/verbalized/none")["tempered"] is None
    assert comparison(scores, "good/verbalized/none", "uniform/none/none")["tempered"] is None


def test_the_dev_temperature_undoes_sharpening(scores):
    good, sharp = (by_key(scores, f"{name}/label/none")["tempered"] for name in ("good", "sharp"))
    assert sharp["temperature"]["0"] == pytest.approx(2 * good["temperature"]["0"], rel=0.02)
    assert sharp["metrics"]["jsd_bits"]["estimate"] == pytest.approx(good["metrics"]["jsd_bits"]["estimate"], abs=0.002)
    after = comparison(scores, "sharp/label/none", "good/label/none")["tempered"]["jsd_bits"]
    assert abs(after["estimate"]) < 0.002


def test_controls_share_the_temperature_of_their_system(scores):
    temperatures = [by_key(scores, f"good/label/{c}")["tempered"]["temperature"] for c in ("none", "silence")]
    assert temperatures[0] == temperatures[1]


def test_a_system_that_hears_beats_baselines_the_poor_system_and_its_own_controls(scores):
    for versus in ("training_prior/none/none", "sentence_only/none/none", "good/label/shuffled", "good/label/silence"):
        found = comparison(scores, "good/label/none", versus)
        assert found["verdict"] == "better"
        assert found["sentence"].startswith("good label beats ")
        assert found["metrics"]["jsd_bits"]["high"] < 0
    worse = comparison(scores, "poor/label/none", "good/label/none")
    assert worse["verdict"] == "worse"
    assert worse["sentence"].startswith("good label beats poor label")
    assert not worse["non_inferior"]
    assert comparison(scores, "good/label/shuffled", "sentence_only/none/none")["verdict"] == "worse"


def test_differences_are_paired_clip_by_clip(scores, runs):
    lines = pool([read_predictions(runs[name] / PREDICTIONS) for name in ("good", "poor")])
    each = {}
    for name in ("good", "poor"):
        mine = sorted(
            (x for x in lines if x.series == (name, "label", "none") and x.split == "test"), key=lambda x: x.id
        )
        each[name] = jsd_bits(normalize_votes([x.votes for x in mine]), [x.probabilities for x in mine])
    found = comparison(scores, "poor/label/none", "good/label/none")["metrics"]["jsd_bits"]
    assert found["estimate"] == pytest.approx((each["poor"] - each["good"]).mean())


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("jsd", "nll", "brier", "verdict"),
    [
        ((-2, -1), (-2, -1), (-1, 1), "better"),
        ((-2, -1), (-1, 1), (-2, -1), "better"),
        ((-2, -1), (-1, 1), (-1, 1), "sharpening"),
        ((-2, -1), (1, 2), (-1, 1), "sharpening"),
        ((-2, -1), (1, 2), (-2, -1), "sharpening"),
        ((-1, 1), (-2, -1), (-1, 1), "ahead"),
        ((-1, 1), (1, 2), (-1, 1), "behind"),
        ((-1, 1), (1, 2), (-2, -1), "unclear"),
        ((-1, 1), (-1, 1), (-1, 1), "unclear"),
        ((1, 2), (1, 2), (-1, 1), "worse"),
        ((1, 2), (-1, 1), (-1, 1), "farther"),
        ((1, 2), (-2, -1), (1, 2), "farther"),
        ((float("nan"), float("nan")), (float("nan"), float("nan")), (-1, 1), "unclear"),
    ],
)
def test_beats_needs_jsd_and_a_proper_score_and_none_against(jsd, nll, brier, verdict):
    found = verdict_of({"jsd_bits": interval(*jsd), "nll_bits": interval(*nll), "brier": interval(*brier)})
    assert found == verdict


@dataclass(frozen=True)
class Candidate:
    series: tuple[str, str, str]
    speakers: tuple[str, ...]
    metrics: dict
    tempered: dict | None = None

    @property
    def key(self) -> str:
        return "/".join(self.series)


def test_the_constant_that_is_merely_sharper_than_the_prior_does_not_beat_it():
    rng = np.random.default_rng(0)
    votes = np.array([rng.multinomial(9, p) for p in rng.dirichlet([0.4, 0.2, 0.3, 0.5, 1.2, 0.6], 1500)])
    speakers = tuple(str(i % 50) for i in range(1500))
    prior, constant = (
        Candidate((name, "none", "none"), speakers, additive_metrics(votes, np.tile(fit(votes), (1500, 1))))
        for name, fit in (("prior", training_prior), ("constant", jsd_constant))
    )
    found = compare(constant, prior, "baseline")
    assert found["metrics"]["jsd_bits"]["high"] < 0
    assert found["verdict"] == "sharpening"
    assert "the gain counts as sharpening" in found["sentence"]
    assert compare(prior, constant, "baseline")["verdict"] == "farther"
    assert "constant may merely be sharper" in compare(prior, constant, "baseline")["sentence"]


def test_human_reference_points_stand_beside_every_system(scores):
    raters = scores["human"]["raters"]
    assert raters["k"] == [1, 2, 3, 4]
    assert (raters["n_clips"], raters["n_left_out"]) == (48, 0)
    means = [i["estimate"] for i in raters["jsd_bits"]]
    assert means[0] > means[1] > means[2]
    assert (
        raters["models"]["uniform/none/none"]["text"] == "below 1"
        or raters["models"]["uniform/none/none"]["rater_equivalent_k"]
    )
    equivalents = [raters["models"][f"{n}/label/none"]["difference"][1]["estimate"] for n in ("good", "poor")]
    assert equivalents[0] < equivalents[1]
    floor = scores["human"]["sampling_floor"]["jsd_bits"]["estimate"]
    assert 0 < floor < by_key(scores, "uniform/none/none")["metrics"]["jsd_bits"]["estimate"]


def test_protocol_and_few_speakers_note_are_printed_with_the_numbers(scores):
    protocol = scores["protocol"]
    assert (protocol["n_clips"], protocol["n_speakers"], protocol["n_votes"]) == (48, 6, 432)
    assert protocol["folds"] == "0 of 3"
    assert protocol["subset"] == "every test clip"
    for name, value in protocol.items():
        assert value not in (None, ""), name
    assert "6 speakers" in scores["few_speakers"]
    text = summary(scores)
    assert "made-up votes" in text
    assert "good label beats training_prior" in text


def test_files_are_strict_json_and_a_report(runs, tmp_path):
    write_results(tmp_path / "out", [runs["good"]], max_clips=1)
    text = (tmp_path / "out" / SCORES).read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in scores.json"))["format"] == 1
    assert "made-up votes" in (tmp_path / "out" / REPORT).read_text()


def test_folds_are_pooled_over_all_their_speakers(runs, tmp_path):
    pooled = write_results(tmp_path, [runs["good"], runs["good 1"]], max_clips=0)
    found = by_key(pooled, "good/label/none")
    assert (found["n_clips"], found["n_speakers"]) == (96, 12)
    assert set(found["tempered"]["temperature"]) == {"0", "1"}
    assert pooled["protocol"]["folds"] == "0, 1 of 3"
    assert set(pooled["baselines"]) == {"0", "1"}


def test_the_order_of_lines_does_not_change_a_score(runs):
    lines, records = read_predictions(runs["good"] / PREDICTIONS), [read_record(runs["good"])]
    one, other = (score(x, records) for x in (lines, lines[::-1]))
    for system in one["systems"]:
        assert by_key(other, system["key"])["metrics"] == system["metrics"]


def test_a_system_that_lacks_clips_is_named_with_the_clips(runs, tmp_path):
    lines = pool([read_predictions(runs[name] / PREDICTIONS) for name in ("good", "poor")])
    gone = [x for x in lines if not (x.system == "poor" and x.readout == "label" and x.id in ("s00-1", "s02-2"))]
    with pytest.raises(EvaluationError, match=r"poor/label/none.*2 of the 48 clips.*s00-1, s02-2"):
        score(gone, [read_record(runs["good"]), read_record(runs["poor"])])


def test_folds_of_one_system_cannot_be_mixed_with_another_fold_of_another(runs, tmp_path):
    with pytest.raises(EvaluationError, match=r"poor/label/none.*48 of the 96 clips"):
        write_results(tmp_path / "out", [runs["good"], runs["good 1"], runs["poor"]])
    assert not (tmp_path / "out").exists()


def test_runs_that_disagree_are_refused(runs, tmp_path):
    lines = read_predictions(runs["good"] / PREDICTIONS)
    other = [
        replace(x, probabilities=(1.0, 0, 0, 0, 0, 0)) if x.series == ("good", "label", "none") else x for x in lines
    ]
    with pytest.raises(EvaluationError, match="different answers of 'good'"):
        pool([lines, other])
    votes = [replace(x, votes=(9, 0, 0, 0, 0, 0)) for x in lines]
    with pytest.raises(EvaluationError, match="in one run and"):
        pool([lines, votes])
    assert pool([lines, lines]) == lines
    with pytest.raises(EvaluationError, match="name each run once"):
        write_results(tmp_path, [runs["good"], runs["good"]])
    record = read_record(runs["good"])
    with pytest.raises(EvaluationError, match=r"corpus_fingerprint: .*others 'c0'"):
        score(lines, [record, replace(record, corpus_fingerprint="c1")])
    for field, other in (
        ("max_new_tokens", 50),
        ("model_fingerprint", "m1"),
        ("prompt_fingerprint", "p1"),
        ("engine", "x"),
    ):
        with pytest.raises(EvaluationError, match=f"{field}: 'good' was asked with .* on one fold and .*{other}.* on"):
            score(lines, [record, replace(record, fold=1, **{field: other})])


def test_a_control_that_only_some_folds_have_is_named_with_the_way_out(runs):
    lines = pool([read_predictions(runs[name] / PREDICTIONS) for name in ("good", "good 1")])
    some = [x for x in lines if not (x.control == "silence" and x.fold == 1)]
    with pytest.raises(
        EvaluationError, match=r"good/label/silence.*48 of the 96.*delete the lines .* predictions.jsonl of fold 0"
    ):
        score(some, [read_record(runs[name]) for name in ("good", "good 1")])


def test_thinking_closed_by_force_and_names_with_markdown_in_them_show_in_the_table(runs):
    lines = [
        replace(x, system="a|b <!-- end -->") if x.system == "good" else x
        for x in read_predictions(runs["good"] / PREDICTIONS)
    ]
    lines = [replace(x, problems=("forced",)) if x.readout == "label" and x.id == "s00-1" else x for x in lines]
    text = results_markdown(score(lines, [replace(read_record(runs["good"]), system="a|b <!-- end -->")]))
    row = next(x for x in text.splitlines() if x.startswith("| a"))
    assert row.startswith("| a\\|b &lt;!-- end --&gt; label |")
    assert row.split("|")[-3].strip() == "100.0%, 1 forced"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="cannot be read"):
        write_results(tmp_path / "out", [tmp_path])
    (tmp_path / RECORD).write_text('{"system": "x"}')
    with pytest.raises(EvaluationError, match="not the record of an evaluation"):
        write_results(tmp_path / "out", [tmp_path])


def test_one_speaker_gives_scores_without_intervals_and_no_claim(runs):
    lines = [x for x in read_predictions(runs["good"] / PREDICTIONS) if x.split == "dev" or x.speaker == "s02"]
    found = score(lines, [read_record(runs["good"])])
    assert by_key(found, "good/label/none")["metrics"]["jsd_bits"]["low"] is None
    assert {c["verdict"] for c in found["comparisons"]} == {"unclear"}
    assert all("(no interval)" in c["sentence"] and "nan" not in c["sentence"] for c in found["comparisons"])
    json.dumps(found, allow_nan=False)


def test_markdown_replaces_only_what_stands_between_the_markers(scores, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- results -->\nan outdated table\n<!-- end -->\nafter\n")
    replace_section(path, SECTION, results_markdown(scores))
    text = path.read_text()
    assert text.startswith("before\n<!-- results -->\n\n| system |")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "outdated" not in text
    assert "made-up votes" in text
    table, differences = ([x for x in part.splitlines() if x.startswith("|")] for part in text.split("<details>")[:2])
    assert len(table) == 2 + len(scores["systems"])
    wanted = [c for c in scores["comparisons"] if c["kind"] in ("baseline", "system")]
    assert len(differences) == 2 + len(wanted)
    for rows in (table, differences):
        assert len({row.count("|") for row in rows}) == 1
    for row, comparison in zip(differences[2:], wanted, strict=True):
        assert f"| {comparison['metrics']['jsd_bits']['estimate']:+.3f} [" in row
        assert row.rstrip(" |").split("| ")[-1].startswith(comparison["verdict"])
    replace_section(path, SECTION, results_markdown(scores))
    assert path.read_text() == text
