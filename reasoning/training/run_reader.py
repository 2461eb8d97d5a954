"""What a run folder says about its run, while it is written, when it was stopped, and after it has finished.

Only reads, imports neither torch nor a trainer, and takes half a line or half a table for what it is: not there yet.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from reasoning.errors import ConfigError
from reasoning.files import whole_lines

CONFIG, METRICS, ADAPTER = "config.yaml", "metrics.jsonl", "adapter_model.safetensors"
RECENT = 20
"""Logged lines that the rate is taken from."""


@dataclass(frozen=True)
class Run:
    """A run as its folder shows it.

    config: the resolved options. lines: what was logged, each with its step, oldest first. rollout: rows of the newest
    completions table, empty without one; rollout_step: its step. finished: the adapter is there. written: when the
    metrics were last written, seconds since 1970, None before the first line.
    """

    folder: Path
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    rollout: list[dict[str, Any]]
    rollout_step: int | None
    finished: bool
    written: float | None

    @property
    def kind(self) -> str:
        """grpo, dpo or sft: the trainer whose own options the config holds."""
        return "grpo" if "num_generations" in self.config else "dpo" if "pairs" in self.config else "sft"

    @property
    def step(self) -> int:
        """The last logged step, 0 before the first."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def steps(self) -> int | None:
        """How many steps the run takes; None where epochs decide and none is logged yet."""
        if self.config.get("max_steps", -1) > 0:
            return int(self.config["max_steps"])
        known = [line for line in self.lines if line.get("epoch")]
        return round(self.config["num_train_epochs"] * known[-1]["step"] / known[-1]["epoch"]) if known else None

    @property
    def seconds_a_step(self) -> float | None:
        """Median wall time of a step over the last logged lines; None where there is nothing to tell it from.

        By when lines were written; of runs from before that was logged, by the time that TRL says its steps took.
        """
        timed = [(line["step"], line["time"]) for line in self.lines if "time" in line][-RECENT - 1 :]
        pairs = [(a, b) for a, b in pairwise(timed) if b[0] > a[0] and b[1] > a[1]]
        each = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs]
        each = each or self.series("step_time")[-RECENT:]
        if not each:
            total = self.series("train_runtime")
            each = [total[-1] / self.step] if total and self.step else []
        return statistics.median(each) if each else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, at the recent rate; None where steps or rate are unknown."""
        if self.finished:
            return 0.0
        a_step = self.seconds_a_step
        return None if self.steps is None or a_step is None else max(self.steps - self.step, 0) * a_step

    def series(self, name: str) -> list[float]:
        """The finite numbers logged under `name`, oldest first."""
        found = [line[name] for line in self.lines if isinstance(line.get(name), (int, float))]
        return [float(value) for value in found if math.isfinite(value)]

    def names(self, pattern: str) -> list[str]:
        """Names of metrics that match the whole pattern, in the order in which they were first logged."""
        seen = dict.fromkeys(name for line in self.lines for name in line)
        return [name for name in seen if re.fullmatch(pattern, name)]


def read_run(folder: Path) -> Run:
    """The run in `folder`, whatever state it is in. Raises ConfigError where none ever started there."""
    path = folder / CONFIG
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    if not isinstance(config, dict):
        inside = sorted(p.parent for p in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        cure = f"equivox watch {inside[0]}" if inside else "name the --output_dir of `equivox sft`, `dpo` or `grpo`"
        raise ConfigError(f"is no training run: it holds no {CONFIG}", row=str(folder), cure=cure)
    metrics = folder / METRICS
    step, rollout = newest_rollout(folder)
    return Run(
        folder=folder,
        config=config,
        lines=metric_lines(metrics),
        rollout=rollout,
        rollout_step=step,
        finished=(folder / ADAPTER).is_file(),
        written=metrics.stat().st_mtime if metrics.is_file() else None,
    )


def metric_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last one that is being written, or was when the run died, is left out."""
    return [json.loads(line) for line in whole_lines(path)] if path.is_file() else []


def newest_rollout(folder: Path) -> tuple[int | None, list[dict[str, Any]]]:
    """(step, rows) of the newest completions table that can be read; (None, []) where there is none."""
    for path in sorted((folder / "completions").glob("completions_*.parquet"), reverse=True):
        try:
            return int(path.stem.rsplit("_", 1)[1]), pq.read_table(path).to_pylist()
        except (pa.ArrowInvalid, OSError):  # being written, or cut by a full disk
            continue
    return None, []


def distinct_clips(rows: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """The first completion of each of the first n clips."""
    firsts: dict[Any, dict[str, Any]] = {}
    for row in rows:
        firsts.setdefault(row.get("clip"), row)
    return list(firsts.values())[:n]
