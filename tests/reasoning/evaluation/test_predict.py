import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reasoning.emotions import CREMA_D
from reasoning.errors import EvaluationError
from reasoning.evaluation.predict import Asked, Job, PredictionFile, plan_jobs, predict, request_for, some_clips
from reasoning.evaluation.predictions import SAMPLES, WRITTEN, read_predictions
from reasoning.evaluation.record import PREDICTIONS, open_run, read_record
from reasoning.response import read_response


def test_every_system_readout_control_and_split_has_its_lines(finished_run):
    lines = read_predictions(finished_run / PREDICTIONS)
    counted = Counter((line.system, line.readout, line.control, line.split) for line in lines)
    baselines = ("uniform", "training_prior", "jsd_constant", "sentence_only", "linear_probe")
    expected = {(name, "none", "none", split): n for name in baselines for split, n in (("dev", 24), ("test", 48))}
    expected |= {("good", "label", "none", "dev"): 24, ("good", "verbalized", "none", "test"): 48}
    expected |= {("good", "label", control, "test"): 48 for control in ("none", "shuffled", "silence", "text_only")}
    assert counted == expected
    assert {line.fold for line in lines} == {0}


def test_unreadable_answers_keep_their_text_and_their_problem(finished_run):
    bad = [x for x in read_predictions(finished_run / PREDICTIONS) if x.problems]
    assert {x.id for x in bad} == {"s00-0", "s01-3"}
    assert all(x.probabilities is None and x.text and "truncated" in x.problems for x in bad)


def test_lines_name_the_audio_that_was_really_given(finished_run):
    lines = [x for x in read_predictions(finished_run / PREDICTIONS) if x.system == "good" and x.split == "test"]
    for line in lines:
        own = f"{line.id}.wav"
        if line.control == "none":
            assert line.audio == own
        elif line.control == "shuffled":
            assert line.audio is not None
            assert not line.audio.startswith(line.speaker)
        else:
            assert line.audio is None


def test_a_request_keeps_the_words_and_changes_only_the_audio(bench):
    clip, donor = bench.clips[0], bench.clips[30]
    for control, donors in (("none", {}), ("shuffled", {clip.id: donor}), ("silence", {}), ("text_only", {})):
        request = request_for(clip, Job("label", control, "test", (clip,), donors), "no_think", Path("root"))
        assert (request.id, request.transcript) == (clip.id, clip.transcript)
        if control == "text_only":
            assert request.audio is None
        elif control == "silence":
            assert isinstance(request.audio, np.ndarray)
            assert request.audio.shape == (8000,)
        else:
            assert request.audio == Path("root") / (donor if donors else clip).audio


def test_a_killed_run_goes_on_to_the_same_predictions_without_asking_again(bench, finished_run, tmp_path):
    asked, out = Asked("good"), tmp_path / "run"
    engine = bench.engine()
    engine.garbled, engine.die_after = {"s00-0", "s01-3"}, 100
    with pytest.raises(KeyboardInterrupt):
        bench.run(out, engine, asked)
    with (out / PREDICTIONS).open("a") as stream:
        stream.write('{"system": "good", "readout": "la')
    before = len((out / PREDICTIONS).read_bytes().split(b"\n")) - 1
    engine.die_after, engine.calls = None, 0
    bench.run(out, engine, asked)
    whole = read_predictions(finished_run / PREDICTIONS)
    assert sorted(read_predictions(out / PREDICTIONS), key=lambda x: x.key) == sorted(whole, key=lambda x: x.key)
    assert engine.calls == len(whole) - before
    engine.calls = 0
    bench.run(out, engine, asked)
    assert engine.calls == 0


@pytest.mark.parametrize("field", ["adapter_fingerprint", "prompt_fingerprint", "corpus_fingerprint", "system"])
def test_a_folder_of_another_request_is_refused_and_the_difference_named(bench, tmp_path, field):
    clips = {"test": bench.clips[:48], "dev": bench.clips[48:72], "train": bench.clips[72:]}
    record = bench.record(Asked("good"), clips)
    open_run(tmp_path, record)
    open_run(tmp_path, replace(record, limit=3))
    with pytest.raises(EvaluationError, match=f"another run \\({field} was"):
        open_run(tmp_path, replace(record, **{field: "other"}))


