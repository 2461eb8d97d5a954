"""The gate between trainer and rollouts: same prompts, audio, log-probabilities and weights, or no training.

A rollout engine that reads another prompt, hears other audio or holds other weights trains without an error on rewards
that belong to another policy. The gate asks both sides about a few clips, with their own sound and with another clip's,
and says which part differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from reasoning.distributions import normalize_votes, tvd
from reasoning.errors import ConfigError, ModelError
from reasoning.rollouts.parity_report import Parity, Part, Token
from reasoning.rollouts.policy import Case, Policy
from reasoning.rollouts.rollouts import Prompt, Rollouts, Sample, Sampling

CLIPS, SAMPLES = 4, 2
"""Clips asked about, and completions sampled for each: some hundred tokens, so that a percentile has a meaning."""


@dataclass(frozen=True)
class Limits:
    """What passes. mean, p99: |difference| of a token's log-probability, nats. audio: largest difference of a feature,
    as a share of the features' root mean square. share: difference of an effect (of a swap, of a changed adapter), as
    a share of it. change: mean difference of what a changed adapter does to a token, nats; in bfloat16 the changed
    model's own rounding hides all but the share.
    """

    mean: float
    p99: float
    audio: float
    share: float
    change: float


LIMITS = {"float32": Limits(0.01, 0.1, 1e-3, 0.1, 0.02), "bfloat16": Limits(0.1, 0.5, 0.05, 0.33, float("inf"))}
"""By the coarser number type of the two sides.

