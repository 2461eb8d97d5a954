"""The teacher writer: a language model behind an OpenAI-compatible endpoint, told the measured cues, asked for a trace.

It hears nothing: what it knows of the voice is the cues in words. Whatever it answers goes through the same verifier as
any trace. Replies that are a trace are kept as they come, so that a killed run asks only for what it has not got.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tqdm import tqdm

from data_builders.traces.cot import CuesOf, Draft
from reasoning.clips import Clip
from reasoning.cues import Cue, word
from reasoning.emotions import EmotionSet
from reasoning.errors import ConfigError, EvaluationError
from reasoning.files import drop_unfinished_line, whole_lines
from reasoning.grounding import LESS, MORE, NOUNS, USUAL
from reasoning.verifier import read_trace

Post = Callable[[str, dict[str, Any], str | None], Any]
"""(path, body, clip id) -> JSON, retried and with errors that name the cure: reasoning.inference.endpoint's post."""

GIVE_UP = 20
"""Clips in a row without an answer from the server after which it is taken for gone."""

MAX_TOKENS = 400
TEMPERATURE = 0.7

_SYSTEM = """\
You write how a careful listener reasons about the emotion of a voice. Write exactly four lines and nothing else:
Words: <what the text alone suggests>
Voice: <claims about the voice>
Ambiguity: <where words, voice or listeners pull apart; name no emotion, or at least two, and rule none out>
Weighing: <claims> speaks for <emotions>, against <emotions>; <claims> speaks for <emotions>

A claim is a noun and one word for it, such as "very high pitch" or "pitch very high", and compares with the speaker's
usual. Voice holds claims only, joined by commas and "and"; each claim of Weighing is one of them. Say only what was
measured. Nouns and their words, with "very" where the measurement says so, or "{usual}" for any:
{vocabulary}
Emotions: {emotions}. On balance speak for at least two. Never write digits, shares, counts of listeners, or which
emotion wins.
Example:
Words: the text alone suggests no feeling
Voice: very fast pace, high pitch and usual loudness
Ambiguity: {first} and {second} could each sound like this
Weighing: very fast pace and high pitch speak for {first} and {second}; usual loudness speaks against {first}"""

NO_TEXT = "the teacher answered JSON without a text that can be read"
_PROBLEMS = (  # what an EvaluationError of the endpoint says -> what is counted
    (re.compile(r"answers \S+, not JSON"), "the teacher answered no JSON (a web page?)"),
    (re.compile(r"is silent"), "the teacher timed out"),
    (re.compile(r"does not answer"), "the teacher cannot be reached"),
    (re.compile(r"answers (\d{3})"), "the teacher answered HTTP {0}"),
)


