"""An adapter that vLLM takes as it is, on a small AudioFlamingo3 that was trained to hear, beside the trainer and in a
real server. The trainer's log-probabilities are the truth."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from data_builders.rows import read_corpus, split_clips
from launch.engines import served_name
from reasoning.errors import ConfigError, ModelError, RolloutError
from reasoning.inference.server_engine import LocalCheckpoint
from reasoning.models.answer_head import add_answer_head
from reasoning.models.families import AUDIO_FLAMINGO3
from reasoning.models.loading import add_adapter, load_model
from reasoning.models.prompter import Prompter
from reasoning.rollouts.adapters import LORA_A, LORA_B, fits, is_lora, lora_options, takes_lora, weight_of, write_blank
from reasoning.rollouts.broadcast import BroadcastTransport
from reasoning.rollouts.parity import check_parity, swaps
from reasoning.rollouts.policy import Policy
from reasoning.rollouts.receiving import checksum
from reasoning.rollouts.rollouts import Sampling, Synced
from reasoning.rollouts.transport import ask_workers
from reasoning.rollouts.weights import Touched, to_send

DRAWN = Sampling(60)
GREEDY = Sampling(60, temperature=0.0)
CHANGED = "a changed adapter, and back"


class Trainer:
    """The trainer's side: the model with an adapter of rank 4 and questions about clips of unheard speakers."""

    def __init__(self, trained: Any, *, r: int = 4, train_projector: bool = False) -> None:
        corpus = read_corpus(trained.corpus)
        self.loaded = add_adapter(
            load_model(trained.model), r=r, alpha=12, dropout=0.0, train_projector=train_projector
        )
        prompter = Prompter(self.loaded, corpus.info.emotions)
        add_answer_head(self.loaded.base, prompter.labels)
        self.policy = Policy(self.loaded, prompter, self.loaded.memory(), "no_think")
        rows = [
            {"id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": list(c.votes)}
            for c in split_clips(corpus, 0)["test"]
        ]
        self.cases = self.policy.cases(rows, swaps(rows))
        self.prompts = [case.true for case in self.cases]

        trained_weights = [(n, p) for n, p in self.loaded.model.named_parameters() if p.requires_grad]
        self.start = {name: p.detach().clone() for name, p in trained_weights}

    def train(self, seed: int) -> None:
        """Move what is trained from where it began, far enough to be felt; a seed moves it alike each time."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, start in self.start.items():
                spread = 0.05 if "lora_B" in name else 0.02
                weight = self.loaded.model.get_parameter(name)
                weight.copy_(start + spread * torch.randn(start.shape, generator=generator))

    def gap(self, rollouts: Any) -> float:
        """Widest difference of a sampled token's log-probability, with its own sound and with another's, nats."""
        ids = [samples[0].ids for samples in rollouts.sample(self.prompts, 1, range(len(self.prompts)), DRAWN)]
        pairs = []
        for prompts in (self.prompts, [case.swapped for case in self.cases]):
            pairs += zip(self.policy.logps(prompts, ids), rollouts.logps(prompts, ids), strict=True)
        return max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))

    def check(self, rollouts: Any, takes: int = 1000) -> Any:
        """The gate's findings, where the engine takes so many syncs and loses the others."""
        tensors, done = to_send(rollouts, self.loaded), []

        def sync() -> object:
            done.append(1)
            return rollouts.sync(tensors) if len(done) <= takes else Synced(0, 0, 0.0, None)

        return check_parity(self.policy, rollouts, self.cases, DRAWN, sync=sync, trained=True)


def lora_bytes(model: PeftModel) -> int:
    return sum(p.nbytes for name, p in model.named_parameters() if "lora_" in name)


def failed(found: Any) -> list[str]:
    return [part.name for part in found.parts if part.passed is False]


