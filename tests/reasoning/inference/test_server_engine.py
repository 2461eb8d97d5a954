"""The server engine against real servers on this machine: same answers, bounded, faults that lose nothing."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter

import numpy as np
import pytest
import soundfile

from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.errors import AudioError, EvaluationError, ModelError
from reasoning.inference.endpoint import Endpoint
from reasoning.inference.engine import Request
from reasoning.inference.server_engine import LocalCheckpoint, ServerEngine, as_wav
from reasoning.prompts import conversation

MODELS = (200, '{"data": [{"id": "tones"}]}', {})


def spoken(text="hello"):
    """A whole answer as any OpenAI-compatible server gives it."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}), {}


def quick(url):
    return Endpoint(url, timeout=60, retries=2, wait=0.01)


@pytest.fixture(scope="module")
def checkpoint(trained_checkpoint):
    return LocalCheckpoint.read(trained_checkpoint.model)


@pytest.fixture
def exact(reference_server, tones, checkpoint):
    """An engine that holds the reference server to the local checkpoint."""
    return ServerEngine(quick(reference_server.url), tones.emotions, checkpoint=checkpoint, concurrency=3)


def test_texts_and_label_probabilities_are_the_transformers_engines(exact, tones):
    mixed = [*tones.requests[:4], Request("deaf", None, "a tone"), Request("wordless", tones.requests[5].audio, None)]
    assert list(exact.generate(mixed, max_new_tokens=96)) == list(tones.engine.generate(mixed, max_new_tokens=96))
    for one, other in zip(exact.score_labels(mixed), tones.engine.score_labels(mixed), strict=True):
        assert (one.id, one.prefix, one.forced) == (other.id, other.prefix, other.forced)
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)


def test_labels_that_share_a_first_token_are_scored_whole_as_in_transformers(
    reference_server, tones, checkpoint, shared_first_tokens
):
    emotions = shared_first_tokens.prompter.emotions
    engine = ServerEngine(quick(reference_server.url), emotions, checkpoint=checkpoint)
    mixed = [*tones.requests[:3], Request("deaf", None, "a tone")]
    for one, other in zip(engine.score_labels(mixed), shared_first_tokens.score_labels(mixed), strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)


def test_own_thinking_is_closed_and_stood_on_as_in_transformers(exact, tones):
    written = ("<think>\nA tone that", "<think>\nA tone.\n</think>\n<answer>Vote: ")
    asked = zip(tones.requests, written, strict=False)
    thinking = [Request(r.id, r.audio, r.transcript, "think", text) for r, text in asked]
    both = zip(exact.score_labels(thinking), tones.engine.score_labels(thinking), (True, False), strict=True)
    for one, other, forced in both:
        assert (one.prefix, one.forced) == (other.prefix, other.forced) == ("own_think", forced)
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)


def test_it_hears_and_swapped_audio_costs_the_score(exact, tones):
    def jsd(requests):
        return jsd_bits(normalize_votes(tones.votes), [s.probabilities for s in exact.score_labels(requests)]).mean()

    assert jsd(tones.requests) < 0.1
    assert jsd(tones.shifted()) > 0.4


def test_audio_tokens_are_forbidden_and_stop_tokens_named_in_every_request(exact, tones, reference_server):
    list(exact.generate(tones.requests[:1], max_new_tokens=4))
    list(exact.score_labels(tones.requests[:1]))
    assert [body["bad_words"] for body in reference_server.asked] == [
        ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    ] * 2
    assert [body["stop_token_ids"] for body in reference_server.asked] == [tones.engine.stop_ids] * 2


def test_a_server_that_ignores_what_exactness_needs_gets_no_label_readout(exact, tones, reference_server):
    reference_server.extras = False
    with pytest.raises(EvaluationError, match=r"does not say which prompt tokens .*--readouts verbalized"):
        list(exact.score_labels(tones.requests[:1]))
    plain = reference_server.label_choice
    reference_server.extras = True
    reference_server.label_choice = lambda body, inputs: plain({**body, "logprob_token_ids": [1, 2, 3]}, inputs)
    with pytest.raises(EvaluationError, match="log-probability of every label"):
        list(exact.score_labels(tones.requests[:1]))


def test_a_server_of_another_checkpoint_is_refused_by_its_prompt(exact, tones, reference_server):
    reference_server.processor.chat_template = reference_server.processor.chat_template.replace("user", "User")
    reference_server.processor.chat_template = "Hello. " + reference_server.processor.chat_template
    with pytest.raises(ModelError, match=rf"\[{tones.requests[0].id}\] prompt: .* prompt tokens where"):
        list(exact.generate(tones.requests[:1], max_new_tokens=4))


def test_a_clip_that_does_not_fit_is_refused_before_it_is_sent(reference_server, tones, checkpoint):
    reference_server.limit = 60
    engine = ServerEngine(quick(reference_server.url), tones.emotions, checkpoint=checkpoint)
    with pytest.raises(ModelError, match=rf"\[{tones.requests[0].id}\] prompt: needs \d+ prompt tokens .* holds 60"):
        list(engine.generate(tones.requests[:1], max_new_tokens=4))
    with pytest.raises(AudioError, match=r"\[long\].*31.0 s; the model hears at most 30 s"):
        list(engine.generate([Request("long", np.ones(31 * 16_000, np.float32), None)], max_new_tokens=4))
    assert reference_server.asked == []


