"""The seams of TRL that the trainers override: a new TRL that moves one fails here first, with a readable message."""

from __future__ import annotations

import inspect
import re

import pytest
import trl
from packaging.version import Version
from trl import DPOTrainer, GRPOTrainer, SFTTrainer

SEAMS = {
    (SFTTrainer, "compute_loss"): ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    (DPOTrainer, "_prepare_dataset"): ["self", "dataset", "processing_class", "args", "dataset_name"],
    (DPOTrainer, "_compute_loss"): ["self", "model", "inputs", "return_outputs"],
    (DPOTrainer, "_save"): ["self", "output_dir", "state_dict"],
    (GRPOTrainer, "_get_train_sampler"): ["self", "dataset"],
    (GRPOTrainer, "_tokenize_prompts"): ["self", "prompts"],
    (GRPOTrainer, "_generate_single_turn"): [
        "self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images",
    ],
    (GRPOTrainer, "_generate_and_score_completions"): ["self", "inputs"],
    (GRPOTrainer, "_calculate_rewards"): ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    (GRPOTrainer, "_compute_loss"): ["self", "model", "inputs"],
}  # fmt: skip


def test_the_minor_version_is_the_one_that_was_read():
    assert (Version(trl.__version__).major, Version(trl.__version__).minor) == (1, 16), (
        f"trl {trl.__version__}: read its changes to the methods in SEAMS, then move the pin in pyproject.toml"
    )


@pytest.mark.parametrize(("seam", "expected"), SEAMS.items(), ids=lambda v: v[1] if isinstance(v, tuple) else "")
def test_an_overridden_method_still_takes_what_we_pass(seam, expected):
    trainer, name = seam
    found = list(inspect.signature(getattr(trainer, name)).parameters)
    assert found == expected, f"TRL {trl.__version__} changed {trainer.__name__}.{name}: {found}"


@pytest.mark.parametrize(
    ("method", "text", "why"),
    [
        ("_compute_loss", 'mask = completion_mask if "tool_mask" not in inputs else', "votes and quiet groups leave"),
        ("_compute_loss", 'inputs["num_items_in_batch"]', "the denominator counts what is left"),
        ("_compute_loss", "self._get_per_token_logps_and_entropies(", "they come from the override that hears"),
        ("_generate", "self._tokenize_prompts(prompts)", "prompts come from our prompter"),
        ("_generate_and_score_completions", "self._calculate_rewards(", "group spread is read there"),
        ("_prepare_inputs", "split_tensor_dict(generation_batch", "what each sample carries is split with it"),
        ("__init__", "if self.use_vllm: # Initialize vLLM generation backend", "without use_vllm it starts no vLLM"),
        ("_generate_single_turn", "self.vllm_generation.sync_weights()", "TRL syncs there and so not at all"),
        ("_generate_and_score_completions", "self.use_vllm and self.vllm_importance_sampling_correction",
         "setting use_vllm afterwards turns the correction on"),
        ("_generate_and_score_completions", "old_per_token_logps - sampling_per_token_logps", "it compares our own"),
        ("_generate_and_score_completions", 'float("nan") if x is None else x', "a reference's tokens get ratio 1"),
        ("_generate_and_score_completions", 'append( self.accelerator.gather(mean_delta).mean().item() )', "the gap"),
        ("_compute_loss", 'per_token_loss * inputs["importance_sampling_ratio"]', "the ratio weighs the loss"),
        ("_get_train_sampler", "RepeatSampler( data_source=dataset", "its generator and seed give an epoch's order"),
    ],
)  # fmt: skip
def test_trl_still_does_inside_what_the_override_relies_on(method, text, why):
    source = " ".join(inspect.getsource(getattr(GRPOTrainer, method)).split())
    assert text in source, f"TRL {trl.__version__}: {method} no longer holds {text!r}, so: {why}"


@pytest.mark.parametrize(
    ("method", "text", "why"),
    [
        ("__init__", 'model.add_adapter("ref", default_config)', "the reference is a copy of the starting adapter"),
        ("__init__", "train_dataset = self._prepare_dataset(", "nothing is tokenized there"),
        ("_compute_loss", "outputs = model(**model_kwargs, labels=labels, fused_lm_head=True)", "the policy hears"),
        ("_compute_loss", "self.model(**ref_model_kwargs, labels=labels, fused_lm_head=True)", "the reference hears"),
        ("_compute_loss", "masked_fill(completion_mask == 0, -100)", "votes and prompts leave the loss"),
        ("_compute_loss", "outputs.log_probs[:, -seq_len:]", "position i is about token i + 1"),
    ],
)
def test_dpo_still_does_inside_what_the_override_relies_on(method, text, why):
    source = " ".join(inspect.getsource(getattr(DPOTrainer, method)).split())
    assert text in source, f"TRL {trl.__version__}: {method} no longer holds {text!r}, so: {why}"


def test_dpo_reads_nothing_of_the_fused_head_that_ours_does_not_give():
    from reasoning.training.dpo import FusedOutput

    read = set(re.findall(r"\boutputs\.(\w+)", inspect.getsource(DPOTrainer._compute_loss)))
    refused_or_of_mixtures_of_experts = {"log_sum_sq_probs", "aux_loss"}
    assert read - refused_or_of_mixtures_of_experts <= FusedOutput.__dataclass_fields__.keys()
    assert "log_probs" in read


def test_trl_uses_its_own_vllm_nowhere_else():
    """It is never made: what reads it is what we replace, or serves tools and rollout_func, which we never pass."""
    methods = inspect.getmembers(GRPOTrainer, inspect.isfunction)
    readers = {name for name, method in methods if "self.vllm_generation" in inspect.getsource(method)}
    assert readers == {"__init__", "_generate_single_turn", "_tool_call_loop", "_generate"}
    assert inspect.getsource(GRPOTrainer._generate).count("self.vllm_generation") == 1
    assert inspect.getsource(GRPOTrainer._generate).index("self.rollout_func") < inspect.getsource(
        GRPOTrainer._generate
    ).index("self.vllm_generation")


def test_trl_itself_is_still_deaf_which_is_why_the_overrides_exist():
    assert "audio" not in inspect.getsource(GRPOTrainer).lower()
    assert "audio" not in inspect.getsource(DPOTrainer).lower()
