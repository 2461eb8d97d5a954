"""The answer grammar as a formal grammar, for decoders that let a model write nothing else.

Free decoding may break the grammar, most often by shares that do not add up; guided decoding gives every token that
would break it probability zero and leaves the others in their proportions. What is guided is said beside every score.
"""

from __future__ import annotations

from reasoning.emotions import EmotionSet
from reasoning.response import ANSWER_CLOSE, ANSWER_PREFIX, THINK_CLOSE, THINK_OPEN, WHOLE, written_share


def answer_grammar(emotions: EmotionSet, level: str) -> str:
    """A Lark grammar whose language is what `write_response` can write at this level: its shares always sum to 1.

    Rule s{i}_{left} writes the shares from emotion i on, given how many hundredths are left for them. At level think
    the trace before the answer is any text without an angle bracket.
    """
    names = emotions.names
    votes = " | ".join(_quoted(f" {name}") for name in names)
    thinking = f"{_quoted(THINK_OPEN)} TRACE {_quoted(THINK_CLOSE + chr(10))} " if level == "think" else ""
    rules = [f"start: {thinking}{_quoted(ANSWER_PREFIX)} ({votes}) {_quoted(chr(10) + 'Shares: ')} s0_{WHOLE}"]
    for i, name in enumerate(names):
        for left in range(WHOLE + 1) if i else [WHOLE]:
            rules.append(f"s{i}_{left}: {_shares(name, left, i + 1 if i + 1 < len(names) else None)}")
    return "\n".join([*rules, *(["TRACE: /[^<>]+/"] if thinking else [])])


def _shares(name: str, left: int, following: int | None) -> str:
    """Right-hand side of a rule: this emotion's share, then the rule of those after it, if any."""
    if following is None:
        return _quoted(f"{name} {written_share(left)}{ANSWER_CLOSE}")
    return " | ".join(f"{_quoted(f'{name} {written_share(d)}, ')} s{following}_{left - d}" for d in range(left + 1))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
