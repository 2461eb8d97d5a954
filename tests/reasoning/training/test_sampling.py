"""Sampled answers: as seeded as they claim, of the audio they heard, and kept on disk as they come."""

from __future__ import annotations

import pytest

from data_builders.rows import read_corpus, split_clips
from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.errors import ConfigError, CorpusError
from reasoning.models.loading import load_model
from reasoning.models.prompter import Prompter
from reasoning.response import read_response
from reasoning.rollouts.rollouts import Sampling
from reasoning.training.sampling import Sample, SampleFile, sample_answers

SETTINGS = {"model": "a", "seed": 0}


@pytest.fixture(scope="module")
def ask(trained_checkpoint):
    corpus = read_corpus(trained_checkpoint.corpus)
    loaded = load_model(trained_checkpoint.model)
    prompter, memory = Prompter(loaded, corpus.info.emotions), loaded.memory()
    clips = split_clips(corpus, 0)["test"][:3]
    rows = [{"id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript} for c in clips]

    def sampled(rows=rows, seed=0, samples=5, temperature=0.7, max_new_tokens=96):
        sampling = Sampling(max_new_tokens, temperature)
        options = {"level": "no_think", "samples": samples, "sampling": sampling, "seed": seed}
        return sample_answers(loaded, prompter, memory, rows, **options)

    return sampled, rows, clips, corpus.info.emotions, loaded.base.generation_config


def test_samples_differ_repeat_with_their_seed_and_are_of_the_clip_that_was_heard(ask):
    sampled, _, clips, emotions, _ = ask
    answers = sampled()
    assert [len(found) for found in answers] == [5, 5, 5]
    assert answers == sampled()
    assert answers != sampled(seed=1)
    assert len({a.text for found in answers for a in found}) > 3
    for found, clip in zip(answers, clips, strict=True):
        readings = [read_response(a.text, emotions).probabilities for a in found]
        read = [shares for shares in readings if shares]
        assert len(read) >= 3
        assert jsd_bits(normalize_votes([clip.votes]), read).mean() < 0.3


def test_what_a_checkpoint_would_cut_off_is_sampled_all_the_same(ask):
    sampled, *_, says = ask
    before = sampled(temperature=3.0)
    says.repetition_penalty, says.top_k, says.top_p, says.min_p = 5.0, 1, 0.1, 0.9
    after = sampled(temperature=3.0)
    says.repetition_penalty = says.top_k = says.top_p = says.min_p = None
    assert after == before


def test_an_answer_that_was_stopped_is_marked(ask):
    sampled, *_ = ask
    (found,) = sampled(rows=ask[1][:1], samples=2, max_new_tokens=4)
    assert all(answer.truncated and answer.tokens == 4 for answer in found)
    (found,) = sampled(rows=ask[1][:1], samples=2, temperature=0.1)
    assert not any(answer.truncated for answer in found)


def test_what_a_killed_run_left_is_kept_and_its_unfinished_line_dropped(tmp_path):
    path = tmp_path / "pairs.samples.jsonl"
    a, b = [Sample("x\ny", 3, False)], [Sample("é", 1, True)]
    with SampleFile(path, SETTINGS) as file:
        file.add({"a": a})
        file.add({"b": b})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "c", "samp')
    with SampleFile(path, SETTINGS) as file:
        assert file.answers == {"a": a, "b": b}
    assert path.read_bytes() == whole


def test_samples_of_another_policy_or_another_file_are_refused(tmp_path):
    path = tmp_path / "pairs.samples.jsonl"
    with SampleFile(path, SETTINGS):
        pass
    with pytest.raises(ConfigError, match=r"sampled otherwise \(seed was 0, is 1"):
        SampleFile(path, {**SETTINGS, "seed": 1})
    path.write_text('{"model": "a", "seed": 0}\n{"id": 3}\n')
    with pytest.raises(CorpusError, match="is no file of sampled answers"):
        SampleFile(path, SETTINGS)
