"""equivox watch RUN [--once] [--every SECONDS] [--completions N]

Shows a training run from what its folder holds: how far it is, what was logged, what the model last wrote. It works
while the run goes on, after it was stopped and when it has finished, and never writes to it.
"""

import argparse
import re
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from data_builders.rows import read_corpus
from launch.cli import run
from reasoning.errors import EquivoxError
from reasoning.training.run_reader import Run, distinct_clips, read_run

METRICS = (
    ("loss", "loss"),
    ("ce", "CE, nats a token"),
    ("trace_ce", "  of the traces"),
    ("vote_kl", "vote KL, nats a clip"),
    ("mean_token_accuracy", "token accuracy"),
    (r"rewards/(chosen|rejected|margins|accuracies)", r"implicit \1"),
    ("reward", "reward"),
    (r"rewards/(.+)/mean", r"  \1"),
    ("reward_spread", "reward spread"),
    ("groups/quiet", "quiet groups"),
    ("parse_rate", "parse rate"),
    (r"problems/(.+)", r"  \1"),
    ("slots/missing", "answers without a vote"),
    ("completions/clipped_ratio", "answers cut off"),
    ("completions/mean_length", "tokens an answer"),
    ("entropy", "entropy, nats a token"),
    ("clip_ratio/region_mean", "clipped share"),
    ("kl", "KL to the reference"),
    ("rollout/gap_(.+)", r"rollout gap, nats, \1"),
    ("sync/(.+)", r"weight sync, \1"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
)
"""(pattern of logged names, what is shown); of the problems only those that occurred."""

SPARKS, SPARK_WIDTH, BAR_WIDTH = "▁▂▃▄▅▆▇█", 20, 40
SILENT_STEPS = 10
"""A run that wrote nothing for the time of so many steps, or of three times `logging_steps`, may have been stopped."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="equivox watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="--output_dir of `equivox sft`, `dpo` or `grpo`")
    parser.add_argument("--once", action="store_true", help="print one page and leave, for logs")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between looks (default: 2)")
    parser.add_argument("--completions", type=int, default=3, help="clips whose newest answer is shown (default: 3)")
    args = parser.parse_args(argv)
    console = Console(highlight=False)
    seen = read_run(args.run)
    emotions = emotion_names(seen)
    if console.is_terminal and not args.once:
        try:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while not seen.finished:
                    live.update(page(seen, emotions, args.completions, time.time()), refresh=True)
                    time.sleep(args.every)
                    seen = read_run(args.run)
        except KeyboardInterrupt:
            return 0
    console.print(page(seen, emotions, args.completions, time.time()))
    return 0


def emotion_names(seen: Run) -> tuple[str, ...]:
    """The emotions of the run's corpus in order, () where the corpus is no longer there."""
    try:
        return read_corpus(Path(seen.config["data"])).info.emotions.names
    except (EquivoxError, KeyError):
        return ()


def page(seen: Run, emotions: Sequence[str], completions: int, now: float) -> RenderableType:
    """The whole page at the time `now`, seconds since 1970."""
    parts = [header(seen, now)]
    if seen.lines:
        parts.append(Padding(metrics_table(seen), (1, 0)))
    if seen.rollout and completions:
        parts.append(Rule(f"answers of step {seen.rollout_step}", style="dim"))
        rewards = [re.sub(r"rewards/(.+)/mean", r"\1", name) for name in seen.names(r"rewards/.+/mean")]
        parts += [answer(row, rewards, emotions) for row in distinct_clips(seen.rollout, completions)]
    return Group(*parts)


def header(seen: Run, now: float) -> RenderableType:
    """What the run is, and how far."""
    config = seen.config
    what = Text.assemble(
        (str(seen.folder), "bold"),
        f"  {seen.kind} of {config.get('model_name_or_path', '?')} on {config.get('data', '?')}",
        f", fold {config['fold']}" if "fold" in config else "",
    )
    bar = Table.grid(padding=(0, 2))
    known = f" of {seen.steps}" if seen.steps else ""
    a_step, left = seen.seconds_a_step, seen.seconds_left
    bar.add_row(
        f"step {seen.step}{known}",
        ProgressBar(total=seen.steps or 1, completed=seen.step if seen.steps else 0, width=BAR_WIDTH),
        f"{a_step:.1f} s a step" if a_step else "",
        "" if left is None or seen.finished else f"{duration(left)} left",
        state(seen, now),
    )
    return Group(what, bar)


def state(seen: Run, now: float) -> Text:
    """Whether the run is finished, goes on, or has fallen silent."""
    if seen.finished:
        return Text("finished", style="green")
    if seen.written is None:
        return Text("no step is logged yet", style="yellow")
    silent = now - seen.written
    patience = max(SILENT_STEPS, 3 * float(seen.config.get("logging_steps") or 1))
    if seen.seconds_a_step and silent > patience * seen.seconds_a_step:
        return Text(f"nothing for {duration(silent)}; if it was stopped, the same command goes on", style="red")
    return Text(f"{duration(silent)} ago", style="dim")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(max(seconds, 0))))


