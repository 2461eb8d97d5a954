"""Several questions to one server under way at once, answers in order, nothing lost when one of them fails."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def in_order(
    questions: Iterable[Question], ask: Callable[[Question], Answer], concurrency: int, hurry: threading.Event
) -> Iterator[Answer]:
    """`ask(question)` for each, in order. After a failure nothing is begun, what is under way is still yielded.

    hurry: set when whoever listens has stopped, so that nothing waits for another attempt.
    """
    waiting: deque[Future[Answer]] = deque()
    failure: Exception | None = None
    left = iter(questions)
    hurry.clear()
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            while True:
                while failure is None and len(waiting) < 2 * concurrency:
                    try:
                        waiting.append(pool.submit(ask, next(left)))
                    except StopIteration:
                        break
                if not waiting:
                    break
                try:
                    answer = waiting.popleft().result()
                except CancelledError:
                    continue
                except Exception as error:
                    failure = failure or error
                    _cancel(waiting)
                    continue
                yield answer
        except BaseException:  # whoever listened stopped, or Ctrl-C
            hurry.set()
            _cancel(waiting)
            raise
    if failure is not None:
        raise failure


def _cancel(waiting: Iterable[Future[Any]]) -> None:
    for future in waiting:
        future.cancel()