def test_answers_of_runs_with_several_limits_are_recorded_under_the_widest(bench, tmp_path):
    clips = {"test": bench.clips[:48], "dev": bench.clips[48:72], "train": bench.clips[72:]}
    record = bench.record(Asked("good"), clips)
    for limit, widest in ((3, 3), (7, 7), (5, 7), (None, None), (5, None)):
        open_run(tmp_path, replace(record, limit=limit))
        assert read_record(tmp_path).limit == widest


def test_predictions_without_a_record_are_not_taken_over(bench, tmp_path):
    (tmp_path / PREDICTIONS).write_text("")
    clips = {"test": bench.clips[:48], "dev": bench.clips[48:72], "train": bench.clips[72:]}
    with pytest.raises(EvaluationError, match=r"no evaluation\.json"):
        open_run(tmp_path, bench.record(Asked("good"), clips))


def test_smaller_limits_are_subsets_of_larger_ones(bench):
    few, more = some_clips(bench.clips, 5), some_clips(bench.clips, 20)
    assert len(few) == 5
    assert {c.id for c in few} < {c.id for c in more}
    assert list(more) == [c for c in bench.clips if c in more]
    assert some_clips(bench.clips, None) == tuple(bench.clips)
    with pytest.raises(EvaluationError, match="at least 1"):
        some_clips(bench.clips, 0)


def test_a_limited_run_plays_the_donors_of_a_full_one(bench):
    asked = Asked("good", controls=("shuffled",))
    full, _ = plan_jobs(asked, [], bench.clips, bench.clips)
    some, _ = plan_jobs(asked, [], bench.clips[:5], bench.clips)
    donors = [next(job.donors for job in jobs if job.control == "shuffled") for jobs in (full, some)]
    assert [donors[0][c.id].id for c in bench.clips[:5]] == [donors[1][c.id].id for c in bench.clips[:5]]


def test_the_guided_mean_is_the_mean_of_its_answers_each_of_another_sample(bench, tmp_path):
    job = Job("guided_mean", "none", "test", tuple(bench.clips[:3]), {})
    with PredictionFile(tmp_path / "p.jsonl") as sink:
        predict(bench.engine(), [job], Asked("x", seed=4), CREMA_D, bench.root, sink)
    for line in read_predictions(tmp_path / "p.jsonl"):
        assert line.text is not None
        answers = [read_response(text, CREMA_D).probabilities for text in line.answers]
        assert len(set(answers)) == len(answers) == SAMPLES
        np.testing.assert_allclose(line.probabilities, np.mean(np.array(answers), axis=0))
        assert line.vote == CREMA_D.names[int(np.argmax(line.probabilities))]


def test_one_sample_that_cannot_be_read_spoils_the_mean(bench, tmp_path):
    engine = bench.engine()
    engine.garbled = {bench.clips[1].id}
    job = Job("guided_mean", "none", "test", tuple(bench.clips[:2]), {})
    with PredictionFile(tmp_path / "p.jsonl") as sink:
        predict(engine, [job], Asked("x"), CREMA_D, bench.root, sink)
    good, bad = read_predictions(tmp_path / "p.jsonl")
    assert not good.problems
    assert bad.probabilities is None
    assert "truncated" in bad.problems


def test_only_guided_readouts_are_asked_for_under_the_grammar(bench, tmp_path):
    guided = []

    class Noting:
        name = "noting"

        def generate(self, requests, **options):
            guided.append(options["guided"])
            options.pop("guided")
            return bench.engine().generate(requests, **options)

        score_labels = None

    jobs = [Job(readout, "none", "test", tuple(bench.clips[:1]), {}) for readout in WRITTEN]
    with PredictionFile(tmp_path / "p.jsonl") as sink:
        predict(Noting(), jobs, Asked("x"), CREMA_D, bench.root, sink)
    assert guided == [False, True, True]


def test_own_thinking_that_had_to_be_closed_is_counted(bench, tmp_path):
    class Forced:
        name = "forced"

        def __init__(self):
            self.inner = bench.engine()

        def score_labels(self, requests):
            for answer in self.inner.score_labels(requests):
                yield replace(answer, prefix="own_think", forced=True)

        def generate(self, requests, **options):
            return self.inner.generate(requests, **options)

    job = Job("label", "none", "test", tuple(bench.clips[:2]), {})
    with PredictionFile(tmp_path / "p.jsonl") as sink:
        predict(Forced(), [job], Asked("x", level="think"), CREMA_D, bench.root, sink)
    line = read_predictions(tmp_path / "p.jsonl")[0]
    assert (line.prefix, line.problems) == ("own_think", ("forced",))
    assert line.probabilities is not None