float32: two right implementations differ by 1e-5 here; a hundredth of a nat moves an importance ratio by 1%. bfloat16:
sound pairs are reported at a mean of .011 (vime #64, Qwen3-4B), .04 (miles #2722) and .064 (verl-omni #637) and at a
95th percentile of .11 with single tokens of .3 to .5 (TRL #6789, vLLM #47425); pairs that did not train or were refused
at .2 to .4 (OpenClaw-RL #69) and .31 with a 99th percentile of 1.6 (mini-verl #95). The limits stand between the two.
"""

LEAST_HEARD = 0.5
"""Nats a completion that a policy which was trained to hear must lose when its sound is swapped, on average: a deaf
pair agrees perfectly, at zero."""

POWER = 10
"""A changed adapter must move the trainer's log-probabilities by this many times the gap between the sides."""


@dataclass(frozen=True)
class Received:
    """What an engine says it was given. ids: the prompt as its model sees it. audio: (tokens, hidden) in the
    placeholders' places, None without audio or where the engine heard the sound itself.
    """

    ids: list[int]
    audio: Tensor | None


@runtime_checkable
class Reporting(Protocol):
    """Rollouts that say what they received. One that hears for itself refuses, with ModelError, a prompt that its own
    template makes otherwise; what it heard is judged by its log-probabilities.
    """

    def received(self, prompts: Sequence[Prompt]) -> list[Received]: ...


def swaps(rows: Sequence[Mapping], clips: int = CLIPS) -> list[tuple[int, int]]:
    """(clip, whose sound takes the place of its own), by index: the longest clip, and others spread over the rows.

    The other clip is the one whose votes differ most, of the same words where there is one: what the swap changes is
    then what the policy is trained to hear. Raises ConfigError when there is no other clip.
    """
    if len(rows) < 2:
        raise ConfigError(
            "leaves one clip, and the parity gate swaps the sound of two", field="limit", cure="train on more clips"
        )
    longest = max(range(len(rows)), key=lambda i: rows[i].get("duration_s", 0.0))
    spread = [i * len(rows) // clips for i in range(clips)]
    chosen = list(dict.fromkeys([longest, *spread]))[:clips]
    shares = normalize_votes([row["votes"] for row in rows])
    pairs = []
    for i in chosen:
        gain = tvd(np.repeat(shares[i : i + 1], len(rows), axis=0), shares)
        gain = gain + [0.25 * (row["transcript"] == rows[i]["transcript"]) for row in rows]
        gain[i] = -1
        pairs.append((i, int(np.argmax(gain))))
    return pairs


def check_parity(
    policy: Policy,
    rollouts: Rollouts,
    cases: Sequence[Case],
    sampling: Sampling,
    *,
    sync: Callable[[], object],
    trained: bool,
    seed: int = 0,
) -> Parity:
    """What both sides say about the cases; the random state and the trainer's weights are afterwards what they were.

    sync: hand the rollouts the trainer's present weights, in all ranks alike. trained: whether the policy has learned
    to hear already, so that a swap has to cost it something. Raises nothing of its own: see `Parity.require`.
    """
    with torch.random.fork_rng():
        return _check(policy, rollouts, cases, sampling, sync, trained, seed)


def _check(
    policy: Policy,
    rollouts: Rollouts,
    cases: Sequence[Case],
    sampling: Sampling,
    sync: Callable[[], object],
    trained: bool,
    seed: int,
) -> Parity:
    dtype = "float32" if {policy.dtype, getattr(rollouts, "dtype", policy.dtype)} == {"float32"} else "bfloat16"
    limits = LIMITS[dtype]
    sync()
    true, swapped = [case.true for case in cases], [case.swapped for case in cases]
    try:
        parts = received_parts(policy, rollouts, cases, limits)
        samples = rollouts.sample(true, SAMPLES, [seed + 1000 * i for i in range(len(true))], sampling)
        flat = [sample for of_prompt in samples for sample in of_prompt]
        completions = [sample.ids for sample in flat]
        true, swapped = [p for p in true for _ in range(SAMPLES)], [p for p in swapped for _ in range(SAMPLES)]
        theirs = [rollouts.logps(prompts, completions) for prompts in (true, swapped)]
    except ModelError as error:
        if error.field != "prompt":
            raise
        # Engines hold every request's prompt against ours and refuse it; to the gate that is a finding. The two syncs
        # that are left out here would be waited for by the other ranks.
        sync()
        sync()
        part = Part("prompt token ids", False, error.what, "equal", {}, error.cure or _PROMPT_CURE, error.row)
        return Parity(rollouts.name, dtype, len(cases), 0, 0, (part,), ())
    ours = [policy.logps(prompts, completions) for prompts in (true, swapped)]
    parts += [
        gap_part("log-probabilities, own audio", ours[0], theirs[0], limits),
        gap_part("log-probabilities, swapped audio", ours[1], theirs[1], limits),
        _drawn_part(policy, true, flat, sampling, limits),
        hearing_part(ours, theirs, limits, trained),
    ]
    # After the wrong sound: a model that is sure of its own words would not be moved on them.
    with policy.changed(seed):
        sync()
        moved = policy.logps(swapped, completions), rollouts.logps(swapped, completions)
    sync()
    parts.append(change_part((ours[1], theirs[1]), moved, rollouts.logps(swapped, completions), limits))
    tokens = [
        *_tokens(policy, true, completions, "own audio", ours[0], theirs[0]),
        *_tokens(policy, swapped, completions, "swapped audio", ours[1], theirs[1]),
    ]
    worst = sorted(tokens, key=lambda t: abs(t.trainer - t.rollouts), reverse=True)[:5]
    count = sum(map(len, completions))
    return Parity(rollouts.name, dtype, len(cases), len(completions), count, tuple(parts), tuple(worst))


_PROMPT_CURE = "serve the same checkpoint folder (its tokenizer and chat template), with the pinned version of vLLM"
_AUDIO_CURE = "give the engine what the trainer's tower and its present projector make of the clip"
_LOGP_CURE = "give the engine the same base, adapter, number type and attention; then look at the widest gaps below"
_SYNC_CURE = "see that a sync replaces every weight that training touches and resets the engine's caches"


def received_parts(policy: Policy, rollouts: Rollouts, cases: Sequence[Case], limits: Limits) -> list[Part]:
    """Are the prompt's token ids equal, and the audio that stands in the placeholders' places?"""
    prompts = [prompt for case in cases for prompt in (case.true, case.swapped)]
    limit = f"{limits.audio:g} of their size"
    if not isinstance(rollouts, Reporting):
        # A server that met another prompt than ours would have refused it, which `_check` reports.
        said = "equal at every request, by the engine's own check" if rollouts.hears else "not reported"
        ids = Part("prompt token ids", True if rollouts.hears else None, said, "equal", {}, _PROMPT_CURE)
        said = "heard by the engine itself: see the log-probabilities" if rollouts.hears else "not reported"
        return [ids, Part("audio features", None, said, limit, {}, _AUDIO_CURE)]
    received = rollouts.received(prompts)
    other = [i for i, (p, r) in enumerate(zip(prompts, received, strict=True)) if p.ids != r.ids]
    said, row = f"{len(prompts)} of {len(prompts)} equal", None
    if other:
        prompt, ids = prompts[other[0]], received[other[0]].ids
        at = next(
            (k for k, (a, b) in enumerate(zip(prompt.ids, ids, strict=False)) if a != b), min(len(prompt.ids), len(ids))
        )
        row = prompt.row
        said = (
            f"{len(other)} of {len(prompts)} differ: {len(ids)} tokens for {len(prompt.ids)}, other from number {at} on"
        )
    parts = [Part("prompt token ids", not other, said, "equal", {"prompts_differ": len(other)}, _PROMPT_CURE, row)]
    pairs = zip(prompts, received, strict=True)
    gaps = [(gap, p.row) for p, r in pairs if (gap := _audio_gap(policy, p, r)) is not None]
    if not gaps:
        return [*parts, Part("audio features", None, "not reported", limit, {}, _AUDIO_CURE)]
    widest, row = max(gaps)
    said = f"other by {widest:.2g} of their size" if widest < float("inf") else "another number of them"
    return [
        *parts,
        Part("audio features", widest <= limits.audio, said, limit, {"audio_gap": widest}, _AUDIO_CURE, row),
    ]


def _audio_gap(policy: Policy, prompt: Prompt, received: Received) -> float | None:
    """Largest difference of a feature as a share of their root mean square; infinite where their numbers differ."""
    if received.audio is None or prompt.heard is None:
        return None
    ours = policy.audio(prompt)
    if ours.shape != received.audio.shape:
        return float("inf")
    return float((ours - received.audio.to(ours)).abs().max() / ours.square().mean().sqrt().clamp(min=1e-12))


Logps = Sequence[Sequence[float]]


def gap_part(name: str, ours: Logps, theirs: Logps, limits: Limits) -> Part:
    """Do the sides give each token the same log-probability?"""
    gap = np.abs(_flat(ours) - _flat(theirs))
    mean, p99 = float(gap.mean()), float(np.percentile(gap, 99))
    said = f"mean {mean:.2g}, 99th percentile {p99:.2g} nats"
    key = name.replace(", ", "_").replace(" ", "_").replace("-", "_")
    return Part(
        name,
        bool(mean <= limits.mean and p99 <= limits.p99),
        said,
        f"{limits.mean:g}, {limits.p99:g}",
        {f"{key}_mean": mean, f"{key}_p99": p99},
        _LOGP_CURE,
    )


def _drawn_part(
    policy: Policy, prompts: Sequence[Prompt], samples: Sequence[Sample], sampling: Sampling, limits: Limits
) -> Part:
    """Is what the engine says it drew from what the trainer computes at that temperature?"""
    name = f"log-probabilities as drawn, T {sampling.temperature:g}"
    if (sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty) != (1.0, 0, 0.0, 1.0):
        said = "cut or bent by top_p, top_k, min_p or repetition_penalty, which the trainer does not model"
        return Part(name, None, said, f"{limits.mean:g}, {limits.p99:g}", {}, _LOGP_CURE)
    ours = policy.logps(prompts, [sample.ids for sample in samples], temperature=sampling.temperature)
    part = gap_part("log-probabilities as drawn", ours, [sample.logps for sample in samples], limits)
    return Part(name, part.passed, part.said, part.limit, part.figures, part.cure)


def hearing_part(ours: Sequence[Logps], theirs: Sequence[Logps], limits: Limits, trained: bool) -> Part:
    """Do the sides lose the same when a completion's own sound is swapped for another's, and is it anything at all?"""
    worth = [float(np.mean([sum(t) - sum(s) for t, s in zip(*side, strict=True)])) for side in (ours, theirs)]
    said = f"trainer {worth[0]:.3g}, rollouts {worth[1]:.3g} nats a completion"
    limit = f"within {limits.share:.0%}, {LEAST_HEARD:g} or more"
    figures = {"hearing_trainer": worth[0], "hearing_rollouts": worth[1]}
    allowed = limits.share * max(abs(worth[0]), LEAST_HEARD)
    agree, cure = abs(worth[0] - worth[1]) <= allowed, "see that the engine is handed each clip's own audio"
    passed: bool | None = agree
    if agree and worth[0] < LEAST_HEARD:
        # Nothing was taught yet where nothing was trained; after training, both sides being deaf is no agreement.
        passed = False if trained else None
        cure = (
            "train the adapter to hear first (`equivox sft`), look whether its projector was loaded, or give it clips "
            "whose votes differ (a small --limit may leave none)"
        )
    return Part("what the audio is worth", passed, said, limit, figures, cure)


def change_part(before: tuple[Logps, Logps], moved: tuple[Logps, Logps], back: Logps, limits: Limits) -> Part:
    """Does a changed adapter reach the rollouts, whole, and the old one again after it?"""
    ours = _flat(moved[0]) - _flat(before[0])
    theirs = _flat(moved[1]) - _flat(before[1])
    size, gap = float(np.abs(ours).mean()), float(np.abs(ours - theirs).mean())
    left = float(np.abs(_flat(back) - _flat(before[1])).mean())
    apart = float(np.abs(_flat(before[0]) - _flat(before[1])).mean())
    allowed = min(limits.change, limits.share * size)
    other = float(np.abs(theirs).mean())
    said = f"trainer moves {size:.2g}, rollouts {other:.2g}, apart {gap:.2g}, left behind {left:.2g} nats"
    figures = {"change_trainer": size, "change_gap": gap, "change_left": left}
    passed = bool(gap <= allowed and left <= allowed)
    # Where the sides differ about as much before the change as by it, nothing can be told of it.
    verdict = None if size <= POWER * apart else passed
    limit = f"{allowed:.2g} apart and left"
    return Part("a changed adapter, and back", verdict, said, limit, figures, _SYNC_CURE)


def _flat(logps: Logps) -> np.ndarray:
    return np.array([value for row in logps for value in row], dtype=np.float64)


def _tokens(
    policy: Policy,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[int]],
    audio: str,
    ours: Logps,
    theirs: Logps,
) -> list[Token]:
    """The token of each completion on which the sides differ most."""
    found = []
    for prompt, ids, a, b in zip(prompts, completions, ours, theirs, strict=True):
        at = int(np.argmax(np.abs(np.array(a) - np.array(b))))
        context = policy.text(ids[max(0, at - 12) : at])[-40:]
        found.append(Token(prompt.row, audio, context, policy.text(ids[at : at + 1]), a[at], b[at]))
    return found
