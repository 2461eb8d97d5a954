"""vLLM in this process, handed token ids and projected audio: evaluation and rollouts start and ask it alike.

vLLM 0.30 takes `audio_embeds`, what the projector returns, so its own tower is not even loaded: a clip passes the tower
once for all its prompts, unpadded, and both engines hear the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from reasoning.errors import ConfigError
from reasoning.inference.asking import one_placeholder, refuse_other_prompt
from reasoning.models.generating import stop_ids
from reasoning.models.loading import Loaded, best_device
from reasoning.models.memory import Heard


def require_vllm() -> None:
    """Raise ConfigError when vLLM is not installed; otherwise prepare this process's environment for it.

    What the user has set is kept. Without a size, vLLM takes most of a CPU machine's memory for its cache; and it
    reports usage to its makers unless it is told not to.
    """
    if find_spec("vllm") is None:
        raise ConfigError("vLLM is not installed", field="engine", cure="see docs/engines.md, `Installing vLLM`")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if best_device().type == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def prepare_local() -> None:
    """`require_vllm` for a vLLM in this process, before anything of it is imported: quiet, and in no other process."""
    require_vllm()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if best_device().type == "cpu":  # two more would only start later; threads are this process's, OMP_NUM_THREADS
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


@dataclass(frozen=True)
class Embedded:
    """ids: as the model sees them, one placeholder for each row of audio (tokens, hidden), which is None for text."""

    row: str
    ids: list[int]
    audio: Tensor | None


@torch.no_grad()
def embed(row: str, ids: list[int], heard: Heard | None, projector: nn.Module) -> Embedded:
    """A prompt with its audio as the language model takes it."""
    if heard is None:
        return Embedded(row, ids, None)
    weight = next(projector.parameters())
    return Embedded(row, ids, projector(heard.features.to(weight.device, weight.dtype)).cpu())


class LocalVllm:
    """vLLM's LLM over a checkpoint folder. never: tokens that no request may sample. options: of vLLM's engine.

    Only the tokenizer, the configuration and the path of `loaded` are used. Raises ConfigError when vLLM is not
    installed.
    """

    def __init__(self, loaded: Loaded, *, dtype: str, max_num_seqs: int, **options: Any) -> None:
        prepare_local()
        on_cpu = best_device().type == "cpu"
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        self.audio_id: int = loaded.tokenizer.convert_tokens_to_ids(loaded.family.audio_token)
        self.never = list(loaded.family.modality_tokens)
        self.stop_ids = stop_ids(loaded)
        self.llm: Any = LLM(
            str(loaded.path),
            dtype=cast(Any, dtype),
            max_num_seqs=max_num_seqs,
            enforce_eager=on_cpu,
            # A prompt cut in two is drawn for twice; vLLM then rewinds its generator, which a CPU's cannot.
            enable_chunked_prefill=False if on_cpu else None,
            enable_mm_embeds=True,
            limit_mm_per_prompt={"audio": 0},  # of audio that vLLM would have to encode itself: its tower stays out
            generation_config="vllm",  # no sampling options from the checkpoint
            structured_outputs_config={"backend": "guidance"},  # llguidance, as in reasoning/models/guide.py
            **options,
        )
        self.max_tokens: int = self.llm.model_config.max_model_len

    def guiding(self, grammar: str | None) -> dict[str, Any]:
        """The option of SamplingParams that lets nothing be written but what is in a Lark grammar."""
        if grammar is None:
            return {}
        from vllm.sampling_params import StructuredOutputsParams  # pyright: ignore[reportMissingImports]

        return {"structured_outputs": StructuredOutputsParams(grammar=grammar)}

    def ask(self, prompts: Sequence[Embedded], options: Sequence[Mapping[str, Any]], adapter: Any = None) -> list[Any]:
        """RequestOutput for each prompt. options: its SamplingParams. adapter: a LoRARequest for all of them.

        Raises ModelError where it saw another prompt.
        """
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        always = {"stop_token_ids": self.stop_ids, "bad_words": self.never, "detokenize": False}
        outputs = self.llm.generate(
            [self._as_input(p) for p in prompts],
            [SamplingParams(**always, **o) for o in options],
            use_tqdm=False,
            lora_request=adapter,
        )
        for prompt, output in zip(prompts, outputs, strict=True):
            refuse_other_prompt("vLLM", output.prompt_token_ids, prompt.ids, prompt.row)
        return outputs

    def _as_input(self, prompt: Embedded) -> dict[str, Any]:
        if prompt.audio is None:
            return {"prompt_token_ids": prompt.ids}
        ids = one_placeholder(prompt.ids, self.audio_id, len(prompt.audio))
        return {"prompt_token_ids": ids, "multi_modal_data": {"audio": {"audio_embeds": [prompt.audio]}}}