def test_without_a_checkpoint_any_server_can_write_but_give_no_labels(http_server, tones):
    seen = []

    def reply(path, body, headers):
        seen.append(body)
        return MODELS if body is None else spoken(None if len(seen) == 2 else "hi")

    engine = ServerEngine(quick(http_server(reply)), tones.emotions)
    empty, said = engine.generate(tones.requests[:2], max_new_tokens=7, temperature=0.5, seed=1)
    assert {empty.text, said.text} == {"", "hi"}
    assert set(seen[1]) == {"model", "messages", "temperature", "seed", "max_tokens"}
    assert seen[1]["seed"] != seen[2]["seed"]
    with pytest.raises(EvaluationError, match="no local checkpoint is named"):
        engine.score_labels(tones.requests)


def test_the_conversation_is_the_one_owner_of_the_prompt(http_server, tones):
    seen = []
    url = http_server(lambda path, body, headers: MODELS if body is None else (seen.append(body), spoken())[1])
    list(ServerEngine(quick(url), tones.emotions).generate(tones.requests[:1], max_new_tokens=7))
    (expected,) = conversation(tones.requests[0].transcript, True, "no_think", tones.emotions)
    (sent,) = seen[0]["messages"]
    assert sent["content"][1:] == expected["content"][1:]
    data = base64.b64decode(sent["content"][0]["input_audio"]["data"])
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_array_equal(samples, soundfile.read(tones.requests[0].audio, dtype="float32")[0])
    assert rate == 16_000


def test_answers_come_in_order_with_no_more_than_so_many_under_way(http_server, tones):
    lock, now, most, asked = threading.Lock(), 0, 0, 0

    def reply(path, body, headers):
        nonlocal now, most, asked
        if body is None:
            return MODELS
        with lock:
            now, asked = now + 1, asked + 1
            most, mine = max(most, now), asked
        time.sleep(0.3 if mine == 1 else 0.02)
        with lock:
            now -= 1
        return spoken()

    engine = ServerEngine(quick(http_server(reply)), tones.emotions, concurrency=3)
    requests = [Request(str(i), None, "a tone") for i in range(20)]
    assert [g.id for g in engine.generate(requests, max_new_tokens=7)] == [r.id for r in requests]
    assert most == 3


def test_a_server_that_dies_loses_nothing_that_was_answered(http_server, tones):
    counts = Counter()

    def reply(path, body, headers):
        if body is None:
            return MODELS
        words = body["messages"][0]["content"][0]["text"]
        counts[words] += 1
        if "number 5" in words:
            return 503, "gone", {}
        if "number 4" in words:
            time.sleep(0.5)
        return spoken()

    engine = ServerEngine(quick(http_server(reply)), tones.emotions, concurrency=4)
    requests = [Request(str(i), None, f"number {i}") for i in range(40)]
    got = []
    with pytest.raises(EvaluationError, match=r"\[5\] url: .*503.*3 attempts"):
        got.extend(generation.id for generation in engine.generate(requests, max_new_tokens=7))
    assert got[:5] == ["0", "1", "2", "3", "4"]
    assert sorted(got, key=int) == got
    answered = {str(i) for i in range(40) if any(f'number {i}"' in words for words in counts)} - {"5"}
    assert set(got) == answered
    assert len(counts) < 40


def test_whoever_stops_listening_stops_the_asking(http_server, tones):
    asked = []
    url = http_server(lambda path, body, headers: MODELS if body is None else (asked.append(1), spoken())[1])
    stream = ServerEngine(quick(url), tones.emotions, concurrency=2).generate(
        [Request(str(i), None, "a tone") for i in range(50)], max_new_tokens=7
    )
    next(stream)
    stream.close()
    assert len(asked) < 10


@pytest.mark.parametrize(
    ("models", "wanted", "said"),
    [
        ('{"data": [{"id": "a"}, {"id": "b"}]}', None, "serves 'a', 'b', asked for is None"),
        ('{"data": [{"id": "a"}]}', "b", "serves 'a', asked for is 'b'.*--served-model"),
        ('{"data": []}', None, "serves nothing"),
        ('["hello"]', None, "what the OpenAI API does not"),
    ],
)
def test_a_server_without_the_model_is_refused_at_once(http_server, tones, models, wanted, said):
    with pytest.raises(EvaluationError, match=said):
        ServerEngine(quick(http_server(lambda *_: (200, models, {}))), tones.emotions, model=wanted)


@pytest.mark.parametrize("text", ['{"detail": "hm"}', '{"choices": [{}]}', "[1]", '{"choices": [{"message": null}]}'])
def test_json_that_is_no_answer_is_one_clear_error(http_server, tones, text):
    url = http_server(lambda path, body, headers: MODELS if body is None else (200, text, {}))
    with pytest.raises(EvaluationError, match=r"\[s0\].*what the OpenAI API does not"):
        list(ServerEngine(quick(url), tones.emotions).generate([Request("s0", None, "a tone")], max_new_tokens=7))


@pytest.mark.parametrize(
    ("samples", "subtype"),
    [(np.array([0, 1, -32768, 32767]) / 32768, "PCM_16"), (np.array([0.1, -0.3]), "FLOAT"), (np.array([1.5]), "FLOAT")],
)
def test_samples_survive_the_wav_bit_for_bit(samples, subtype):
    samples = samples.astype(np.float32)
    data = io.BytesIO(base64.b64decode(as_wav(samples)))
    assert soundfile.info(data).subtype == subtype
    data.seek(0)
    np.testing.assert_array_equal(soundfile.read(data, dtype="float32")[0], samples)
