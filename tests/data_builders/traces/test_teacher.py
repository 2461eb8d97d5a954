"""The teacher writer against a real HTTP server on this machine, in its good and its bad hours."""

import json
import threading
import time

import pytest

from data_builders.traces import teacher
from data_builders.traces.teacher import NO_TEXT, TeacherWriter, keep_reply, key_of, read_replies, system_prompt
from reasoning.clips import Clip
from reasoning.cues import CUES, Cue
from reasoning.emotions import CREMA_D
from reasoning.errors import ConfigError, EvaluationError
from reasoning.grounding import levels_of
from reasoning.inference.endpoint import Endpoint
from reasoning.verifier import verify

PERCENTILES = {-2: 5.0, -1: 20.0, 0: 50.0, 1: 80.0, 2: 95.0}
CUES_OF_A = {n: Cue(0.0, PERCENTILES[v], v, "speaker") for n, v in zip(CUES, (1, 0, 0, 0, 0, 2, 0, 0, 0), strict=True)}
CUES_OF_A["timbre"] = Cue(gap="clipped")
TRACE = """Words: the text alone suggests no feeling
Voice: very fast pace and high pitch
Ambiguity: fear and happy could each sound like this
Weighing: very fast pace speaks for fear and happy, against sad"""


def clips(*names: str) -> list[Clip]:
    return [
        Clip(
            id=name, audio="a.flac", duration_s=1.0, transcript="It's eleven o'clock.", language="en", speaker="s",
            sex=None, age=None, split="train", fold=0, votes=(1, 0, 3, 4, 0, 0), n_votes=8, intended=None,
            source="human",
        )
        for name in names
    ]  # fmt: skip


def cues(*names: str) -> dict[str, dict[str, Cue]]:
    return {name: CUES_OF_A | {"pitch": Cue(float(i), 80.0, 1, "speaker")} for i, name in enumerate(names)}


def said(text: object) -> tuple[int, str, dict[str, str]]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}), {}


def writer(url: str, path, **options) -> TeacherWriter:
    endpoint = Endpoint(url, timeout=options.pop("timeout", 5), retries=1, wait=options.pop("wait", 0.01))
    replies = path / "replies.jsonl"
    return TeacherWriter(endpoint.post, "sage", CREMA_D, replies, progress=False, hurry=endpoint.hurry, **options)


def distinct(prefix: str, count: int) -> list[Clip]:
    """Clips whose requests differ, so that each is asked for."""
    return [Clip(**{**vars(c), "transcript": f"{prefix} {i}"}) for i, c in enumerate(clips(*map(str, range(count))))]


def test_a_teacher_is_told_what_was_measured_and_its_trace_is_verified_like_any(http_server, tmp_path):
    asked = []
    url = http_server(lambda path, body, headers: asked.append((path, body)) or said(f"\n{TRACE}\n"))
    (draft,) = writer(url, tmp_path).write(clips("a"), cues("a"))
    assert draft.thinking == TRACE
    assert verify(draft.thinking, levels_of(CUES_OF_A), (1, 0, 3, 4, 0, 0), CREMA_D).reasons == ()
    ((path, body),) = asked
    assert path == "/v1/chat/completions"
    prompt = body["messages"][1]["content"]
    assert "pace: very fast" in prompt
    assert "timbre: could not be measured" in prompt
    assert "Listeners" not in prompt


def test_the_votes_are_told_only_with_leave(http_server, tmp_path):
    asked = []
    url = http_server(lambda path, body, headers: asked.append(body) or said(TRACE))
    told = writer(url, tmp_path, saw_votes=True)
    list(told.write(clips("a"), cues("a")))
    assert "Listeners voted: happy (4), fear (3), anger (1)." in asked[0]["messages"][1]["content"]
    assert told.saw_votes


def test_the_example_in_the_prompt_keeps_to_the_grammar():
    prompt = system_prompt(CREMA_D)
    example = prompt.split("Example:\n")[1]
    levels = dict.fromkeys(CUES, 0) | {"pace": 2, "pitch": 1}
    assert verify(example, levels, (2, 1, 0, 0, 0, 0), CREMA_D).reasons == ()
    assert all(cue in prompt for cue in CUES)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ((200, "<html>Sign in</html>", {"Content-Type": "text/html"}), "the teacher answered no JSON (a web page?)"),
        ((503, "busy", {}), "the teacher answered HTTP 503"),
        ((200, '{"choices": []}', {}), NO_TEXT),
        ((200, "[]", {}), NO_TEXT),
        (said(None), NO_TEXT),
        (said("  "), NO_TEXT),
        (said(["a part"]), NO_TEXT),
        (said(TRACE.replace("feeling", "feeling \ud83d")), NO_TEXT),  # no file can hold it
    ],
)
def test_a_bad_answer_is_named_and_the_other_clips_are_written(http_server, tmp_path, reply, problem):
    def serve(path, body, headers):
        return reply if "bad" in body["messages"][1]["content"] else said(TRACE)

    mixed = [*distinct("bad", 2), *[Clip(**{**vars(c), "id": f"g{c.id}"}) for c in distinct("good", 2)]]
    names = [clip.id for clip in mixed]
    drafts = {d.id: d for d in writer(http_server(serve), tmp_path).write(mixed, cues(*names))}
    assert set(drafts) == set(names)
    assert [drafts[n].problem for n in names] == [problem, problem, None, None]
    assert [drafts[n].thinking for n in names] == [None, None, TRACE, TRACE]


