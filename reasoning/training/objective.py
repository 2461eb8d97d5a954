"""The ambiguity objective: cross-entropy on the response plus the divergence of the label readout from the votes.

    loss = CE(response, without the vote's tokens) + weight * KL(votes || softmax over labels at the vote slot)

Both terms come from one forward. The KL is in nats, as the cross-entropy is; `distributions.kl_bits` times ln 2 equals
it with no floor (tests/reasoning/training/test_objective.py). After the idea of Yu et al. (arXiv 2603.08230), whose
summation direction is not recoverable; ours, KL(votes || model), is the cross-entropy of the votes up to a constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class LastHidden:
    """Holds the backbone's last hidden states (B, L, H) of the most recent forward under `keep_last_hidden`."""

    value: Tensor | None = None


@contextmanager
def keep_last_hidden(backbone: nn.Module) -> Iterator[LastHidden]:
    """Within it, the backbone's last hidden states are kept, so that a slot can be read without a second forward."""
    kept = LastHidden()

    def hook(_module: nn.Module, _args: tuple, output: object) -> None:
        kept.value = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]  # type: ignore[index]

    handle = backbone.register_forward_hook(hook)
    try:
        yield kept
    finally:
        handle.remove()


def slot_logits(hidden_BLH: Tensor, slots_B: Tensor, lm_head: nn.Module, label_ids: list[int]) -> Tensor:
    """Logits of the labels at each row's vote slot, shape (B, K).

    slots_B: position of the vote's own token; the hidden state before it predicts it. Only K rows of the LM head are
    multiplied, never the whole vocabulary.
    """
    rows = torch.arange(hidden_BLH.shape[0], device=hidden_BLH.device)
    hidden_BH = hidden_BLH[rows, slots_B.to(hidden_BLH.device) - 1]
    weight_KH = lm_head.weight[torch.tensor(label_ids, device=lm_head.weight.device)]  # type: ignore[index]
    logits = nn.functional.linear(hidden_BH.to(weight_KH.device), weight_KH)
    bias = getattr(lm_head, "bias", None)
    return logits if bias is None else logits + bias[label_ids]


def vote_kl_nats(label_logits_BK: Tensor, votes_BK: Tensor) -> Tensor:
    """KL(votes || label readout) of each row in nats, shape (B,), 0 upward; differentiable in the logits.

    votes_BK: counts or shares, each row with a positive sum. Computed in float32 whatever the model's type.
    """
    log_q = torch.log_softmax(label_logits_BK.float(), dim=-1)
    votes = votes_BK.to(log_q)
    p = votes / votes.sum(-1, keepdim=True)
    return nn.functional.kl_div(log_q, p, reduction="none").sum(-1)