def test_a_matrix_fits_the_side_of_the_weight_that_it_is_multiplied_with():
    name = "model.layers.0.q_proj"
    assert is_lora(name + LORA_A)
    assert is_lora(name + LORA_B)
    assert not is_lora(f"{name}.weight")
    assert {weight_of(name + part) for part in (LORA_A, LORA_B, ".weight")} == {f"{name}.weight"}
    assert fits(name + LORA_A, (4, 96), (64, 96))
    assert fits(name + LORA_B, (64, 4), (64, 96))
    assert not fits(name + LORA_A, (4, 64), (64, 96))
    assert not fits(name + LORA_B, (96, 4), (64, 96))
    assert not fits(name + LORA_A, (4,), (64, 96))
    assert not fits(f"{name}.weight", (4, 96), (64, 96))


def test_the_blank_adapter_loads_and_changes_nothing(untrained_flamingo, tmp_path):
    folder = write_blank(tmp_path / "blank", untrained_flamingo, AUDIO_FLAMINGO3.lora_targets)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sorted(name.rpartition("_proj")[2] for name in tensors) == [LORA_A, LORA_B]
    assert not any(tensor.any() for tensor in tensors.values())
    base = load_model(untrained_flamingo).base
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        assert torch.equal(PeftModel.from_pretrained(base, str(folder))(input_ids=ids).logits, before)
    with pytest.raises(ModelError, match=r"\[.*\] model: has no linear layer that an adapter could be put on"):
        write_blank(tmp_path / "none", untrained_flamingo, "nothing")


@pytest.mark.vllm
class TestOptions:
    def test_vllm_takes_the_adapter_of_one_family_and_not_of_the_other(self, untrained_flamingo, untrained_checkpoint):
        assert takes_lora(untrained_flamingo, "float32")
        assert not takes_lora(untrained_checkpoint, "float32")

    def test_a_rank_is_rounded_up_to_one_that_vllm_knows(self):
        ranks = {r: lora_options(r).get("max_lora_rank") for r in (0, 1, 2, 8, 9, 64, 65, 512)}
        assert ranks == {0: None, 1: 1, 2: 8, 8: 8, 9: 16, 64: 64, 65: 128, 512: 512}
        for rank in (513, -1):
            with pytest.raises(ConfigError, match=rf"--max-lora-rank: is {rank}, vLLM takes 1 to 512"):
                lora_options(rank)


@pytest.fixture(scope="module")
def trainer(trained_flamingo) -> Trainer:
    return Trainer(trained_flamingo)


@pytest.fixture(scope="module")
def colocated(trainer):
    from reasoning.rollouts.colocate import Colocate

    rollouts = Colocate(trainer.loaded, dtype="float32", max_num_seqs=16)
    yield rollouts
    rollouts.close()


def on_worker(rollouts, ask):
    return rollouts.vllm.llm.collective_rpc(ask)[0]


def base_weights(worker):
    return {name: p.detach().clone() for name, p in worker.model_runner.get_model().named_parameters()}


