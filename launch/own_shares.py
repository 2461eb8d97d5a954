"""Shares to write that are a model's own label readout of the training clips: SFT with `share_target: readout`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

from reasoning.distributions import jsd_bits, normalize_votes
from reasoning.emotions import EmotionSet
from reasoning.errors import ConfigError
from reasoning.inference.engine import Request
from reasoning.inference.transformers_engine import TransformersEngine
from reasoning.models.loading import Loaded
from reasoning.models.memory import AudioMemory


def check_own_shares(adapter: str | None) -> None:
    """Raise ConfigError where no label readout could be asked before training."""
    if adapter is None:
        cure = "train with share_target votes first, and give that run's folder as --adapter"
        raise ConfigError("is readout, which an untrained model has none of", field="share_target", cure=cure)
    if is_fsdp_enabled() or is_deepspeed_zero3_enabled():
        what = "is readout, which is asked before training, when FSDP and ZeRO-3 have the model in pieces"
        cure = "launch with accelerate_configs/ddp.yaml or zero2.yaml"
        raise ConfigError(what, field="share_target", cure=cure)


def with_own_shares(
    rows: list[dict[str, Any]], loaded: Loaded, memory: AudioMemory, emotions: EmotionSet, level: str, args: Any
) -> list[dict[str, Any]]:
    """The rows, each with `shares`: what the label readout of the model that is to be trained says of the clip now.

    At level think the readout stands after the row's own `thinking`. Every rank reads its part and gets all of them.
    """
    loaded.model.eval().to(args.device)  # where the trainer would put it a moment later
    engine = TransformersEngine(loaded, emotions, batch_size=args.per_device_eval_batch_size, memory=memory)
    # Clips of like length in a batch: less padding.
    mine = sorted(rows, key=lambda row: row["length"])[args.process_index :: args.world_size]
    requests = [Request(row["id"], Path(row["audio"]), row["transcript"], level) for row in mine]
    if level == "think":
        scores = engine.score_labels_after(requests, {row["id"]: row["thinking"] for row in mine})
    else:
        scores = engine.score_labels(requests)
    bar = tqdm(scores, "own label readout", len(mine), unit="clip", disable=args.process_index > 0)
    found = [(score.id, [p / sum(score.probabilities) for p in score.probabilities]) for score in bar]
    shares = dict(gather_object(found) if args.world_size > 1 else found)
    votes_NK, shares_NK = np.array([row["votes"] for row in rows]), np.array([shares[row["id"]] for row in rows])
    if args.process_index == 0:
        bits = jsd_bits(normalize_votes(votes_NK), shares_NK).mean()
        print(f"Shares to write: the label readout of {len(rows)} training clips, {bits:.3f} jsd_bits from their votes")
    return [{**row, "shares": shares[row["id"]]} for row in rows]
