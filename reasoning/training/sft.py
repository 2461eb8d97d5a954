"""Supervised fine-tuning on TRL's SFTTrainer: cross-entropy on the response plus the ambiguity objective.

Seams of TRL 1.16 used (contract test: tests/reasoning/training/test_trl_seams.py): `SFTTrainer.compute_loss(model,
inputs, return_outputs, num_items_in_batch)`, its `_metrics`, and `dataset_kwargs={"skip_prepare_dataset": True}` with a
collator of ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from reasoning.errors import ConfigError
from reasoning.models.answer_head import add_answer_head
from reasoning.models.loading import Loaded
from reasoning.training.collate import AnswerCollator
from reasoning.training.objective import IGNORE, response_nll_nats, vote_kl_nats
from reasoning.training.schedule import WORKERS, same_when_resumed


class AmbiguitySFTTrainer(SFTTrainer):
    """SFTTrainer whose loss is the response's cross-entropy plus `kl_weight` times the KL of the votes at the slot.

    train_dataset: rows as training/collate.py takes them. trace_weight: weight of the tokens of a row's `thinking` in
    the cross-entropy, where those of the answer weigh 1. Logged: `ce` (nats per response token, unweighted), `trace_ce`
    (nats per token of the traces, where there are any), `vote_kl` (nats per clip), `mean_token_accuracy`, each a mean
    over the logged steps and all ranks.
    """

    def __init__(
        self,
        loaded: Loaded,
        collator: AnswerCollator,
        *,
        kl_weight: float,
        trace_weight: float = 1.0,
        args: SFTConfig,
        **kwargs: Any,
    ) -> None:
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        self._kl_weight, self._trace_weight = kl_weight, trace_weight
        self._answer_prefix = len(collator.prompter.answer_prefix_ids)
        super().__init__(
            model=loaded.model,
            args=args,
            data_collator=collator,
            processing_class=loaded.tokenizer,
            callbacks=[_NewVotesEachEpoch(collator), *kwargs.pop("callbacks", [])],
            **kwargs,
        )
        add_answer_head(loaded.base, collator.prompter.labels)

    model: torch.nn.Module

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        return same_when_resumed(sampler, int(self.args.seed), lambda: int(self.state.epoch or 0))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """CE + kl_weight * KL from one forward; the CE is a mean over the step's tokens, the KL over its clips.

        Where traces weigh other than 1, their part of the CE does; the count of tokens it is divided by stays.
        """
        mode = "train" if self.model.training else "eval"
        votes, asked = inputs.pop("votes"), inputs["labels"] != IGNORE
        output = model(**inputs, answer_head=True)
        tokens = asked.sum()
        columns = torch.arange(asked.shape[1], device=asked.device)
        of_trace = asked & (columns < (inputs["slots"] - self._answer_prefix)[:, None])
        trace_sum = -(output.logps * of_trace).sum()
        ce_sum = response_nll_nats(output.logps, output.label_mass, inputs["labels"], inputs["slots"])
        weighted = ce_sum + (self._trace_weight - 1) * trace_sum
        kl = vote_kl_nats(output.label_logits, votes).mean()
        if num_items_in_batch is None:
            loss = weighted / tokens.clamp(min=1) + self._kl_weight * kl
        else:
            # num_items_in_batch counts the tokens of all ranks and accumulation steps, and DDP averages over ranks.
            ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            ce = weighted / num_items_in_batch * ranks
            loss = ce + self._kl_weight * kl / self.current_gradient_accumulation_steps
        parts = (ce_sum, output.top1.sum(), tokens, kl, torch.ones_like(kl), trace_sum, of_trace.sum())
        self._log_means(mode, torch.stack([part.detach().to(kl) for part in parts]))
        return (loss, output) if return_outputs else loss

    def _log_means(self, mode: str, sums: Tensor) -> None:
        ce, top1, tokens, kl, ranks, trace, trace_tokens = torch.as_tensor(self.accelerator.reduce(sums)).tolist()
        metrics = self._metrics[mode]
        metrics["ce"].append(ce / max(tokens, 1))
        metrics["mean_token_accuracy"].append(top1 / max(tokens, 1))
        metrics["vote_kl"].append(kl / ranks)
        if trace_tokens:
            metrics["trace_ce"].append(trace / trace_tokens)


def refuse_unserved(args: SFTConfig) -> None:
    """Raise ConfigError on options of SFT that would be read by nobody: the loss and the collator are ours."""
    served = {
        "dataloader_num_workers": 0,
        "loss_type": "nll",
        "label_smoothing_factor": 0.0,
        "pad_to_multiple_of": None,
    }
    why = {"dataloader_num_workers": WORKERS}
    for name, value in served.items():
        if getattr(args, name) != value:
            raise ConfigError(why.get(name, "is not served"), field=name, cure=f"leave it out, or set it to {value}")


class _NewVotesEachEpoch(TrainerCallback):
    def __init__(self, collator: AnswerCollator) -> None:
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.collator.epoch = int(state.epoch or 0)
