"""What is sent to an engine: exactly what training touched, exactly as a merged checkpoint holds it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from reasoning.errors import ModelError
from reasoning.models.loading import add_adapter, load_model, record_base
from reasoning.models.merging import merge_adapter
from reasoning.rollouts.adapters import LORA_A, LORA_B, is_lora
from reasoning.rollouts.receiving import checksum, untouched_parts
from reasoning.rollouts.weights import Touched, to_send

QV = r".*language_model.*\.(q_proj|v_proj)"


@pytest.fixture
def trained(untrained_checkpoint):
    """A model whose adapter differs from where it began; targets and projector as asked."""

    def make(train_projector=False, target_modules=None, r=4):
        torch.manual_seed(0)
        loaded = add_adapter(
            load_model(untrained_checkpoint), r=r, alpha=8, dropout=0.0, train_projector=train_projector,
            target_modules=target_modules,
        )  # fmt: skip
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        return loaded

    return make


@pytest.mark.parametrize(("train_projector", "targets"), [(False, None), (True, None), (True, QV)])
def test_it_holds_what_differs_between_a_merged_checkpoint_and_its_base_bit_for_bit(
    trained, untrained_checkpoint, tmp_path, train_projector, targets
):
    loaded = trained(train_projector, targets)
    loaded.model.save_pretrained(tmp_path / "adapter")
    record_base(tmp_path / "adapter", loaded)
    merge_adapter(untrained_checkpoint, tmp_path / "adapter", tmp_path / "merged")
    base = load_file(untrained_checkpoint / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    differ = {name for name in base if not torch.equal(base[name], merged[name])}
    touched = Touched(loaded.model)
    assert set(touched) == differ
    assert all(torch.equal(touched[name], merged[name]) for name in differ)
    layers = 2
    assert len(touched) == (7 if targets is None else 2) * layers + 2 * train_projector


def test_looking_leaves_the_live_model_as_it_was_and_a_later_step_shows(trained):
    loaded = trained(train_projector=True)
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    touched = Touched(loaded.model)
    first = checksum(touched)
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())
    assert checksum(touched) == first
    lora_b = next(p for name, p in loaded.model.named_parameters() if "lora_B" in name)
    lora_b.data[0, 0] += 1e-3
    assert checksum(touched) != first


def test_only_the_active_adapter_is_merged(trained):
    """TRL keeps a copy of the starting adapter, named ref, in the same model."""
    loaded = trained(train_projector=True)
    alone = checksum(Touched(loaded.model))
    loaded.model.add_adapter("ref", loaded.model.peft_config["default"])
    for name, parameter in loaded.model.named_parameters():
        if ".ref." in name:
            parameter.data += 1.0
    assert checksum(Touched(loaded.model)) == alone


def test_a_projector_that_the_engine_never_runs_is_left_out(trained):
    loaded = trained(train_projector=True)
    whole, part = Touched(loaded.model), Touched(loaded.model, without=loaded.family.projector)
    assert set(whole) - set(part) == {"multi_modal_projector.linear.weight", "multi_modal_projector.linear.bias"}


@pytest.mark.parametrize("train_projector", [False, True])
def test_the_matrices_of_a_layer_multiply_to_what_a_merge_adds_and_the_rest_stays_merged(
    trained, untrained_checkpoint, train_projector
):
    loaded = trained(train_projector)
    base = load_file(untrained_checkpoint / "model.safetensors")
    merged, split = Touched(loaded.model), Touched(loaded.model, lora=True)
    weights = {name for name in split if not is_lora(name)}
    layers = [name for name in merged if name not in weights]
    assert {name for name in merged if "projector" in name} == weights
    assert len(split) == 2 * len(layers) + len(weights)
    assert split.rank == 4
    for name in layers:
        layer = name.removesuffix(".weight")
        added = split[layer + LORA_B] @ split[layer + LORA_A]
        torch.testing.assert_close(base[name] + added, merged[name], atol=1e-6, rtol=0)
    assert all(torch.equal(split[name], merged[name]) for name in weights)
    beside = ", and 2 weights, merged" if train_projector else ", and no weight of the base"
    assert split.describe() == f"the adapter of 14 layers as it is, rank 4{beside}"
    assert merged.describe() == f"{len(merged)} weights, merged"


def test_what_was_handed_over_does_not_go_on_training(trained):
    loaded = trained()
    touched = Touched(loaded.model, lora=True)
    kept = {name: touched[name] for name in touched}
    before = checksum(kept)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert checksum(kept) == before != checksum(touched)


def test_layers_that_are_more_than_lora_or_outside_the_language_model_stay_merged(untrained_checkpoint):
    def touched(**options):
        base = load_model(untrained_checkpoint)
        targets = options.pop("targets", base.family.lora_targets)
        config = LoraConfig(r=4, target_modules=targets, **options)
        return Touched(cast(PeftModel, get_peft_model(base.base, config)), lora=True)

    assert touched().rank == 4
    assert touched(rank_pattern={"q_proj": 8}).rank == 8
    assert touched(use_dora=True).rank == 0
    assert touched(lora_bias=True, targets=r".*language_model.*\.q_proj").rank == 0
    outside = touched(targets=r".*(multi_modal_projector\.linear|lm_head)")
    assert sorted(outside) == ["language_model.lm_head.weight", "multi_modal_projector.linear.weight"]


def test_a_sync_is_the_adapter_where_the_engine_takes_it_and_a_higher_rank_is_refused(trained):
    def engine(lora_rank, hears):
        return cast(Any, SimpleNamespace(lora_rank=lora_rank, hears=hears))

    loaded = trained(train_projector=True)
    assert not any(map(is_lora, to_send(engine(0, True), loaded)))
    adapter = set(to_send(engine(4, False), loaded))
    assert all(map(is_lora, adapter))
    whole = set(to_send(engine(8, True), loaded))
    assert whole - adapter == {"multi_modal_projector.linear.weight", "multi_modal_projector.linear.bias"}
    with pytest.raises(ModelError, match=r"adapter: has rank 4, .* takes up to 2.*--max-lora-rank 4, or 0 for merged"):
        to_send(engine(2, True), loaded)


def test_what_is_trained_elsewhere_is_refused_by_name(trained):
    loaded = trained()
    loaded.base.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ModelError, match=r"1 trained weights, .*embed_tokens.weight first"):
        Touched(loaded.model)


def test_parts_of_a_fused_layer_go_along_and_nothing_else():
    stored = [
        "m.0.q_proj.weight", "m.0.q_proj.bias", "m.0.k_proj.weight", "m.0.v_proj.weight", "m.0.o_proj.weight",
        "m.1.q_proj.weight", "m.0.up_proj.weight", "lm_head.weight",
    ]  # fmt: skip
    fused = {frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"gate_proj", "up_proj"})}
    assert untouched_parts(["m.0.q_proj.weight"], stored, fused) == {
        "m.0.q_proj.bias", "m.0.k_proj.weight", "m.0.v_proj.weight",
    }  # fmt: skip
    assert untouched_parts(["m.0.o_proj.weight", "lm_head.weight"], stored, fused) == set()


def test_the_checksum_tells_names_types_shapes_and_single_bits_apart(tmp_path):
    tensor = torch.randn(3, 4)
    same = checksum({"b": tensor, "a": tensor.T})
    assert checksum({"a": tensor.T.clone(), "b": tensor.clone()}) == same
    flipped = tensor.clone()
    flipped.view(torch.int32)[1, 1] ^= 1
    others = [{"b": flipped, "a": tensor.T}, {"c": tensor, "a": tensor.T}, {"b": tensor.view(4, 3), "a": tensor.T}]
    others.append({"b": tensor.bfloat16(), "a": tensor.T})
    assert len({same, *map(checksum, others)}) == 5
    save_file({"x": tensor.bfloat16()}, tmp_path / "x.safetensors")
    assert checksum(load_file(tmp_path / "x.safetensors")) == checksum({"x": tensor.bfloat16()})
