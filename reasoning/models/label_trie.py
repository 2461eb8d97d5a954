"""How labels are told apart at the vote slot: by their first tokens, or, where labels share one, by their whole lines.

Whole: a label's score is the log-probability that the vote's line is this label, summed over its tokens and the one
that holds the line break. Without the break `sad` would keep all that `sadness` is worth, as both begin with ` sad`;
with it no label's tokens begin another's. Every label of such a set is scored whole, also one that parts from the
others at once: else some labels would pay for going on surely and others would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reasoning.emotions import EmotionSet
from reasoning.errors import ModelError
from reasoning.response import ANSWER_PREFIX


@dataclass(frozen=True)
class Step:
    """Of `tokens`, the log-probabilities are asked after ANSWER_PREFIX and `prefix`."""

    prefix: tuple[int, ...]
    tokens: tuple[int, ...]


class LabelTrie:
    """The scored tokens of each label, in EmotionSet order, and the steps that score them all.

    paths: no one begins another. steps: the first has an empty prefix; it is the only one where first tokens tell the
    labels apart, and its tokens then are the labels'. depth: length of the longest path.
    """

    def __init__(self, paths: Sequence[Sequence[int]]) -> None:
        self.paths = tuple(tuple(path) for path in paths)
        after: dict[tuple[int, ...], list[int]] = {}
        for path in self.paths:
            for i, token in enumerate(path):
                known = after.setdefault(path[:i], [])
                if token not in known:
                    known.append(token)
        # The shorter first, so that what a step stands on comes before it.
        self.steps = tuple(Step(p, tuple(t)) for p, t in sorted(after.items(), key=lambda item: len(item[0])))
        self.depth = max(map(len, self.paths))

    @classmethod
    def of(cls, tokenizer: Any, emotions: EmotionSet) -> LabelTrie:
        """The labels as `tokenizer` writes them. Raises ModelError when it would merge ANSWER_PREFIX with a label."""
        lines = [_line(tokenizer, name) for name in emotions.names]
        firsts = [line[:1] for line in lines]
        return cls(firsts if len(set(firsts)) == len(firsts) else lines)

    def sums(self, logps: Sequence[Sequence[float]]) -> list[float]:
        """The score of each label, (K,), given for each step the log-probabilities of its tokens."""
        found: dict[tuple[int, ...], float] = {
            (*step.prefix, token): logp
            for step, of_step in zip(self.steps, logps, strict=True)
            for token, logp in zip(step.tokens, of_step, strict=True)
        }
        return [sum(found[path[: i + 1]] for i in range(len(path))) for path in self.paths]


def _line(tokenizer: Any, name: str) -> tuple[int, ...]:
    """The tokens of `name` after ANSWER_PREFIX, with a leading space, up to the one that holds the line break."""
    prefix = tokenizer.encode(ANSWER_PREFIX, add_special_tokens=False)
    whole = tokenizer.encode(f"{ANSWER_PREFIX} {name}\nShares:", add_special_tokens=False)
    if whole[: len(prefix)] != prefix:
        raise ModelError(f"the tokenizer merges {ANSWER_PREFIX!r} with {name!r}", field="emotions")
    rest = whole[len(prefix) :]
    stop = next(i for i in range(1, len(rest) + 1) if "\n" in tokenizer.decode(rest[:i]))
    return tuple(rest[:stop])


class TrieForward:
    """Scores whole labels in the forward that computes a row anyway: the steps' tokens stand behind it, as a tree.

    Each sees what its row holds before the slot and the tokens that it stands on, nothing else, and nothing sees it;
    so a row costs some ten more positions, not one more pass for each label. Raises ModelError on an implementation of
    attention that takes no mask of its own.
    """

    def __init__(self, labels: LabelTrie, model: Any) -> None:
        config = model.config.get_text_config()
        self.attention = config._attn_implementation
        if self.attention not in ("sdpa", "eager"):
            raise ModelError(
                f"{self.attention} cannot score labels that share a first token",
                field="attn_implementation",
                cure="choose sdpa, or rename labels in the corpus's EmotionSet so that their first tokens differ",
            )
        # Node 0 is the slot; node i stands for the last token of steps[i].prefix.
        nodes = {step.prefix: i for i, step in enumerate(labels.steps)}
        inner = [step.prefix for step in labels.steps[1:]]
        self.ids = torch.tensor([prefix[-1] for prefix in inner])
        self.depths = torch.tensor([len(prefix) for prefix in inner])
        self.sees = torch.tensor([[q[: len(k)] == k for k in inner] for q in inner])
        self.edges = torch.tensor([(nodes[s.prefix], token) for s in labels.steps for token in s.tokens])
        ends = [(*step.prefix, token) for step in labels.steps for token in step.tokens]
        self.uses = torch.tensor([[path[: len(end)] == end for end in ends] for path in labels.paths])

    def inputs(self, ids: Tensor, mask: Tensor, slots: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Model inputs for rows with the tree behind them.

        ids: (B, L). mask: (B, S), S >= L: of what the cache holds and of the rows. slots: (B,), 0 to L. Returns
        input_ids (B, L + T), position_ids alike, and attention_mask (B, 1, L + T, S + T).
        """
        (rows, length), whole, count = ids.shape, mask.shape[1], len(self.ids)
        device, past = ids.device, whole - length
        keys = torch.arange(whole, device=device)
        real = mask.bool()[:, None, :]
        own = keys[past:, None]
        # A padding token sees itself: a query that sees nothing has no softmax.
        of_rows = (real & (keys <= own)) | (keys == own)
        before_slot = (keys < past + slots.to(device)[:, None])[:, None, :] & real
        seen = torch.cat([of_rows, before_slot.expand(rows, count, whole)], dim=1)
        tree = torch.zeros(rows, length + count, count, dtype=torch.bool, device=device)
        tree[:, length:] = self.sees.to(device)
        allowed = torch.cat([seen, tree], dim=2)[:, None]
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        of_tree = before_slot.sum(-1) + self.depths.to(device) - 1
        return {
            "input_ids": torch.cat([ids, self.ids.to(device).expand(rows, count)], dim=1),
            "position_ids": torch.cat([positions, of_tree], dim=1),
            "attention_mask": allowed if self.attention == "sdpa" else _additive(allowed, dtype),
        }

    def scores(self, logits: Tensor) -> Tensor:
        """(B, K) log-probabilities of the labels' lines, given the logits (B, 1 + T, V) at the slot and in the tree."""
        logps = torch.log_softmax(logits.float(), dim=-1)
        nodes, tokens = self.edges.to(logits.device).unbind(-1)
        return logps[:, None, nodes, tokens].where(self.uses.to(logits.device), 0.0).sum(-1)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
