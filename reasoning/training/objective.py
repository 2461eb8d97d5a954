"""The ambiguity objective: cross-entropy on the response plus the divergence of the label readout from the votes.

    loss = CE(response) + weight * KL(votes || softmax over labels at the vote slot)

What the cross-entropy asks for at the slot is VOTE_TARGETS: by default it has no hard target there and is -log of the
probability that any label comes, since which one is the KL's business, and a readout over labels that are never said
would be of no use to a sampled answer. Both terms come from one forward (models/answer_head.py). The KL is in nats,
as the cross-entropy is; it equals `distributions.kl_bits(p, q, floor=0)` times ln 2
(tests/reasoning/training/test_objective.py). After the idea of Yu et al. (arXiv 2603.08230), whose summation
direction cannot be recovered; ours, KL(votes || model), is the cross-entropy of the votes up to a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

IGNORE = -100
"""Label of a token that the cross-entropy does not ask for, as transformers and torch have it."""

VOTE_TARGETS = ("any_label", "drawn_vote")
"""any_label: the labels' mass, none of them before another. drawn_vote: the one listener's vote that is written."""


def response_nll_nats(logps_BL: Tensor, label_mass_B: Tensor, labels_BL: Tensor, slots_B: Tensor) -> Tensor:
    """The cross-entropy summed over a batch's responses, nats, a scalar; differentiable in the first two.

    logps_BL: log-probability of each label token, 0 where it is IGNORE. label_mass_B: log-probability that any label
    stands at the vote slot; it counts in rows whose token there is IGNORE, which is how the collator says any_label.
    slots_B: positions of that token.
    """
    any_label = labels_BL.gather(1, slots_B[:, None])[:, 0] == IGNORE
    return -logps_BL.sum() - label_mass_B[any_label].sum()


def vote_kl_nats(label_logits_BK: Tensor, votes_BK: Tensor) -> Tensor:
    """KL(votes || label readout) of each row in nats, shape (B,), 0 upward; differentiable in the logits.

    votes_BK: counts or shares, each row with a positive sum. Computed in float32 whatever the model's type.
    """
    log_q = torch.log_softmax(label_logits_BK.float(), dim=-1)
    votes = votes_BK.to(log_q)
    p = votes / votes.sum(-1, keepdim=True)
    return nn.functional.kl_div(log_q, p, reduction="none").sum(-1)
