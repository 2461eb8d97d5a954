"""The head that training and the label readout share: log-probabilities of given tokens and logits of the labels.

One forward gives both. Only the positions that are asked for are multiplied by the LM head, so a prompt with a hundred
audio tokens costs no logits. TRL's own fused head does this on CUDA only, and returns no logits for the vote slot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel
from transformers.utils import ModelOutput

from reasoning.models.label_trie import LabelTrie, TrieForward

CHUNK = 4096
"""Positions multiplied by the LM head at once. More are recomputed in the backward pass instead of being kept."""


@dataclass
class AnswerOutput(ModelOutput):
    """What a forward with `answer_head=True` returns.

    logps: (B, L) log-probability of each label token given what stands before it, 0 where the label is -100.
    entropy: (B, L) nats, no gradient, 0 there too; None unless asked for. mean_logits: (B, L) mean of the logits over
    the vocabulary, given with the entropy. top1: (B, L) whether the label is likeliest. label_logits: (B, K) of the
    labels at `slots`, float32: logits of their tokens, or log-probabilities of their whole lines where first tokens do
    not tell them apart; None without slots. label_mass: (B,) log-probability that any of the labels stands there.
    """

    logps: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    top1: Tensor | None = None
    label_logits: Tensor | None = None
    label_mass: Tensor | None = None


@dataclass(frozen=True)
class Completions:
    """Sampled answers to prompts that are passed once. ids, mask: (B, C), right-padded. prompt_of: (B,) prompt rows."""

    ids: Tensor
    mask: Tensor
    prompt_of: Tensor


def add_answer_head(model: PreTrainedModel, label_trie: LabelTrie) -> None:
    """Let `model(..., answer_head=True, labels=, slots=, temperature=, entropy=, completions=)` return an AnswerOutput.

    labels: (B, L) token ids, -100 where nothing is asked. slots: (B,) position of the vote, L if it comes next.
    temperature divides the logits of `logps` and `entropy`, never those of the labels. completions: the inputs are
    left-padded prompts, each computed once for all its completions, and B, L, labels and slots are the completions'.
    Without `answer_head` the forward is the model's own. Patched on the model itself, so that DDP, DeepSpeed and FSDP
    see an ordinary forward call.
    """
    original = model.forward
    label_index = list(label_trie.steps[0].tokens)
    tree = TrieForward(label_trie, model) if len(label_trie.steps) > 1 else None

    # `generate` reads the signature before it passes position_ids; without them, left padding would shift its rows.
    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, answer_head: bool = False, **kwargs: Any) -> Any:
        if not answer_head:
            return original(*args, **kwargs)
        labels, slots = kwargs.pop("labels", None), kwargs.pop("slots", None)
        temperature, entropy = kwargs.pop("temperature", 1.0), kwargs.pop("entropy", False)
        completions = kwargs.pop("completions", None)
        # before[:, i] is the state that predicts token i; the last one predicts what would come next.
        grow = functools.partial(tree.inputs, slots=slots, dtype=self.dtype) if tree and slots is not None else None
        if completions is None:
            kwargs |= grow(kwargs["input_ids"], kwargs["attention_mask"]) if grow else {}
            hidden = self.base_model(*args, **{"use_cache": False, **kwargs}).last_hidden_state
            length = hidden.shape[1] - (len(tree.ids) if tree and grow else 0)
            before, in_tree = nn.functional.pad(hidden[:, :length], (0, 0, 1, 0)), hidden[:, length:]
        else:
            before, in_tree = _states_before_completions(self, completions, grow, **kwargs)
        lm_head = cast(nn.Module, self.get_output_embeddings())
        output = AnswerOutput()
        if labels is not None:
            output.logps, output.top1, *rest = _label_tokens(before, lm_head, labels, temperature, entropy)
            output.entropy, output.mean_logits = rest or (None, None)
        if slots is not None:
            rows = torch.arange(before.shape[0], device=before.device)
            at_slot = before[rows, slots.to(before.device)]
            if tree is None:
                logits = lm_head(at_slot).float()
                output.label_logits = of_labels = logits[:, label_index]
                output.label_mass = of_labels.logsumexp(-1) - logits.logsumexp(-1)
            else:
                output.label_logits = tree.scores(lm_head(torch.cat([at_slot[:, None], in_tree], dim=1)))
                output.label_mass = output.label_logits.logsumexp(-1)
        return output

    model.forward = MethodType(forward, model)  # type: ignore[method-assign]


def _states_before_completions(
    model: PreTrainedModel, completions: Completions, grow: Callable[..., dict[str, Tensor]] | None, **prompts: Any
) -> tuple[Tensor, Tensor]:
    """States before each completion token and after the last (B, C + 1, H), and in the tree of labels (B, T, H).

    Gradients reach the prompts by the cache. grow: makes the inputs with the tree behind; None leaves it out.
    """
    mask = prompts["attention_mask"]
    cache = DynamicCache(config=model.config.get_text_config())
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    states = model.base_model(**prompts, position_ids=positions, past_key_values=cache, use_cache=True)
    last = states.last_hidden_state[:, -1]
    cache.batch_select_indices(completions.prompt_of)
    whole = torch.cat([mask[completions.prompt_of], completions.mask.to(mask)], dim=1)
    inputs = {
        "input_ids": completions.ids,
        "attention_mask": whole,
        "position_ids": (whole.cumsum(-1) - 1).clamp(min=0)[:, mask.shape[1] :],
    }
    inputs |= grow(completions.ids, whole) if grow else {}
    answers = model.base_model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
    length = completions.ids.shape[1]
    return torch.cat([last[completions.prompt_of][:, None], answers[:, :length]], dim=1), answers[:, length:]


def _label_tokens(
    before: Tensor, lm_head: nn.Module, labels: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, ...]:
    """(logps, top1) and, if asked, entropy and mean logits, each (B, L), given the states (B, L + 1) before."""
    asked = labels != -100
    states, targets = before[:, :-1][asked], labels[asked]
    parts = []
    for start in range(0, max(len(targets), 1), CHUNK):
        chunk = states[start : start + CHUNK], lm_head, targets[start : start + CHUNK], temperature, entropy
        keep = len(targets) <= CHUNK or not torch.is_grad_enabled()
        parts.append(_scores(*chunk) if keep else checkpoint(_scores, *chunk, use_reentrant=False))
    flat = [torch.cat(column) for column in zip(*parts, strict=True)]
    # masked_scatter keeps the rows connected to the model even where nothing is asked: a zero that has a gradient.
    return tuple(values.new_zeros(labels.shape).masked_scatter(asked, values) for values in flat)


def _scores(
    states: Tensor, lm_head: nn.Module, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, ...]:
    logits = lm_head(states).float()
    logits = logits if temperature == 1 else logits / temperature
    chosen = -nn.functional.cross_entropy(logits, targets, reduction="none")
    with torch.no_grad():
        top1 = (logits.argmax(-1) == targets).float()
        if not entropy:
            return chosen, top1
        logs = torch.log_softmax(logits, dim=-1)
        return chosen, top1, -(logs.exp() * logs).sum(-1), logits.mean(-1)
