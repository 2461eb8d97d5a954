"""Gold in the group: one verified reference trajectory takes a sampled answer's place in each clip's group.

The reference is a trace that the verifier keeps and the clip's votes as Shares. It is rewarded like any answer, so it
raises the mean that the others are measured against, and its own tokens are learned with its own advantage:

    A_i = r_i - mean(r_1 .. r_G),  A_gold = max(0, r_gold - mean(r_1 .. r_G)),  G counting the reference
    loss of the reference = -A_gold * sum over its tokens t of ratio_t / N,  ratio_t = pi(t) / pi_old(t), clipped by TRL
    gradient where ratio_t = 1, which it is at a rollout's first step: -A_gold * sum over t of grad log pi(t) / N

The policy did not draw the reference, so this is no policy gradient: a right one needs pi(t) / q(t) with the density q
of whoever wrote it. A template has none that is known, and with q = 1 the weight pi(t) of the whole text is next to 0
exactly where there is something to learn. LUFFY (Yan et al. 2025, arXiv 2504.14945) puts q = 1 for each token and bends
the weight to pi / (pi + 0.1). Here the reference counts as if the old policy had written it: what is left is supervised
fine-tuning weighted by how much better the reference is than the group, which fades as the policy catches up, needs no
constant of its own, and stays within TRL's clipping. Where the samples are better than the reference, it is not
unlearned: pushing down a text that is never sampled has no end, and a verified trace is not wrong. Yu et al.
(arXiv 2603.08230) put a gold trajectory into the group too; how they weigh it is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reasoning.distributions import normalize_votes
from reasoning.errors import RowError
from reasoning.readings import RATES, rates
from reasoning.response import HUNDREDTHS, Reading, ShareGrid, write_response
from reasoning.training.collate import drawn_vote
from reasoning.training.grpo import AudioGRPOTrainer


class GoldGRPOTrainer(AudioGRPOTrainer):
    """AudioGRPOTrainer with the module's reference in the last place of the group of every clip that has one.

    gold: clip id -> thinking; clips without one keep all their sampled answers. grid: of its Shares, as SFT wrote them.
    The reference's vote is drawn from the votes and masked like any vote, and the KL at the vote slot leaves it out.
    Logged rewards, `parse_rate` and `problems` are the policy's own; beside them `gold/reward` and `gold/advantage`,
    means over the references, and in the completions table the column `gold`. Lengths and `reward_spread` count it.
    Without gold every number is AudioGRPOTrainer's.
    """

    def __init__(self, *args: Any, gold: Mapping[str, str], grid: ShareGrid = HUNDREDTHS, **kwargs: Any) -> None:
        self._thinking, self._grid = gold, grid
        super().__init__(*args, **kwargs)
        for row in kwargs["rows"]:
            self._check_length(row)

    def _check_length(self, row: Mapping[str, Any]) -> None:
        limit = self.args.max_completion_length
        if row["id"] in self._thinking and limit and (needed := len(self._gold_ids(row))) > limit:
            what = f"needs {needed} tokens, over max_completion_length {limit}"
            raise RowError(what, row=row["id"], field="gold_traces", cure="raise max_completion_length")

    def _gold_ids(self, row: Mapping[str, Any]) -> list[int]:
        """Token ids of a clip's reference with its end of turn; the vote is drawn anew in each step."""
        emotions = self._prompter.emotions
        vote = drawn_vote(row, emotions, self.args.seed, self.state.global_step)
        shares = normalize_votes(row["votes"])[0].tolist()
        text = write_response(shares, vote, emotions, self._thinking[row["id"]], self._grid)
        return [*self._prompter.encode(text), self._prompter.eos_id]

    def _places(self, inputs: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which local samples are references: the last of each group whose clip has one, in training only."""
        start = self.accelerator.process_index * len(inputs)
        size = int(self.num_generations or 1)
        return [
            self.model.training and (start + i) % size == size - 1 and row["id"] in self._thinking
            for i, row in enumerate(inputs)
        ]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._gold = self._places(inputs)
        self._log_completion_extra("gold", self._gold)
        output = super()._generate_and_score_completions(inputs)
        is_gold = torch.tensor(self._gold, device=output["advantages"].device)
        output["advantages"] = torch.where(is_gold, output["advantages"].clamp(min=0), output["advantages"])
        output["slots"] = output["slots"].masked_fill(is_gold, -1)
        self._log_gold(is_gold, output["advantages"])
        return output

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], Any]:
        ids, logps = super()._generate_single_turn(*args, **kwargs)
        rows = self._rows
        for i, is_gold in enumerate(self._gold):
            if is_gold:
                ids[i] = self._gold_ids(rows[i])
                if logps is not None:
                    logps[i] = [None] * len(ids[i])  # TRL's word for a token that was not sampled: its ratio is 1
        return ids, logps

    # What is logged

    def _log_readings(self, completions: Sequence[str]) -> list[Reading]:
        readings = super()._log_readings(completions)
        own = [reading for reading, is_gold in zip(readings, self._gold, strict=True) if not is_gold]
        local = torch.tensor([rates(own or readings)], device=self.accelerator.device)
        shares = torch.as_tensor(self.accelerator.gather(local)).mean(dim=0).tolist()
        for name, share in zip(RATES, shares, strict=True):
            self._metrics[self._mode()][name][-1] = share
        return readings

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._paid = super()._calculate_rewards(*args, **kwargs)
        return self._paid

    def _log_gold(self, is_gold: Tensor, advantages: Tensor) -> None:
        """Put the policy's own means in the place of TRL's over all answers; log the references' beside them."""
        everywhere = torch.as_tensor(self.accelerator.gather(is_gold.int())).bool()
        if not everywhere.any():
            return
        metrics = self._metrics[self._mode()]
        for i, name in enumerate(self.reward_func_names):
            metrics[f"rewards/{name}/mean"][-1], metrics[f"rewards/{name}/std"][-1] = _moments(
                self._paid[~everywhere, i]
            )
        metrics["reward"][-1], metrics["reward_std"][-1] = _moments(self._rewards[~everywhere])
        earned = torch.as_tensor(self.accelerator.gather(advantages))
        metrics["gold/reward"].append(float(self._rewards[everywhere].mean()))
        metrics["gold/advantage"].append(float(earned[everywhere].mean()))


def _moments(values: Tensor) -> tuple[float, float]:
    """(mean, sample standard deviation) of the values that are not NaN, as TRL logs them."""
    known = values[~values.isnan()]
    return float(known.mean()), float(known.std()) if len(known) > 1 else float("nan")
