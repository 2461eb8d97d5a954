"""DPO on TRL's DPOTrainer with audio in the policy and in the reference, and the vote slot read in the same forward.

TRL 1.16 tokenizes its own text columns and knows images at most. Here a batch comes from `PairCollator`: each clip is
encoded once for both answers, both models and all epochs, and its prompt computed once for both answers.

Seams of TRL 1.16 used (contract test: tests/reasoning/training/test_trl_seams.py): `_prepare_dataset`, `_compute_loss`
(what it calls `model` and `self.model` with, and the fields that it reads of the fused LM head's output), `_metrics`,
and the frozen copy of the starting adapter that it names `ref`.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from trl import DPOConfig, DPOTrainer

from reasoning.errors import ConfigError
from reasoning.models.answer_head import Completions, add_answer_head
from reasoning.models.loading import Loaded
from reasoning.training.frozen import frozen_as_before
from reasoning.training.objective import vote_kl_nats
from reasoning.training.pairs import PairCollator
from reasoning.training.schedule import WORKERS, same_when_resumed

REFERENCE = "ref"
"""What TRL names its frozen copy of the adapter (projector included) that training starts from."""


class AudioDPOTrainer(DPOTrainer):
    """DPOTrainer that hears; its loss is that of `args.loss_type` plus `kl_weight` times the KL of the votes.

    rows: as training/pairs.py takes them. The KL is KL(votes || label readout) at the chosen answer's vote slot, nats a
    clip, logged as `vote_kl` beside TRL's own metrics; an SFT term on the chosen answers is TRL's loss type `sft`. The
    reference is the adapter as it is when training starts: a copy of the one given, or a fresh one, which changes
    nothing. The votes' own tokens carry no loss: a vote is one listener's.
    """

    def __init__(
        self,
        loaded: Loaded,
        collator: PairCollator,
        *,
        rows: Sequence[dict[str, Any]],
        kl_weight: float,
        args: DPOConfig,
        **kwargs: Any,
    ) -> None:
        refuse_unserved(args)
        args.remove_unused_columns = False
        self._kl_weight = kl_weight
        super().__init__(
            model=loaded.model,
            args=args,
            train_dataset=Dataset.from_list([dict(row) for row in rows]),
            data_collator=collator,
            processing_class=loaded.tokenizer,
            **kwargs,
        )
        add_answer_head(loaded.base, collator.prompter.labels)
        answer_as_fused_head(loaded.base)

    model: torch.nn.Module

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        return same_when_resumed(sampler, int(self.args.seed), lambda: int(self.state.epoch or 0))

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        slots, votes = inputs["slots"], inputs["votes"]
        outputs: list[FusedOutput] = []

        def policy(**kwargs: Any) -> FusedOutput:
            # The rejected answers' half only keeps the shape: their readout is not looked at.
            outputs.append(model(**kwargs, slots=slots.repeat(2), entropy=True))
            return outputs[-1]

        given = {name: value for name, value in inputs.items() if name not in ("slots", "votes")}
        with frozen_as_before(self.model):
            loss = super()._compute_loss(policy, given, return_outputs=False)
        assert outputs[0].label_logits is not None
        kl = vote_kl_nats(outputs[0].label_logits[: len(votes)], votes).mean()
        mean = torch.as_tensor(self.accelerator.gather(kl.detach().reshape(1))).mean()
        self._metrics["train" if self.model.training else "eval"]["vote_kl"].append(float(mean))
        loss = loss + self._kl_weight * kl
        return (loss, outputs[0]) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The trained adapter only: the reference is the one that training started from, and is made from it again."""
        super()._save(output_dir, state_dict)
        shutil.rmtree(Path(output_dir or str(self.args.output_dir)) / REFERENCE, ignore_errors=True)


@dataclass
class FusedOutput(ModelOutput):
    """What TRL reads of its fused LM head, each (2B, L - 1), position i about token i + 1; label_logits: (2B, K).

    entropy, mean_logits and label_logits are None unless asked for.
    """

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    label_logits: Tensor | None = None


def answer_as_fused_head(model: PreTrainedModel) -> None:
    """Let `model(..., fused_lm_head=True, labels=, slots=, entropy=)` return a FusedOutput from the answer head.

    The model has one already (`add_answer_head`). input_ids, attention_mask, labels: (2B, L) as PairCollator lays them
    out; the audio is of the B clips. slots: (2B,) columns. Other calls are passed on.
    """
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(*args, **kwargs)
        ids, mask, labels = kwargs.pop("input_ids"), kwargs.pop("attention_mask"), kwargs.pop("labels")
        slots, entropy = kwargs.pop("slots", None), kwargs.pop("entropy", False)
        kwargs.pop("use_cache", None)
        width = int((labels != -100).any(dim=0).int().argmax())
        clips = len(ids) // 2
        output = original(
            **kwargs,
            input_ids=ids[:clips, :width],
            attention_mask=mask[:clips, :width],
            completions=Completions(ids[:, width:], mask[:, width:], torch.arange(clips, device=ids.device).repeat(2)),
            labels=labels[:, width:],
            slots=None if slots is None else slots - width,
            entropy=entropy,
            answer_head=True,
        )

        def whole(values: Tensor | None) -> Tensor | None:
            return None if values is None else torch.nn.functional.pad(values, (width - 1, 0))

        return FusedOutput(
            log_probs=whole(output.logps),
            entropy=whole(output.entropy),
            mean_logits=whole(output.mean_logits),
            is_top1=whole(output.top1.bool()),
            label_logits=output.label_logits,
        )

    model.forward = MethodType(forward, model)  # type: ignore[method-assign]


def refuse_unserved(args: DPOConfig) -> None:
    """Raise ConfigError on options of DPO that would fail late, or would not do here what they say."""
    refused = {
        "gradient_checkpointing": "turns off the cache through which both answers share their prompt",
        "precompute_ref_log_probs": "would run in the constructor of TRL, before the model can hear",
        "use_weighting": "needs the sum of squared probabilities, which the answer head does not compute",
        "dataloader_num_workers": WORKERS,
    }
    for name, why in refused.items():
        if getattr(args, name):
            # What YAML and the command line call it.
            field = "activation_checkpointing" if name == "gradient_checkpointing" else name
            raise ConfigError(why, field=field, cure="set it to false, or 0")
