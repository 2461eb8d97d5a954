"""What the parity gate found: a part for each question, the worst tokens, a table, and an error that names the cure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reasoning.errors import RolloutParityError


@dataclass(frozen=True)
class Part:
    """One question to both sides. passed: None where this check cannot tell. said: the figures in words."""

    name: str
    passed: bool | None
    said: str
    limit: str
    figures: Mapping[str, float]
    cure: str
    row: str | None = None


@dataclass(frozen=True)
class Token:
    """A token on which the sides differ. trainer, rollouts: nats. context: what was written before it."""

    row: str
    audio: str
    context: str
    token: str
    trainer: float
    rollouts: float


@dataclass(frozen=True)
class Parity:
    """What the gate found. dtype: the coarser number type; the limits are its. worst: tokens, widest gap first."""

    engine: str
    dtype: str
    clips: int
    completions: int
    tokens: int
    parts: tuple[Part, ...]
    worst: tuple[Token, ...]

    @property
    def passed(self) -> bool:
        """Whether no part differs. Parts that cannot tell do not count."""
        return all(part.passed is not False for part in self.parts)

    def figures(self) -> dict[str, float]:
        """Every figure by name, for a log."""
        return {f"parity/{name}": value for part in self.parts for name, value in part.figures.items()}

    def table(self) -> str:
        """The parts a line each, then the worst tokens."""
        says = {True: "pass", False: "DIFFERS", None: "cannot tell"}
        head = f"{self.engine} beside the trainer, {self.dtype}: {self.clips} clips, each with its own sound and with"
        head += f" another's; {self.completions} sampled completions, {self.tokens} tokens"
        rows = [("part", "found", "limit", "")]
        rows += [(part.name, part.said, part.limit, says[part.passed]) for part in self.parts]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [head, ""]
        for row in rows:
            lines.append(
                "  ".join([*(cell.ljust(w) for cell, w in zip(row[:3], widths, strict=True)), row[3]]).rstrip()
            )
        if self.worst:
            lines += ["", "widest gaps"]
            for t in self.worst:
                gap = f"{abs(t.trainer - t.rollouts):.1e} nats: trainer {t.trainer:.4f}, rollouts {t.rollouts:.4f}"
                lines.append(f"  {gap}  {t.token!r} after {t.context!r} ({t.row}, {t.audio})")
        return "\n".join(lines)

    def require(self) -> None:
        """Raise RolloutParityError naming the first part that differs, the others after it, and the cure."""
        failed = [part for part in self.parts if part.passed is False]
        if failed:
            first = failed[0]
            what = f"{self.engine} and the trainer differ: {first.said}, allowed is {first.limit}"
            others = f"; then also {', '.join(part.name for part in failed[1:])}" if failed[1:] else ""
            raise RolloutParityError(what + others, row=first.row, field=first.name, cure=first.cure)