@pytest.mark.vllm
@pytest.mark.slow
class TestColocated:
    def test_each_adapter_is_the_trainers_and_the_one_before_is_gone(self, trainer, colocated):
        trainer.train(1)
        sent = to_send(colocated, trainer.loaded)
        for seed in (2, 3):
            trainer.train(seed)
            assert trainer.gap(colocated) > 0.05, "not yet sent"
            colocated.sync(sent)
            assert trainer.gap(colocated) < 1e-4
            assert on_worker(colocated, lambda worker: worker.list_loras()) == {1}

    def test_a_sync_moves_the_adapter_and_no_weight_of_the_base(self, trainer, colocated):
        trainer.train(4)
        before = on_worker(colocated, base_weights)
        synced = colocated.sync(to_send(colocated, trainer.loaded))
        after = on_worker(colocated, base_weights)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        merged = Touched(trainer.loaded.model)
        assert (synced.tensors, synced.bytes) == (2 * len(merged), lora_bytes(trainer.loaded.model))
        assert synced.bytes < sum(merged[name].nbytes for name in merged) / 5

    def test_no_cache_answers_for_an_older_adapter(self, trainer, colocated):
        trainer.train(5)
        sent = to_send(colocated, trainer.loaded)
        colocated.sync(sent)
        ids = [p.ids[-20:] for p in trainer.prompts]
        first = colocated.logps(trainer.prompts, ids)
        texts = [s[0].ids for s in colocated.sample(trainer.prompts, 1, [0] * 4, GREEDY)]
        trainer.train(6)
        colocated.sync(sent)
        assert colocated.logps(trainer.prompts, ids) != first
        trainer.train(5)
        colocated.sync(sent)
        again = colocated.logps(trainer.prompts, ids)
        torch.testing.assert_close(torch.tensor(again), torch.tensor(first), atol=1e-5, rtol=0)
        assert [s[0].ids for s in colocated.sample(trainer.prompts, 1, [0] * 4, GREEDY)] == texts

    def test_layers_without_an_adapter_of_their_own_stay_as_they_are(self, trainer, colocated):
        """Only q and v are sent: vLLM keeps them in one layer with k."""
        trainer.train(7)
        touched = to_send(colocated, trainer.loaded)
        colocated.sync({name: touched[name] for name in touched if "q_proj" in name or "v_proj" in name})
        assert trainer.gap(colocated) > 0.05
        with torch.no_grad():
            for name, p in trainer.loaded.model.named_parameters():
                if "lora_B" in name and "q_proj" not in name and "v_proj" not in name:
                    p.zero_()
        assert trainer.gap(colocated) < 1e-4

    def test_merged_weights_do_the_same_and_leave_no_adapter(self, trainer, colocated):
        trainer.train(8)
        colocated.sync(to_send(colocated, trainer.loaded))
        trainer.train(9)
        merged = Touched(trainer.loaded.model)
        own = load_file(trainer.loaded.path / "model.safetensors")
        try:
            colocated.sync(merged)
            assert on_worker(colocated, lambda worker: worker.list_loras()) == set()
            assert trainer.gap(colocated) < 1e-4
        finally:
            colocated.sync({name: own[name] for name in merged})

    def test_what_vllm_would_pass_over_or_has_no_room_for_is_refused(self, colocated):
        def matrices(layer, rank):
            return {layer + LORA_A: torch.zeros(rank, 64), layer + LORA_B: torch.zeros(64, rank)}

        with pytest.raises(
            ModelError, match=r"adapter: adapts 1 layers, audio_tower.layers.0.self_attn.q_proj first, to"
        ):
            colocated.sync(matrices("audio_tower.layers.0.self_attn.q_proj", 2))
        with pytest.raises(ModelError, match="adapter: has rank 9, this vLLM takes up to 8"):
            colocated.sync(matrices("language_model.model.layers.0.self_attn.q_proj", 9))

    def test_the_gate_passes(self, trainer, colocated):
        found = trainer.check(colocated)
        assert {part.passed for part in found.parts} == {True}, found.table()

    def test_the_gate_finds_an_adapter_that_was_not_updated(self, trainer, colocated):
        assert failed(trainer.check(colocated, takes=1)) == [CHANGED]


@pytest.fixture(scope="module")
def server(serve, trained_flamingo, tmp_path_factory):
    """(the running server, its folder)."""
    folder = tmp_path_factory.mktemp("rollouts")
    return serve("--model", trained_flamingo.model, "--rollouts", folder, "--max-lora-rank", 8), folder


@pytest.fixture
def served(server, trainer):
    """A client of the server, which holds the checkpoint's own weights."""
    client = connect(server, trainer)
    client.sync({})
    yield client
    client.close()


def connect(server, trainer, **options):
    from reasoning.rollouts.server import ServerRollouts

    running, folder = server
    path = trainer.loaded.path
    return ServerRollouts(running.url, served_name(path, None), LocalCheckpoint.read(path), folder, **options)


def held(client):
    return ask_workers(client.server, "report_weights")[0]["held"]


