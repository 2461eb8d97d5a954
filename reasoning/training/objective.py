"""The ambiguity objective: cross-entropy on the response plus the divergence of the label readout from the votes.

    loss = CE(response) + weight * KL(votes || softmax over labels at the vote slot)

The cross-entropy has no hard target at the slot: there it is -log of the probability that any label comes, since which
one is the KL's business, and a readout over labels that are never said would be of no use to a sampled answer.
Both terms come from one forward (models/answer_head.py). The KL is in nats, as the cross-entropy is; it equals
`distributions.kl_bits(p, q, floor=0)` times ln 2 (tests/reasoning/training/test_objective.py). After the idea of Yu et
al. (arXiv 2603.08230), whose summation direction cannot be recovered; ours, KL(votes || model), is the cross-entropy of
the votes up to a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def vote_kl_nats(label_logits_BK: Tensor, votes_BK: Tensor) -> Tensor:
    """KL(votes || label readout) of each row in nats, shape (B,), 0 upward; differentiable in the logits.

    votes_BK: counts or shares, each row with a positive sum. Computed in float32 whatever the model's type.
    """
    log_q = torch.log_softmax(label_logits_BK.float(), dim=-1)
    votes = votes_BK.to(log_q)
    p = votes / votes.sum(-1, keepdim=True)
    return nn.functional.kl_div(log_q, p, reduction="none").sum(-1)
