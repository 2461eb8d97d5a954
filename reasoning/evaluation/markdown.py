"""The results as GitHub markdown: the section `results` of README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reasoning.evaluation.comparisons import NON_INFERIORITY_MARGIN, VERDICTS, title
from reasoning.evaluation.predictions import FORCED

SECTION = "results"
COLUMNS = ("jsd_bits", "nll_bits", "brier", "bc", "entropy_correlation", "ua")
_HEADS = ("jsd_bits ↓ [95%]", "nll_bits ↓", "brier ↓", "bc ↑", "entropy corr. ↑", "UA ↑", "parsed")
_SHOWN = ("corpus", "statement", "folds", "subset", "n_clips", "n_speakers", "readouts", "prompt_level", "decoding",
          "tie_rule", "unparseable_rule", "nll_floor", "intervals")  # fmt: skip


def results_markdown(scores: Mapping[str, Any]) -> str:
    """The table, the human reference points, the paired differences and the protocol, as GitHub markdown."""
    rows = ["| system | " + " | ".join(_HEADS) + " | raters |", "|---" * (len(_HEADS) + 2) + "|"]
    raters = scores["human"]["raters"]
    for system in sorted(scores["systems"], key=lambda s: s["readout"] != "none"):  # baselines first
        equivalent = raters["models"].get(system["key"], {}).get("text", "–") if raters else "–"
        named = escape(title((system["system"], system["readout"], system["control"])))
        cells = [named, *_cells(system), equivalent]
        rows.append("| " + " | ".join(cells) + " |")
    notes = [_human_note(scores["human"])]
    if scores["few_speakers"]:
        notes.append(scores["few_speakers"])
    shown = [f"{name.replace('_', ' ')}: {scores['protocol'][name]}" for name in _SHOWN]
    parts = [
        "\n".join(rows),
        *map(escape, notes),
        _folded("Paired differences: what may be claimed", _differences(scores)),
    ]
    return "\n\n".join([*parts, _folded("Protocol", "\n".join(f"- {escape(line)}" for line in shown))])


def escape(text: str) -> str:
    """`text` as markdown shows it literally: names come from users and data."""
    for mark in "\\`*_|<>":
        text = text.replace(mark, {"<": "&lt;", ">": "&gt;"}.get(mark, f"\\{mark}"))
    return text


def _differences(scores: Mapping[str, Any]) -> str:
    """A table of the paired differences from baselines and earlier systems, with the verdict that they allow."""
    titles = {s["key"]: title((s["system"], s["readout"], s["control"])) for s in scores["systems"]}
    heads = ("first minus second", "jsd_bits", "nll_bits", "brier", "jsd_bits, tempered", "the first is")
    rows = ["| " + " | ".join(map(escape, heads)) + " |", "|---" * len(heads) + "|"]
    for c in scores["comparisons"]:
        if c["kind"] not in ("baseline", "system"):
            continue
        tempered = c["tempered"]["jsd_bits"] if c["tempered"] else None
        figures = [*(c["metrics"][name] for name in ("jsd_bits", "nll_bits", "brier")), tempered]
        not_inferior = c["kind"] == "system" and c["non_inferior"] and c["metrics"]["jsd_bits"]["high"] >= 0
        said = c["verdict"] + (", not inferior" if not_inferior else "")
        cells = [f"{titles[c['system']]} − {titles[c['versus']]}", *map(_difference, figures), said]
        rows.append("| " + " | ".join(map(escape, cells)) + " |")
    used = {c["verdict"] for c in scores["comparisons"]}
    rules = [f"{name}: {rule}" for name, rule in VERDICTS.items() if name in used or name == "better"]
    rules.append(f"not inferior: the interval of jsd_bits ends under {NON_INFERIORITY_MARGIN:g}")
    rule = f"{'; '.join(rules)}. Clearly: the interval is clear of zero. Tempered: each after its own dev temperature."
    return "\n".join(rows) + "\n\n" + escape(rule)


def _difference(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return "–"
    ends = "" if interval["low"] is None else f" [{interval['low']:+.3f}, {interval['high']:+.3f}]"
    return f"{interval['estimate']:+.3f}{ends}"


def _cells(system: Mapping[str, Any]) -> list[str]:
    metrics = system["metrics"]
    headline = metrics["jsd_bits"]
    ends = "" if headline["low"] is None else f" [{headline['low']:.3f}, {headline['high']:.3f}]"
    cells = [f"{headline['estimate']:.3f}{ends}", *(_number(metrics[name]["estimate"]) for name in COLUMNS[1:])]
    forced = system["problems"].get(FORCED, 0)
    return [*cells, f"{100 * system['parse_rate']['estimate']:.1f}%" + (f", {forced} forced" if forced else "")]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _human_note(human: Mapping[str, Any]) -> str:
    note = f"Vote sampling alone costs an oracle {human['sampling_floor']['jsd_bits']['estimate']:.3f} jsd_bits."
    raters = human["raters"]
    if raters is None:
        return note
    each = _listed([f"{k}: {i['estimate']:.3f}" for k, i in zip(raters["k"], raters["jsd_bits"], strict=True)])
    return (
        f"{note} Raters against the remaining votes, jsd_bits by number of raters: {each} "
        f"({raters['n_clips']} clips). Raters: how many of them score like the system on the same remaining votes."
    )


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items)


def _folded(title_: str, body: str) -> str:
    return f"<details><summary>{title_}</summary>\n\n{body}\n\n</details>"
