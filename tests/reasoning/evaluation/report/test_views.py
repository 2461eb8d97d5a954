import copy

import pytest

from reasoning.errors import EvaluationError
from reasoning.evaluation.report.views import read_clips, read_scores


def test_series_are_told_apart(make_material):
    kinds = {s.title: s.kind for s in read_scores(make_material().scores).series}
    assert kinds == {
        "Uniform": "baseline",
        "Training prior": "baseline",
        "sft · label": "model",
        "sft · verbalized": "model",
        "sft · label · shuffled audio": "control",
    }


def test_the_page_leads_with_the_last_models_label_readout(make_material):
    data = copy.deepcopy(make_material().scores)
    scores = read_scores(data)
    assert scores.lead is not None
    assert scores.lead.key == "sft/label/none"
    later = copy.deepcopy(next(s for s in data["systems"] if s["key"] == "sft/label/none"))
    later |= {"key": "grpo/label/none", "system": "grpo"}
    lead = read_scores(data | {"systems": [*data["systems"], later]}).lead
    assert lead is not None
    assert lead.key == "grpo/label/none"


PATHS = [
    ("format",), ("emotions",), ("protocol", "corpus"), ("protocol", "statement"), ("few_speakers",), ("systems",),
    ("systems", 0, "key"), ("systems", 0, "metrics"), ("systems", 0, "tempered"), ("systems", 0, "parse_rate"),
    ("systems", 0, "by_vote_entropy", 0, "jsd_bits"), ("systems", 0, "metrics", "jsd_bits", "low"),
    ("comparisons", 0, "verdict"), ("comparisons", 0, "tempered"), ("comparisons", 0, "metrics", "brier"),
    ("human", "raters"), ("human", "sampling_floor"), ("human", "raters", "models"), ("human", "raters", "k"),
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_a_missing_key_is_named(make_material, path):
    data = copy.deepcopy(make_material().scores)
    place = data
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    with pytest.raises(EvaluationError, match=f"has no key '{path[-1]}'"):
        read_scores(data)


def test_another_format_is_refused(make_material):
    with pytest.raises(EvaluationError, match="is 2, expected 1"):
        read_scores(make_material().scores | {"format": 2})


@pytest.mark.parametrize("claim", ["worse", "sharpening", "unclear"])
def test_a_verdict_that_its_intervals_deny_is_refused(make_material, claim):
    data = make_material().scores
    better = next(c for c in data["comparisons"] if c["verdict"] == "better")
    better["verdict"] = claim
    with pytest.raises(EvaluationError, match=f"{claim}, but its intervals say better"):
        read_scores(data)


def test_clips_are_test_clips_with_the_models_answers_only(make_material):
    material = make_material()
    clips = read_clips(material.predictions, read_scores(material.scores))
    assert [c.id for c in clips] == [f"clip{i}" for i in range(9)]
    assert all(set(c.answers) == {"sft/label/none", "sft/verbalized/none"} for c in clips)


def test_an_answer_that_stands_twice_is_refused(make_material):
    material = make_material()
    scores = read_scores(material.scores)
    with pytest.raises(EvaluationError, match=r"\[clip0\] sft/label/none answers twice"):
        read_clips(material.predictions * 2, scores)


def test_a_models_clip_without_audio_is_refused(make_material):
    material = make_material()
    for line in material.predictions:
        line["audio"] = None
    with pytest.raises(EvaluationError, match="names no audio"):
        read_clips(material.predictions, read_scores(material.scores))
