"""Supervised fine-tuning on TRL's SFTTrainer: cross-entropy on the response plus the ambiguity objective.

Seams of TRL 1.16 used (contract test: tests/reasoning/training/test_trl_seams.py): `SFTTrainer.compute_loss`, which
calls the model once with `fused_lm_head=True`; `dataset_kwargs={"skip_prepare_dataset": True}` with a collator of ours.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from reasoning.models.loading import Loaded
from reasoning.training.collate import AnswerCollator
from reasoning.training.objective import keep_last_hidden, slot_logits, vote_kl_nats


class AmbiguitySFTTrainer(SFTTrainer):
    """SFTTrainer whose loss adds `kl_weight` times the KL of the votes from the label readout; logs both terms.

    Train one with `train_dataset` rows as training/collate.py takes them. `ce` and `vote_kl` are means over the logged
    steps, in nats per token and nats per clip.
    """

    def __init__(self, loaded: Loaded, collator: AnswerCollator, *, kl_weight: float, args: SFTConfig, **kwargs: Any):
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        args.remove_unused_columns = False
        self._label_ids = collator.prompter.label_ids
        self._kl_weight = kl_weight
        super().__init__(
            model=loaded.model,
            args=args,
            data_collator=collator,
            processing_class=loaded.tokenizer,
            callbacks=[_NewVotesEachEpoch(collator), *kwargs.pop("callbacks", [])],
            **kwargs,
        )
        self._backbone = loaded.base.base_model
        self._lm_head = loaded.base.get_output_embeddings()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """CE + kl_weight * KL from one forward. The CE is TRL's own; the KL is a mean over the step's clips."""
        slots, votes = inputs.pop("slots"), inputs.pop("votes")
        mode = "train" if self.model.training else "eval"
        with keep_last_hidden(self._backbone) as kept:
            ce = super().compute_loss(model, inputs, return_outputs=False, num_items_in_batch=num_items_in_batch)
        assert kept.value is not None, "TRL's forward bypassed the backbone: see the contract test"
        kl = vote_kl_nats(slot_logits(kept.value, slots, self._lm_head, self._label_ids), votes).mean()
        # The CE is already divided by every token of the step; the KL must be by the accumulation steps.
        steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        loss = ce + self._kl_weight * kl / steps
        self._metrics[mode]["ce"].append(self._gathered_mean(ce.detach() * steps))
        self._metrics[mode]["vote_kl"].append(self._gathered_mean(kl.detach()))
        return (loss, None) if return_outputs else loss

    def _gathered_mean(self, value: Tensor) -> float:
        return float(self.accelerator.gather_for_metrics(value.reshape(1)).mean())


class _NewVotesEachEpoch(TrainerCallback):
    def __init__(self, collator: AnswerCollator) -> None:
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.collator.epoch = int(state.epoch or 0)


def rows_dataset(clips: list[dict[str, Any]]) -> Dataset:
    """Clip rows as a flat Dataset: no typed content parts, which Arrow would fill with phantom audio."""
    return Dataset.from_list(clips)