@dataclass
class TeacherWriter:
    """The writer as data_builders.traces.cot takes it.

    post: how the server is asked. replies: file that keeps the replies that are a trace; for the others the next run
    asks again. `concurrency` clips are under way at a time. hurry: set when nothing more is wanted, for `post` to try
    nothing again. Raises EvaluationError when GIVE_UP clips in a row found no server; a single failure is a draft with
    its problem.
    """

    post: Post
    model: str
    emotions: EmotionSet
    replies: Path
    seed: int = 0
    saw_votes: bool = False
    concurrency: int = 4
    progress: bool = True
    hurry: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def name(self) -> str:
        return f"teacher {self.model}"

    def write(self, clips: Sequence[Clip], cues: CuesOf) -> Iterator[Draft]:
        kept = read_replies(self.replies)
        missing = {}
        for clip in clips:
            body = self.body(clip, cues[clip.id])
            if (reply := kept.get(key_of(body))) is not None:
                yield Draft(clip.id, reply)
            else:
                missing[clip.id] = body
        in_a_row = 0
        bar = tqdm(total=len(missing), desc="asking the teacher", unit="clip", disable=not self.progress or not missing)
        with bar, closing(self._answers(missing)) as answers:
            for name, answer in answers:
                bar.update()
                draft, failure = _draft(name, answer)
                in_a_row = in_a_row + 1 if failure else 0
                if failure and in_a_row >= GIVE_UP:
                    raise failure
                yield draft

    def _answers(self, bodies: Mapping[str, dict[str, Any]]) -> Generator[tuple[str, Future[str | None]], None, None]:
        """(clip id, what came of asking) as they come. Once nobody listens, what is under way is left alone."""
        left = deque(bodies.items())
        came: SimpleQueue[tuple[str, Future[str | None]]] = SimpleQueue()

        def ask_on() -> None:
            while left:
                try:
                    name, body = left.popleft()
                except IndexError:  # another thread took the last one
                    return
                answer: Future[str | None] = Future()
                try:
                    answer.set_result(self._ask(name, body))
                except BaseException as error:  # whoever listens raises it
                    answer.set_exception(error)
                came.put((name, answer))

        self.hurry.clear()
        for _ in range(self.concurrency):
            # Daemons, no pool: a pool's threads hold up the process until a silent server has timed out.
            threading.Thread(target=ask_on, name="teacher", daemon=True).start()
        try:
            for _ in bodies:
                yield came.get()
        finally:
            left.clear()
            self.hurry.set()

    def body(self, clip: Clip, cues: Mapping[str, Cue]) -> dict[str, Any]:
        """The request for one clip."""
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": system_prompt(self.emotions)},
                {"role": "user", "content": self._clip_prompt(clip, cues)},
            ],
            "temperature": TEMPERATURE,
            "max_tokens": MAX_TOKENS,
            "seed": self.seed,
        }

    def _clip_prompt(self, clip: Clip, cues: Mapping[str, Cue]) -> str:
        lines = [f"Text ({clip.language}): {clip.transcript or 'not known'}", "Measured:"]
        lines += [f"{name}: {word(name, cue.level)}" for name, cue in cues.items() if cue.level is not None]
        lines += [
            f"{name}: could not be measured, do not mention it" for name, cue in cues.items() if cue.level is None
        ]
        if self.saw_votes:
            votes = [(v, n) for v, n in zip(clip.votes, self.emotions.names, strict=True) if v]
            heard = ", ".join(f"{n} ({v})" for v, n in sorted(votes, reverse=True))
            lines.append(f"Listeners voted: {heard}. Weigh what speaks for these; do not reveal the votes.")
        return "\n".join(lines)

    def _ask(self, name: str, body: dict[str, Any]) -> str | None:
        """The text of the reply, stored when it is a trace; None when the JSON holds none."""
        text = text_of(self.post("/chat/completions", body, name))
        if text and read_trace(text):
            keep_reply(self.replies, key_of(body), text)
        return text


def text_of(answer: Any) -> str | None:
    """The text of a server's JSON; None without one, and for one that no file can hold (half a surrogate pair)."""
    try:
        text = answer["choices"][0]["message"]["content"].strip()
        text.encode()
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeEncodeError):
        return None
    return text or None


def system_prompt(emotions: EmotionSet) -> str:
    """What a teacher is told about the grammar, from the same vocabulary that the verifier reads."""
    lines = [f"{NOUNS[cue][0]}: {LESS[cue][0]} / {MORE[cue][0]}" for cue in NOUNS]
    first, second = emotions.names[:2]
    return _SYSTEM.format(
        usual=USUAL[0], vocabulary="\n".join(lines), emotions=", ".join(emotions.names), first=first, second=second
    )


def key_of(body: Mapping[str, Any]) -> str:
    """Digest of a request: a reply to it is a reply to any equal one."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def keep_reply(path: Path, key: str, text: str) -> None:
    """Add a reply to the file, in one write: threads of one process may share it."""
    with path.open("ab") as file:
        file.write((json.dumps({"key": key, "text": text}) + "\n").encode())


def read_replies(path: Path) -> dict[str, str]:
    """Key -> reply, of those that are a trace: older versions stored any, which would never be asked for again.

    A last line that a kill cut off is removed. Raises ConfigError on a file of anything else.
    """
    if not path.exists():
        return {}
    try:
        records = [json.loads(line) for line in whole_lines(path)]
        replies = {record["key"]: record["text"] for record in records if read_trace(record["text"])}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError("holds other things than a teacher's replies", row=str(path), cure="remove it") from None
    drop_unfinished_line(path)
    return replies


def _draft(name: str, done: Future[str | None]) -> tuple[Draft, EvaluationError | None]:
    """What came back for one clip, and the failure when the server gave no answer at all."""
    try:
        text = done.result()
    except EvaluationError as error:
        found = ((pattern.search(error.what), problem) for pattern, problem in _PROBLEMS)
        said = next((problem.format(*match.groups()) for match, problem in found if match), "the teacher failed")
        return Draft(name, None, said), error
    return Draft(name, text, None if text else NO_TEXT), None
