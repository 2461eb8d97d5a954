"""Sampling with transformers: one prompt pass for all samples of a prompt, audio tokens never sampled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, PreTrainedModel

from reasoning.models.guide import Guide, GuidedLogits
from reasoning.models.loading import Loaded


@torch.no_grad()
def generate_ids(
    loaded: Loaded,
    batch: dict[str, Tensor],
    *,
    samples: int = 1,
    max_new_tokens: int,
    guide: Guide | None = None,
    **sampling: Any,
) -> list[list[int]]:
    """Completion token ids, end-of-turn token included, `samples` for each row of `batch`, rows in order.

    batch: left-padded inputs as `prompter.prompt_batch` makes them. guide: what may be written; None allows anything.
    sampling: options of transformers' generate (do_sample, temperature, top_p, ...). Each prompt is computed once, then
    its cache is repeated for the samples.
    """
    model = loaded.base
    device = model.device
    batch = {k: v.to(device) for k, v in batch.items()}
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cache = _prompt_cache(model, batch)
    cache.batch_repeat_interleave(samples)
    tokenizer = loaded.tokenizer
    eos_ids = stop_ids(loaded)
    guiding = [] if guide is None else [GuidedLogits(guide, ids.shape[1], samples * len(ids))]
    out = model.generate(  # type: ignore[operator]
        input_ids=ids.repeat_interleave(samples, dim=0),
        attention_mask=mask.repeat_interleave(samples, dim=0),
        past_key_values=cache,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=eos_ids,
        suppress_tokens=loaded.modality_token_ids(),
        logits_processor=LogitsProcessorList([*guiding, *sampling.pop("logits_processor", ())]),
        **sampling,
    )
    return [_until_eos(row, eos_ids) for row in out[:, ids.shape[1] :].tolist()]


def stop_ids(loaded: Loaded) -> list[int]:
    """Token ids that end a turn for a loaded model: see `end_ids`."""
    return end_ids(loaded.tokenizer, getattr(loaded.base, "generation_config", None))


def end_ids(tokenizer: Any, generation_config: Any) -> list[int]:
    """Token ids that end a turn: the tokenizer's and those that the checkpoint's generation config, if any, names."""
    named = getattr(generation_config, "eos_token_id", None)
    named = [named] if isinstance(named, int) else list(named or [])
    return list(dict.fromkeys([tokenizer.eos_token_id, *named]))


def _prompt_cache(model: PreTrainedModel, batch: dict[str, Tensor]) -> DynamicCache:
    """Keys and values of all but the last prompt token, which `generate` takes itself."""
    cache = DynamicCache(config=model.config.get_text_config())
    mask = batch["attention_mask"][:, :-1]
    rest = {k: v for k, v in batch.items() if k not in ("input_ids", "attention_mask")}
    model.base_model(
        input_ids=batch["input_ids"][:, :-1],
        attention_mask=mask,
        # As `generate` numbers them: padding on the left does not count.
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        **rest,
    )
    return cache


def _until_eos(ids: list[int], eos_ids: list[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in eos_ids:
            return ids[: position + 1]
    return ids