def metrics_table(seen: Run) -> Table:
    """A row a metric: its last value, with the deviation where one is logged, and its course."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, min_width=SPARK_WIDTH)  # the last steps are its end, which must not be cut off
    for pattern, title in METRICS:
        for name in seen.names(pattern):
            values = seen.series(name)
            if not values or (name.startswith("problems/") and not any(values)):
                continue
            spread = seen.series("reward_std" if name == "reward" else re.sub("/mean$", "/std", name))
            paired = spread and (name == "reward" or name.endswith("/mean"))
            last = number(values[-1]) + (f" ± {number(spread[-1])}" if paired else "")
            shown = values[-SPARK_WIDTH:]
            ends = f"{number(min(shown))} to {number(max(shown))}" if len(shown) > 1 else ""
            table.add_row(
                re.sub(f"^{pattern}$", title, name), last, Text(spark(shown), style="cyan"), Text(ends, "dim")
            )
    return table


def number(value: float) -> str:
    """Three decimals, or three digits where those would show nothing."""
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"


def spark(values: Sequence[float]) -> str:
    """A character a value, from the lowest to the highest of them."""
    low, span = min(values), max(values) - min(values)
    return "".join(SPARKS[round((v - low) / span * (len(SPARKS) - 1)) if span else 0] for v in values)


def answer(row: dict, rewards: Sequence[str], emotions: Sequence[str]) -> RenderableType:
    """One completion: the clip's votes beside the shares that were read, what it was paid, and its text."""
    paid = [f"{name} {number(row[name])}" for name in rewards if isinstance(row.get(name), (int, float))]
    if isinstance(row.get("advantage"), (int, float)):
        paid.append(f"advantage {row['advantage']:+.3f}")
    title = Text.assemble(
        (str(row.get("clip")), "bold"), "  ", "  ".join(paid), (f"  {row.get('problems', '')}", "red")
    )
    both = Table.grid(padding=(0, 3))
    both.add_row(distributions(row, emotions), Text(printable(str(row.get("completion", "")))))
    return Padding(Group(title, both), (0, 0, 1, 0))


def distributions(row: dict, emotions: Sequence[str]) -> Table:
    """Two bars an emotion: its share of the votes, and the share that the answer gave it."""
    votes, shares = list(row.get("votes", [])), row.get("shares")
    table = Table.grid(padding=(0, 1))
    table.add_row("", Text("votes", "dim"), "", *([] if shares is None else [Text("answer", "dim"), ""]))
    for i, count in enumerate(votes):
        share = count / max(sum(votes), 1)
        name = emotions[i] if len(emotions) == len(votes) else f"emotion {i + 1}"
        cells = [name, Bar(1, 0, share, width=8, color="green"), str(count)]
        if shares is not None:
            cells += [Bar(1, 0, shares[i], width=8, color="magenta"), f"{shares[i]:.2f}"]
        table.add_row(*cells)
    return table


def printable(text: str) -> str:
    """The text without characters that would steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


if __name__ == "__main__":
    raise SystemExit(run(main))