def test_a_teacher_that_is_silent_is_not_waited_for(http_server, tmp_path):
    url = http_server(lambda *_: time.sleep(2) or said(TRACE))
    (draft,) = writer(url, tmp_path, timeout=0.2).write(clips("a"), cues("a"))
    assert draft.problem == "the teacher timed out"


def test_a_server_that_is_gone_stops_the_run_and_what_it_said_is_kept(http_server, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "GIVE_UP", 3)
    answered = []

    def serve(path, body, headers):
        answered.append(body)
        return said(TRACE) if len(answered) <= 4 else (503, "gone", {})

    wanted = distinct("clip", 12)
    names = [clip.id for clip in wanted]
    with pytest.raises(EvaluationError, match="503"):
        list(writer(http_server(serve), tmp_path, concurrency=1).write(wanted, cues(*names)))
    assert len(read_replies(tmp_path / "replies.jsonl")) == 4
    again = []
    url = http_server(lambda path, body, headers: again.append(body) or said(TRACE))
    drafts = list(writer(url, tmp_path).write(wanted, cues(*names)))
    assert len(again) == 8
    assert {draft.thinking for draft in drafts} == {TRACE}


def gives_up(asked: TeacherWriter, wanted: list[Clip]) -> float:
    """Seconds until the writer raises what its server says."""
    start = time.monotonic()
    with pytest.raises(EvaluationError, match="400"):
        list(asked.write(wanted, cues(*[clip.id for clip in wanted])))
    return time.monotonic() - start


def test_giving_up_waits_for_no_request_that_is_under_way(http_server, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "GIVE_UP", 3)

    def serve(path, body, headers):
        if "clip 0" in body["messages"][1]["content"]:
            time.sleep(5)
        return 400, "no", {}

    assert gives_up(writer(http_server(serve), tmp_path, concurrency=2, timeout=30), distinct("clip", 8)) < 4


def test_after_giving_up_nothing_is_tried_again(http_server, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "GIVE_UP", 3)
    tried = []

    def serve(path, body, headers):
        busy = "clip 0" in body["messages"][1]["content"]
        tried.append(busy)
        if not busy:
            time.sleep(0.2)  # so that the busy one is under way first
        return 503 if busy else 400, "no", {}

    asked = writer(http_server(serve), tmp_path, concurrency=2, wait=30)
    assert gives_up(asked, distinct("clip", 8)) < 10
    for thread in threading.enumerate():
        if thread.name == "teacher":
            thread.join(5)
            assert not thread.is_alive()
    assert sum(tried) == 1
    assert len(tried) <= 1 + 3 + 2


def test_whoever_stops_listening_leaves_nothing_to_ask(http_server, tmp_path):
    asked = []
    url = http_server(lambda path, body, headers: asked.append(body) or time.sleep(0.1) or said(TRACE))
    wanted = distinct("clip", 20)
    drafts = writer(url, tmp_path, concurrency=2).write(wanted, cues(*[clip.id for clip in wanted]))
    next(drafts)
    drafts.close()
    time.sleep(0.6)
    assert len(asked) <= 1 + 2 * 2


def test_no_more_than_the_allowed_requests_are_under_way(http_server, tmp_path):
    lock, under_way, most = threading.Lock(), [0], [0]

    def serve(path, body, headers):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.05)
        with lock:
            under_way[0] -= 1
        return said(TRACE)

    wanted = distinct("clip", 12)
    list(writer(http_server(serve), tmp_path, concurrency=3).write(wanted, cues(*[c.id for c in wanted])))
    assert 2 <= most[0] <= 3


def test_a_reply_that_was_cut_off_is_asked_for_again_and_a_strange_file_is_refused(http_server, tmp_path):
    url = http_server(lambda *_: said(TRACE))
    list(writer(url, tmp_path).write(distinct("clip", 2), cues("0", "1")))
    path = tmp_path / "replies.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read_replies(path)) == 1
    assert len(list(writer(url, tmp_path).write(distinct("clip", 2), cues("0", "1")))) == 2
    assert len(read_replies(path)) == 2
    path.write_text("hello\n")
    with pytest.raises(ConfigError, match="replies"):
        read_replies(path)


def test_a_reply_that_is_no_trace_is_judged_but_asked_for_again(http_server, tmp_path):
    path, wanted = tmp_path / "replies.jsonl", distinct("clip", 2)
    refusing = writer(http_server(lambda *_: said("I cannot help with that.")), tmp_path)
    drafts = list(refusing.write(wanted, cues("0", "1")))
    assert [verify(draft.thinking or "", {}, (1, 1), CREMA_D).reasons for draft in drafts] == [("bad_layout",)] * 2
    assert read_replies(path) == {}
    keep_reply(path, key_of(refusing.body(wanted[0], cues("0")["0"])), "a reply that an older version stored")
    willing = writer(http_server(lambda *_: said(TRACE)), tmp_path)
    assert {draft.thinking for draft in willing.write(wanted, cues("0", "1"))} == {TRACE}
    assert len(read_replies(path)) == 2


def test_another_model_seed_or_measurement_is_another_request(tmp_path):
    first = writer("http://127.0.0.1:9/v1", tmp_path)
    (clip,) = clips("a")
    other = CUES_OF_A | {"pitch": Cue(0.0, 5.0, -2, "speaker")}
    keys = {key_of(first.body(clip, CUES_OF_A)), key_of(first.body(clip, other))}
    keys.add(key_of(writer("http://127.0.0.1:9/v1", tmp_path, seed=1).body(clip, CUES_OF_A)))
    assert len(keys) == 3
