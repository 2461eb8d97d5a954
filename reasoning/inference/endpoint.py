"""JSON over HTTP to one model server: tried again while the trouble may pass, then one error that names the cure."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from reasoning.errors import ConfigError, EvaluationError

LOG = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for more patience than this is asked again after it."""

_MAY_PASS = (408, 429, 500, 502, 503, 504)
_START = "start the server (`equivox serve`) or correct the URL; the same command then goes on where it stopped"


class _Trouble(Exception):
    """Why an attempt failed. again: whether another may do better. wait: seconds that the server asked for."""

    def __init__(self, what: str, cure: str, *, again: bool = True, wait: float = 0.0) -> None:
        self.what, self.cure, self.again, self.wait = what, cure, again, wait


class Endpoint:
    """One server's API below `url`, which usually ends in /v1.

    timeout: seconds without a byte after which an attempt has failed. retries: attempts after the first, `wait` seconds
    after it, then twice as long each time: by default two minutes, in which a server can be restarted. api_key: sent as
    a bearer token. hurry: while set, nothing is tried again. Raises ConfigError when `url` is no http address.
    """

    def __init__(
        self, url: str, *, timeout: float = 600.0, retries: int = 7, wait: float = 1.0, api_key: str | None = None
    ) -> None:
        self.url, self.timeout, self.retries, self.wait = url.rstrip("/"), timeout, retries, wait
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is no http address", field="url", cure="for example http://127.0.0.1:8000/v1")
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        # A proxy for the outside world does not reach this machine's own servers.
        proxies = urllib.request.ProxyHandler({} if parts.hostname in LOOPBACK else None)
        self._opener = urllib.request.build_opener(proxies)
        self.hurry = threading.Event()
        self._troubled = False

    def get(self, path: str) -> Any:
        """The JSON at `path`; fails soon, as nothing is under way yet. Raises EvaluationError naming URL and cure."""
        return self._ask(path, None, None, min(self.retries, 2))

    def post(self, path: str, body: dict[str, Any], row: str | None = None) -> Any:
        """The JSON that answers `body`. row: the clip's id, for errors. Raises EvaluationError as `get` does."""
        return self._ask(path, json.dumps(body).encode(), row, self.retries)

    def _ask(self, path: str, body: bytes | None, row: str | None, retries: int) -> Any:
        start = time.monotonic()
        for attempt in range(retries + 1):
            try:
                answer = self._once(path, body)
            except _Trouble as reason:
                trouble = reason
            else:
                self._troubled = False
                return answer
            if trouble.again and attempt < retries and not self._troubled:
                self._troubled = True  # one line, however many requests are under way
                LOG.warning("%s%s %s; it is asked again for some minutes", self.url, path, trouble.what)
            wait = min(max(self.wait * 2**attempt, trouble.wait), LONGEST_WAIT)
            if not trouble.again or attempt == retries or self.hurry.wait(wait):
                break
        tried = f" ({attempt + 1} attempts in {time.monotonic() - start:.0f} s)" if attempt else ""
        raise EvaluationError(f"{self.url}{path} {trouble.what}{tried}", row=row, field="url", cure=trouble.cure)

    def _once(self, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(self.url + path, body, self._headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                data, kind = response.read(), response.headers.get_content_type()
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                cure = "ask for fewer clips at a time (--batch-size), or look at the server's log"
                raise _Trouble(f"is silent for {self.timeout:g} s", cure) from None
            raise _Trouble(f"does not answer: {reason or type(reason).__name__}", _START) from None
        try:
            return json.loads(data)
        except ValueError:
            start = data[:80].decode(errors="replace")
            cure = "give the address of the API itself, which usually ends in /v1"
            raise _Trouble(f"answers {kind}, not JSON: {start!r}", cure) from None


def served_model(endpoint: Endpoint, wanted: str | None) -> tuple[str, int | None]:
    """(the model's name, how many tokens it holds if the server says so).

    wanted: the name to ask for; None takes the only one that is served. Raises EvaluationError when it is not served.
    """
    listed = endpoint.get("/models")
    try:
        cards = {card["id"]: card for card in listed["data"]}
    except (TypeError, KeyError):
        raise odd_answer(endpoint, listed, None) from None
    if wanted is None and len(cards) == 1:
        (wanted,) = cards
    if wanted is None or wanted not in cards:
        what = f"serves {', '.join(map(repr, cards)) or 'nothing'}, asked for is {wanted!r}"
        cure = "serve it with `equivox serve --model DIR [--adapter DIR]`, or name one with --served-model"
        raise EvaluationError(f"{endpoint.url} {what}", field="served-model", cure=cure)
    return wanted, cards[wanted].get("max_model_len")


def odd_answer(endpoint: Endpoint, answer: Any, row: str | None) -> EvaluationError:
    """The error that an answer is none of the OpenAI API."""
    what = f"{endpoint.url} answers what the OpenAI API does not: {str(answer)[:120]!r}"
    return EvaluationError(what, row=row, field="url", cure="give the address of an OpenAI-compatible server")


def _refusal(error: urllib.error.HTTPError) -> _Trouble:
    """What an HTTP status other than 200 means."""
    try:
        text = error.read().decode(errors="replace")
    except OSError:
        text = ""
    try:
        said = json.loads(text)
        said = (said.get("error") or said).get("message") or text
    except (ValueError, AttributeError):
        said = text
    cure = "look at the server's log"
    if error.code in (401, 403):
        cure = "set OPENAI_API_KEY to a key of this server"
    elif error.code == 404:
        cure = "give the address of the API itself, which usually ends in /v1"
    after = error.headers.get("Retry-After") or ""
    what = f"answers {error.code} {error.reason}: {str(said)[:300].strip()!r}"
    return _Trouble(what, cure, again=error.code in _MAY_PASS, wait=float(after) if after.isdigit() else 0.0)
