"""An adapter merged into its base: an ordinary checkpoint folder for engines that load no adapters.

vLLM has no LoRA for every family (none for Qwen2-Audio), and in no family does it load a projector that was trained
with the adapter.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import cast

import torch
from filelock import FileLock
from peft import PeftModel
from safetensors import SafetensorError

from reasoning.errors import ModelError, StorageError
from reasoning.models.loading import fingerprint, load_model

MERGED_RECORD = "equivox_merged.json"
"""Written into a merged folder: which base and adapter are in it."""


def merge_adapter(model: Path, adapter: Path, out: Path) -> Path:
    """`out`, made a checkpoint folder that answers as `model` with `adapter` on it; loaded like any other.

    LoRA matrices are added to their weights and modules trained whole replace the base's; names are those of the hub,
    the number type is `model`'s. A folder that already holds this merge is left as it is, one of another merge is
    replaced. Raises ModelError when `out` holds anything else or the adapter belongs to another base, and StorageError
    when the disk refuses; neither leaves a partial folder.
    """
    if out.exists() and not (out / MERGED_RECORD).is_file():
        what = "exists and is no folder of merged weights"
        raise ModelError(what, row=str(out), field="out", cure="name another folder")
    loaded = load_model(model, adapter, dtype=cast(torch.dtype, "auto"))
    record = _record(model, adapter)
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_name(f".{out.name}.lock")):  # several folds or servers may start at once
            if out.exists() and (out / MERGED_RECORD).read_text() == record:
                return out
            merged = cast(PeftModel, loaded.model).merge_and_unload(safe_merge=True)  # type: ignore[operator]
            merged.save_pretrained(part)
            loaded.processor.save_pretrained(part)
            (part / MERGED_RECORD).write_text(record)
            shutil.rmtree(out, ignore_errors=True)
            part.rename(out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        cure = "free space or choose another folder, then run again"
        raise StorageError(f"cannot be written: {error}", row=str(out), cure=cure) from None
    return out


def _record(model: Path, adapter: Path) -> str:
    """What tells one merge from another, as JSON."""
    data = {"base": str(model), "base_fingerprint": fingerprint(model), "adapter": str(adapter)}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with (adapter / name).open("rb") as file:
            data[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return json.dumps(data, indent=1) + "\n"