def test_thinking_that_was_written_for_the_shares_is_not_written_again_for_the_labels(bench, tmp_path):
    asked = Asked("x", readouts=("label", "verbalized"), controls=(), dev_readouts=(), level="think", max_new_tokens=77)
    clips = bench.clips[:4]
    events = []

    class Noting:
        name = "noting"

        def __init__(self):
            self.inner = bench.engine()

        def score_labels(self, requests):
            events.extend((r.id, r.written) for r in requests)
            return self.inner.score_labels(requests)

        def generate(self, requests, **options):
            assert options["max_new_tokens"] == 77
            events.extend((r.id, None) for r in requests)
            return self.inner.generate(requests, **options)

    def events_of(readouts):
        events.clear()
        jobs, _ = plan_jobs(replace(asked, readouts=readouts), (), clips, clips)
        with PredictionFile(tmp_path / f"{len(readouts)}.jsonl") as sink:
            predict(Noting(), jobs, asked, CREMA_D, bench.root, sink)
        return list(events), read_predictions(tmp_path / f"{len(readouts)}.jsonl")

    found, lines = events_of(("label", "verbalized"))
    written = {line.id: line.text for line in lines if line.readout == "verbalized"}
    assert sorted(found[:4]) == sorted((clip.id, None) for clip in clips)
    assert sorted(found[4:]) == sorted(written.items())
    alone, _ = events_of(("label",))  # nothing was written, so it is now, by the same limit
    assert sorted(alone[4:]) == sorted(written.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readouts": ("lable",)}, "'lable' is none of label, verbalized"),
        ({"controls": ("noise",)}, "'noise' is none of shuffled"),
        ({"readouts": ()}, "names no readout"),
        ({"system": "uniform"}, "names a baseline"),
        ({"system": "a/b"}, "holds a slash"),
        ({"readouts": ("verbalized",)}, "control_readouts: names label, which is not among the readouts verbalized"),
        ({"dev_readouts": ("guided",)}, "dev_readouts: names guided, which is not among the readouts label, verba"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(options, message):
    with pytest.raises(EvaluationError, match=message):
        Asked(**{"system": "x"} | options)


def valid_line() -> dict:
    return {
        "system": "x", "readout": "label", "prefix": "no_think", "control": "none", "split": "test", "id": "a",
        "speaker": "s", "fold": 0, "transcript": None, "votes": [1, 2], "probabilities": [0.5, 0.5], "vote": "sad",
        "problems": [], "text": None, "audio": "a.wav",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"readout": "guess"}, "readout: is 'guess', expected one of label"),
        ({"control": "loud"}, "control: is 'loud'"),
        ({"votes": [0, 0]}, "votes: .* positive sum"),
        ({"votes": [1, -1, 3]}, "votes"),
        ({"probabilities": [0.5, 0.6]}, "is not a distribution"),
        ({"probabilities": [0.5, 0.25, 0.25]}, "over 2 emotions"),
        ({"probabilities": [float("nan"), 1.0]}, "is not a distribution"),
        ({"speaker": ""}, "speaker"),
    ],
)
def test_a_line_that_breaks_the_contract_is_named_with_file_line_and_field(tmp_path, change, message):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(valid_line()) + "\n" + json.dumps(valid_line() | {"id": "b"} | change) + "\n")
    with pytest.raises(EvaluationError, match=message) as caught:
        read_predictions(path)
    assert caught.value.row == f"{path}:2"


@pytest.mark.parametrize("text", ['{"system": "x"', "[]", "{}", "\xff"])
def test_broken_lines_and_missing_files_give_one_clear_error(tmp_path, text):
    path = tmp_path / "p.jsonl"
    path.write_text(text + "\n", encoding="latin-1")
    with pytest.raises(EvaluationError, match=r"p\.jsonl:1"):
        read_predictions(path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_predictions(tmp_path / "none.jsonl")


def test_repeated_and_empty_files_are_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(valid_line()) + "\n" + json.dumps(valid_line()) + "\n")
    with pytest.raises(EvaluationError, match="repeats x/label/none/test/a"):
        read_predictions(path)
    path.write_text("\n")
    with pytest.raises(EvaluationError, match="holds no prediction"):
        read_predictions(path)
