"""Faults of a real HTTP server on this machine, and what is made of them."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from reasoning.errors import ConfigError, EvaluationError
from reasoning.inference.endpoint import Endpoint


def answers(*replies):
    """A server's reply function that gives each of (status, text, headers) once, then the last one forever."""
    left = list(replies)
    return lambda path, body, headers: left.pop(0) if len(left) > 1 else left[0]


GOOD = (200, '{"ok": 1}', {})


def endpoint(url, **options):
    return Endpoint(url, **{"timeout": 5, "retries": 3, "wait": 0.01, **options})


def test_json_goes_out_and_comes_back_with_the_key(http_server):
    seen = []

    def reply(path, body, headers):
        seen.append((path, body, headers.get("Authorization")))
        return GOOD

    url = http_server(reply)
    assert endpoint(url + "/", api_key="secret").post("/chat", {"text": "schön"}) == {"ok": 1}
    assert endpoint(url).get("/models") == {"ok": 1}
    assert seen == [("/v1/chat", {"text": "schön"}, "Bearer secret"), ("/v1/models", None, None)]


@pytest.mark.parametrize(
    "bad",
    [(503, "busy", {}), (500, '{"error": {"message": "dead"}}', {}), (429, "slow", {}), (200, "<html>wait</html>", {})],
    ids=lambda bad: f"{bad[0]} {bad[1][:5]}",
)
def test_what_may_pass_is_asked_again(http_server, bad):
    assert endpoint(http_server(answers(bad, bad, GOOD))).post("/x", {}) == {"ok": 1}


def test_a_server_that_comes_back_is_asked_again(http_server, free_port):
    later = threading.Timer(0.5, lambda: http_server(answers(GOOD), port=free_port))
    later.start()
    assert endpoint(f"http://127.0.0.1:{free_port}/v1", wait=0.1, retries=6).post("/x", {}) == {"ok": 1}
    later.join()


@pytest.mark.parametrize(
    ("status", "text", "said", "cure"),
    [
        (200, "<html>Sign in</html>", "answers text/html, not JSON: '<html>Sign in", "ends in /v1"),
        (503, "starting", "answers 503 Service Unavailable: 'starting'", "the server's log"),
        (400, '{"error": {"message": "too long"}}', "answers 400 Bad Request: 'too long'", "the server's log"),
        (401, '{"message": "no key"}', "answers 401 Unauthorized: 'no key'", "OPENAI_API_KEY"),
        (404, "[]", "answers 404 Not Found", "ends in /v1"),
    ],
)
def test_a_fault_is_one_error_with_the_url_the_clip_and_the_cure(http_server, status, text, said, cure):
    calls = []

    def reply(*_):
        calls.append(1)
        return status, text, {"Content-Type": "text/html"}

    url = http_server(reply)
    with pytest.raises(EvaluationError) as error:
        endpoint(url).post("/x", {}, row="1001_IEO")
    assert error.value.row == "1001_IEO"
    assert said in str(error.value)
    assert f"{url}/x" in str(error.value)
    assert cure in str(error.value.cure)
    assert len(calls) == (4 if status in (200, 503) else 1)


def test_a_dead_server_is_named_with_the_command_that_starts_it(free_port):
    with pytest.raises(EvaluationError, match=rf"127.0.0.1:{free_port}.*refused.*4 attempts.*equivox serve"):
        endpoint(f"http://127.0.0.1:{free_port}/v1").post("/x", {})


def test_a_silent_server_is_given_up_after_the_timeout(free_port):
    with socket.create_server(("127.0.0.1", free_port)):  # accepts, and never says a word
        start = time.monotonic()
        with pytest.raises(EvaluationError, match=r"is silent for 0.3 s \(2 attempts"):
            endpoint(f"http://127.0.0.1:{free_port}/v1", timeout=0.3, retries=1).post("/x", {})
    assert 0.6 < time.monotonic() - start < 5


def test_a_connection_cut_in_the_middle_of_an_answer_is_a_fault(http_server):
    cut = (200, '{"ok": 1}', {"Content-Length": "5000"})
    with pytest.raises(EvaluationError, match=r"does not answer: .*[Ii]ncomplete"):
        endpoint(http_server(answers(cut)), timeout=1, retries=1).post("/x", {})


def test_the_server_says_how_long_to_wait(http_server):
    url = http_server(answers((429, "", {"Retry-After": "1"}), GOOD))
    start = time.monotonic()
    assert endpoint(url).post("/x", {}) == {"ok": 1}
    assert time.monotonic() - start >= 1


def test_whoever_hurries_waits_for_no_retry(free_port):
    slow = endpoint(f"http://127.0.0.1:{free_port}/v1", wait=30)
    slow.hurry.set()
    start = time.monotonic()
    with pytest.raises(EvaluationError):
        slow.post("/x", {})
    assert time.monotonic() - start < 5


def test_this_machine_is_reached_without_the_proxy_of_the_outside_world(http_server, free_port, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert endpoint(http_server(answers(GOOD))).get("/models") == {"ok": 1}


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://here/v1", "", "http:///v1"])
def test_what_is_no_http_address_is_refused(url):
    with pytest.raises(ConfigError, match="is no http address"):
        Endpoint(url)


def test_bodies_are_plain_json(http_server):
    url = http_server(lambda path, body, headers: (200, json.dumps({"got": body}), {}))
    assert endpoint(url).post("/x", {"a": [1, None, 0.5]}) == {"got": {"a": [1, None, 0.5]}}
