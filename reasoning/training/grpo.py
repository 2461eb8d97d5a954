"""GRPO on TRL's GRPOTrainer with audio in every pass: generation, log-probabilities, reference, vote slot.

TRL 1.16 generates with what its processor returns and then computes log-probabilities without audio, silently. Here
each sample carries its clip's row, and every forward fetches that clip's features from the encode-once memory.
Completions come from a Source (reasoning/rollouts/drawing.py); TRL is kept from starting and syncing a vLLM of its own.

Seams of TRL 1.16 used (contract test: tests/reasoning/training/test_trl_seams.py): `_get_train_sampler`,
`_tokenize_prompts`, `_generate_single_turn`, `_get_per_token_logps_and_entropies`, `_calculate_rewards`,
`_generate_and_score_completions` (its keys `completion_ids`, `completion_mask`, `tool_mask`, `advantages`,
`num_items_in_batch`) and `_compute_loss`. With use_vllm, TRL compares the sampling log-probabilities that
`_generate_single_turn` returns with the trainer's and weighs the loss by them (vllm_importance_sampling_*). Beside them
`_log_completion_extra` and `_metrics` are written to, and a reward that fails is handled in stopping.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from reasoning.models.answer_head import Completions, add_answer_head
from reasoning.models.loading import Loaded
from reasoning.models.memory import AudioMemory, batch_heard
from reasoning.models.prompter import Prompter
from reasoning.readings import RATES, rates, read_once
from reasoning.response import Reading
from reasoning.rollouts.drawing import FromRollouts, FromTransformers, Source, sampling_of
from reasoning.rollouts.fitting import refuse_unfit
from reasoning.rollouts.rollouts import Prompt, Rollouts
from reasoning.rollouts.weights import to_send
from reasoning.training.frozen import frozen_as_before
from reasoning.training.objective import vote_kl_nats
from reasoning.training.rewarding import Guard, agreement_weights
from reasoning.training.schedule import EpochSampler
from reasoning.training.stopping import RandomState, rollout_rows, stopped

PER_SAMPLE = ("clip_rows", "slots", "votes", "loud")
"""What each sample carries beside TRL's own keys; shuffled and split with them."""

MEANS_OVER_ROWS = ("grpo", "sapo", "dr_grpo", "luspo")
"""Loss types of TRL whose denominator counts rows; those of the others count tokens, which `tool_mask` has left."""