@pytest.mark.vllm
@pytest.mark.slow
class TestServed:
    def test_each_adapter_is_the_trainers_and_the_one_before_is_gone(self, trainer, served):
        trainer.train(1)
        sent = to_send(served, trainer.loaded)
        for seed in (2, 3):
            trainer.train(seed)
            assert trainer.gap(served) > 0.05, "not yet sent"
            synced = served.sync(sent)
            assert trainer.gap(served) < 1e-3
            assert held(served) == synced.checksum == checksum(sent)
            assert synced.bytes == lora_bytes(trainer.loaded.model)
        served.sync({})
        assert trainer.gap(served) > 0.05, "the checkpoint's own weights"

    def test_the_gate_passes_and_finds_an_adapter_that_was_not_updated(self, trainer, served):
        trainer.train(4)
        found = trainer.check(served)
        assert not failed(found), found.table()
        assert {part.name: part.passed for part in found.parts}[CHANGED] is True
        assert failed(trainer.check(served, takes=1)) == [CHANGED]

    def test_a_projector_that_trained_goes_whole_beside_the_adapter_and_leaves_with_it(
        self, trainer, served, trained_flamingo
    ):
        whole = Trainer(trained_flamingo, train_projector=True)
        whole.train(5)
        sent = to_send(served, whole.loaded)
        projector = [name for name in sent if not is_lora(name)]
        assert projector
        assert all("projector" in name for name in projector)
        served.sync(sent)
        assert whole.gap(served) < 1e-3
        trainer.train(6)
        served.sync(to_send(served, trainer.loaded))
        assert trainer.gap(served) < 1e-3, "the checkpoint's projector again"

    def test_merged_weights_do_the_same(self, trainer, served):
        trainer.train(7)
        served.sync(Touched(trainer.loaded.model))
        assert trainer.gap(served) < 1e-3
        trainer.train(8)
        served.sync(to_send(served, trainer.loaded))
        assert trainer.gap(served) < 1e-3

    def test_a_higher_rank_is_refused_before_anything_is_sent(self, served, trained_flamingo):
        with pytest.raises(ModelError, match=r"has rank 9, .* takes up to 8.*--max-lora-rank 9, or 0"):
            to_send(served, Trainer(trained_flamingo, r=9).loaded)

    def test_matrices_that_do_not_fit_are_refused_by_name_and_change_nothing(self, trainer, served):
        trainer.train(9)
        sent = to_send(served, trainer.loaded)
        served.sync(sent)
        name = next(iter(sent))
        with pytest.raises(RolloutError, match=rf"\[{name}\] weights: has shape \(4, 2\), in the served checkpoint"):
            served.sync({name: torch.zeros(4, 2)})
        with pytest.raises(RolloutError, match=r"\[x.lora_A.weight\] weights: is no weight of the served checkpoint"):
            served.sync({"x" + LORA_A: torch.zeros(4, 2)})
        assert trainer.gap(served) < 1e-3

    def test_a_broadcast_brings_adapter_and_projector_too(self, server, trainer, trained_flamingo):
        client = connect(server, trainer, transport=lambda api: BroadcastTransport(server[1], api))
        trainer.train(11)
        synced = client.sync(to_send(client, trainer.loaded))
        assert synced is not None
        assert synced.bytes == lora_bytes(trainer.loaded.model)
        assert trainer.gap(client) < 1e-3
        whole = Trainer(trained_flamingo, train_projector=True)
        whole.train(12)
        client.sync(to_send(client, whole.loaded))
        assert whole.gap(client) < 1e-3
        client.close()

    def test_a_server_that_was_killed_gets_the_adapter_again(self, serve, server, trainer, caplog):
        running, folder = server
        client = connect(server, trainer, retries=60)
        trainer.train(10)
        client.sync(to_send(client, trainer.loaded))
        undisturbed = client.sample(trainer.prompts, 2, [0] * 4, DRAWN)
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
        line = ("--model", trainer.loaded.path, "--rollouts", folder, "--max-lora-rank", 8)
        comeback = threading.Thread(target=serve, args=line, kwargs={"port": running.port})
        comeback.start()
        assert client.sample(trainer.prompts, 2, [0] * 4, DRAWN) == undisturbed
        comeback.join()
        assert "was restarted: it gets the weights of the last sync again" in caplog.text
        client.close()