class AudioGRPOTrainer(GRPOTrainer):
    """GRPOTrainer that hears.

    kl_weight: weight of the mean KL(votes || label readout) at the vote slot of each sampled answer, conditioned on
    what was sampled before it; answers without a slot are skipped and counted (`slots/missing`). min_reward_spread: a
    group whose rewards differ by less leaves advantage, KL and the loss's denominator (`groups/quiet`). The vote's own
    tokens never carry policy loss: a vote is one listener's and may rightly be sampled. agreement_weight: how much less
    the advantages of a clip count, the less its listeners agree (`rewarding.agreement_weights`); 0 weighs all alike.

    rollouts: sample the completions with use_vllm; None where the trainer's model does it itself.

    A clip that does not fit is refused at once (`refuse_unfit`). A reward that fails raises RewardError in every rank,
    after completions, metrics and a checkpoint were saved.
    """

    def __init__(
        self,
        loaded: Loaded,
        prompter: Prompter,
        memory: AudioMemory,
        rewards: Sequence[Callable[..., Any]],
        *,
        rows: Sequence[dict[str, Any]],
        level: str,
        kl_weight: float,
        min_reward_spread: float,
        agreement_weight: float = 0.0,
        rollouts: Rollouts | None = None,
        args: GRPOConfig,
        **kwargs: Any,
    ) -> None:
        args.remove_unused_columns = False
        limit = loaded.base.config.get_text_config().max_position_embeddings
        limit = min(limit, rollouts.max_tokens) if rollouts else limit
        refuse_unfit(rows, prompter, level, int(args.max_completion_length or 0), limit)
        args.use_vllm = False  # or TRL starts a vLLM of its own
        self._loaded, self._prompter, self._memory, self._level = loaded, prompter, memory, level
        self._kl_weight, self._min_reward_spread = kl_weight, min_reward_spread
        self._agreement_weight = agreement_weight
        self._guard = Guard(rewards, rows[0].keys())
        self._sources = [(Path(row["audio"]), row["id"]) for row in rows]
        self._newline = prompter.encode("\n")[0]
        self._rows: list[dict[str, Any]] = []
        super().__init__(
            model=loaded.model,
            reward_funcs=list(self._guard.functions),
            args=args,
            train_dataset=Dataset.from_list([{**row, "row": i, "prompt": row["id"]} for i, row in enumerate(rows)]),
            processing_class=loaded.tokenizer,
            **kwargs,
        )
        add_answer_head(loaded.base, prompter.labels)
        self.use_vllm = args.use_vllm = rollouts is not None
        self._source = self._source_of(rollouts)

    args: GRPOConfig
    model: torch.nn.Module

    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _mean_over_ranks(self, value: Tensor) -> float:
        gathered = self.accelerator.gather(value.detach().reshape(1))
        return float(torch.as_tensor(gathered).mean())

    def _alone(self) -> bool:
        return self.accelerator.num_processes == 1

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return torch.as_tensor(self.accelerator.reduce(values.detach(), reduction="sum"))

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        sampler = cast(Any, super()._get_train_sampler(dataset))
        return EpochSampler(sampler, int(sampler.seed or 0), lambda: int(self.state.epoch or 0))

    # Generation

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        heard = self._hear([row["row"] for row in self._rows])
        ids = [
            self._prompter.prompt_ids(row["transcript"], h, self._level)
            for row, h in zip(self._rows, heard, strict=True)
        ]
        return ids, None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int, *args: Any
    ) -> tuple[list[list[int]], Any]:
        """Completions and their log-probabilities as they were drawn, None where they are the trainer's own."""
        heard = self._hear([row["row"] for row in self._rows])
        prompts = [
            Prompt(row["id"], ids, row["transcript"], self._level, Path(row["audio"]), h)
            for row, ids, h in zip(self._rows, prompt_ids, heard, strict=True)
        ]
        drawn = self._source.draw(prompts, self.state.global_step)
        if isinstance(self._source, FromRollouts) and (synced := self._source.synced) is not None:
            self._metrics[self._mode()]["sync/bytes"].append(synced.bytes)
            self._metrics[self._mode()]["sync/seconds"].append(synced.seconds)
        return drawn

    def _source_of(self, rollouts: Rollouts | None) -> Source:
        sampling = sampling_of(self.args)
        if rollouts is None:
            options = cast(dict[str, Any], self.args.generation_kwargs or {})
            return FromTransformers(self._loaded, self._prompter, sampling, self._whole_model, options)
        tensors = to_send(rollouts, self._loaded)
        self.accelerator.print(f"a sync of {rollouts.name} moves {tensors.describe()}")
        group = int(self.num_generations or 1)
        return FromRollouts(rollouts, tensors, sampling, self.accelerator, seed=self.args.seed, group=group)

    @contextmanager
    def _whole_model(self) -> Iterator[None]:
        """The model in one piece and ready to generate, wherever its weights lie while it trains."""
        with (
            unwrap_model_for_generation(
                cast(Any, self.model_wrapped),
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                generation_kwargs=self.generation_kwargs,
            ),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            yield

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows, self._before_rollout = inputs, RandomState.now()
        self._pass_rows = torch.tensor([row["row"] for row in inputs])
        self._log_completion_extra("clip", [row["id"] for row in inputs])
        self._log_completion_extra("audio", [row["audio"] for row in inputs])
        self._log_completion_extra("votes", [row["votes"] for row in inputs])
        weights = agreement_weights([row["votes"] for row in inputs], self._agreement_weight)
        self._log_completion_extra("agreement_weight", weights.tolist())
        with frozen_as_before(self.model):
            output = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"]
        device = mask.device
        loud = self._loud_samples(len(inputs)).to(device)
        slots = self._slots(output["completion_ids"], mask)
        # TRL multiplies this mask into loss, KL and their denominators: votes and quiet groups leave all three.
        output["tool_mask"] = self._vote_mask(output["completion_ids"], slots).to(device) * loud[:, None].to(mask)
        output["num_items_in_batch"] = self.accelerator.reduce((mask * output["tool_mask"]).sum(), reduction="sum")
        output["clip_rows"] = self._pass_rows.to(device)
        output["slots"] = slots.to(device)
        output["advantages"] = output["advantages"] * weights.to(device)
        output["votes"] = torch.tensor([row["votes"] for row in inputs], dtype=torch.float32, device=device)
        output["loud"] = loud
        missing = (slots < 0).float().mean().to(device)
        self._metrics[self._mode()]["slots/missing"].append(self._mean_over_ranks(missing))
        self._log_gap()
        return output

    def _log_gap(self) -> None:
        """How far the log-probabilities of sampled tokens are from those they were drawn with, nats (TRL's figures)."""
        metrics = self._metrics[self._mode()]
        for name in ("mean", "max"):
            if found := metrics.get(f"sampling/sampling_logp_difference/{name}"):
                metrics[f"rollout/gap_{name}"].append(found[-1])

    # Rewards and groups

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        readings = self._log_readings(completions)
        self._guard.start()
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        failures = [failure for failure in gather_object([self._guard.failure]) if failure is not None]
        if failures:
            paid = {name: self._guard.earned.get(name) for name in self.reward_func_names}
            raise stopped(self, failures[0], rollout_rows(inputs, completions, readings, paid), self._before_rollout)
        self._rewards = (rewards * self.reward_weights.to(rewards.device)[None]).nansum(dim=1)
        return rewards

    def _log_readings(self, completions: Sequence[str]) -> list[Reading]:
        """What each completion says; logs it to the completions table, and how many can be read and why not."""
        readings = [read_once(text, self._prompter.emotions.names) for text in completions]
        self._log_completion_extra("shares", [reading.probabilities for reading in readings])
        self._log_completion_extra("problems", [", ".join(reading.problems) for reading in readings])
        local = torch.tensor([rates(readings)], device=self.accelerator.device)
        shares = cast(Tensor, self.accelerator.gather(local)).mean(dim=0).tolist()
        for name, share in zip(RATES, shares, strict=True):
            self._metrics[self._mode()][name].append(share)
        return readings

    def _loud_samples(self, local: int) -> Tensor:
        """Whether each local sample's group has rewards that differ by at least min_reward_spread, (local,) bool."""
        mode = self._mode()
        size = self.num_generations if mode == "train" else self.num_generations_eval
        groups = self._rewards.view(-1, size)
        spread = groups.max(dim=1).values - groups.min(dim=1).values
        loud = spread >= self._min_reward_spread
        self._metrics[mode]["reward_spread"].append(float(spread.mean()))
        self._metrics[mode]["groups/quiet"].append(float((~loud).float().mean()))
        start = self.accelerator.process_index * local
        return loud.repeat_interleave(size)[start : start + local]

    def _slots(self, completion_ids: Tensor, mask: Tensor) -> Tensor:
        """Position of the vote's token in each completion, -1 where the answer prefix is missing, (B,)."""
        lists = [ids[: int(n)] for ids, n in zip(completion_ids.tolist(), mask.sum(1), strict=True)]
        found = [self._prompter.slot_of(ids) for ids in lists]
        return torch.tensor([-1 if slot is None else slot for slot in found])

    def _vote_mask(self, completion_ids: Tensor, slots: Tensor) -> Tensor:
        """1 everywhere but on the vote's tokens: from the slot up to the end of its line, (B, C)."""
        keep = torch.ones_like(completion_ids)
        for row, slot in enumerate(slots.tolist()):
            if slot >= 0:
                rest = completion_ids[row, slot:].tolist()
                end = rest.index(self._newline) if self._newline in rest else 1
                keep[row, slot : slot + max(end, 1)] = 0
        return keep

    # Log-probabilities and loss

    def _hear(self, rows: Sequence[int]) -> list[Any]:
        sources = [self._sources[row] for row in rows]
        return self._memory.hear([path for path, _ in sources], [name for _, name in sources])

    def _get_per_token_logps_and_entropies(  # type: ignore[override]
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_images: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """(logps, entropies, None), each (B, C), hearing `_pass_rows`; keeps label logits at `_pass_slots`."""
        step = batch_size or input_ids.size(0)
        parts = [
            self._answers(
                model,
                input_ids[i : i + step],
                attention_mask[i : i + step],
                logits_to_keep,
                self._pass_rows[i : i + step],
                None if self._pass_slots is None else self._pass_slots[i : i + step],
                compute_entropy,
            )
            for i in range(0, input_ids.size(0), step)
        ]
        logits = [part.label_logits for part in parts if part.label_logits is not None]
        self._label_logits = torch.cat(logits) if logits else None
        entropies = torch.cat([part.entropy for part in parts]) if compute_entropy else None
        return torch.cat([part.logps for part in parts]), entropies, None

    _pass_rows: Tensor
    _pass_slots: Tensor | None = None
    _label_logits: Tensor | None = None

    def _answers(
        self,
        model: Any,
        ids: Tensor,
        mask: Tensor,
        keep: int,
        rows: Tensor,
        slots: Tensor | None,
        entropy: bool,
    ) -> Any:
        """The answer head's output on completions, each distinct clip's prompt computed once."""
        distinct, prompt_of = torch.unique(rows, return_inverse=True)
        prompt_of = prompt_of.to(ids.device)
        firsts = torch.stack([(prompt_of == i).nonzero()[0, 0] for i in range(len(distinct))])
        completions = Completions(ids[:, -keep:], mask[:, -keep:], prompt_of)
        heard = batch_heard(self._hear(distinct.tolist()), self._loaded.family)
        audio = {k: v.to(ids.device) for k, v in heard.items()}
        with self.accelerator.autocast():
            return model(
                input_ids=ids[firsts, :-keep],
                attention_mask=mask[firsts, :-keep],
                **audio,
                completions=completions,
                labels=completions.ids.masked_fill(completions.mask == 0, -100),
                slots=None if slots is None else slots.clamp(min=0),
                temperature=self.temperature,
                entropy=entropy,
                answer_head=True,
            )

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loud, alone = inputs["loud"], self._alone()
        if alone and loud.any() and not loud.all():  # ranks keep the same number of rows: TRL gathers figures of each
            n = len(loud)
            inputs = {k: v[loud] if isinstance(v, Tensor) and v.dim() and len(v) == n else v for k, v in inputs.items()}
        self._pass_rows = inputs["clip_rows"].cpu()
        self._pass_slots = inputs["slots"] if self._kl_weight > 0 else None
        try:
            loss = super()._compute_loss(model, {k: v for k, v in inputs.items() if k not in PER_SAMPLE})
        finally:
            self._pass_slots = None
        if not alone and self.loss_type in MEANS_OVER_ROWS:
            everywhere = self._sum_over_ranks(loud.float().sum())
            loss = loss * len(loud) * self.accelerator.num_processes / everywhere.clamp(min=1)
        if self._kl_weight == 0 or self._label_logits is None:
            return loss
        has_slot = (inputs["slots"] >= 0) & inputs["loud"]
        kl = vote_kl_nats(self._label_logits[has_slot], inputs["votes"][has_slot]).sum()
        # Every rank takes part, also one without a slot: DDP's mean over ranks is then the mean over all slots.
        kl_everywhere, slots = self._sum_over_ranks(torch.stack([kl.detach(), has_slot.sum().to(kl)]))
        if slots == 0:
            return loss
        self._metrics[self._mode()]["vote_kl"].append(float(kl_everywhere / slots))
        kl = kl * self.accelerator.num_processes / slots
        return loss + self._kl_weight * kl / (self.current_gradient_accumulation_steps if self.model.training else 1)
