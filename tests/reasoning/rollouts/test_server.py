"""A real `equivox serve --rollouts`: what it samples, what it is given, and what a kill -9 of it costs."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch

from data_builders.rows import read_corpus, split_clips
from launch.engines import served_name
from reasoning.errors import ModelError, RolloutError
from reasoning.inference.server_engine import LocalCheckpoint
from reasoning.models.loading import add_adapter, load_model
from reasoning.models.prompter import Prompter, prompt_batch
from reasoning.rollouts.broadcast import BroadcastTransport
from reasoning.rollouts.receiving import checksum
from reasoning.rollouts.rollouts import Prompt, Sampling
from reasoning.rollouts.server import ServerRollouts
from reasoning.rollouts.transport import ask_workers
from reasoning.rollouts.weights import Touched

TOLERANCE_NATS = 1e-3
"""Largest difference of a token's log-probability from transformers', float32. docs/rollouts.md states it."""

DRAW = Sampling(max_new_tokens=60)
GREEDY = Sampling(max_new_tokens=60, temperature=0.0)
SEEDS = [1000 * i for i in range(12)]

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


class Trainer:
    """The small model that learned to hear, an adapter with its projector on it, and prompts of unheard speakers."""

    def __init__(self, trained_checkpoint):
        corpus = read_corpus(trained_checkpoint.corpus)
        self.path = trained_checkpoint.model
        self.base = load_model(self.path)
        self.prompter = Prompter(self.base, corpus.info.emotions)
        memory = self.base.memory()
        self.prompts = []
        for clip in split_clips(corpus, 0)["test"]:
            path = corpus.root / clip.audio
            (heard,) = memory.hear([path])
            ids = self.prompter.prompt_ids(clip.transcript, heard, "no_think")
            self.prompts.append(Prompt(clip.id, ids, clip.transcript, "no_think", path, heard))

    def swapped(self):
        """Every prompt's words with the sound of another emotion by the same speaker."""
        sounds = self.prompts[1:] + self.prompts[:1]
        made = []
        for prompt, other in zip(self.prompts, sounds, strict=True):
            ids = self.prompter.prompt_ids(prompt.transcript, other.heard, prompt.level)
            made.append(replace(prompt, ids=ids, source=other.source, heard=other.heard))
        return made

    def adapted(self, seed, train_projector=True):
        """The model with a random adapter that changes what it says."""
        torch.manual_seed(seed)
        loaded = add_adapter(load_model(self.path), r=4, alpha=8, dropout=0.0, train_projector=train_projector)
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        return loaded

    def logits(self, model, prompt, completion):
        """Of each token of the completion, by transformers' ordinary forward: (tokens, vocabulary)."""
        with torch.no_grad():
            batch = prompt_batch(self.prompter, [[*prompt.ids, *completion]], [prompt.heard])
            return model(**batch).logits[0, len(prompt.ids) - 1 : -1]

    def logps(self, model, prompts, completions, temperature=None):
        """temperature: as drawn at it, where the tokens that stand for audio cannot be; None: over all tokens."""
        found = []
        for prompt, completion in zip(prompts, completions, strict=True):
            logits = self.logits(model, prompt, completion)
            if temperature is not None:
                logits[:, self.base.modality_token_ids()] = -torch.inf
                logits /= temperature
            places = torch.arange(len(completion))
            found.append(logits.log_softmax(-1)[places, torch.tensor(completion, dtype=torch.long)].tolist())
        return found


@pytest.fixture(scope="session")
def trainer(trained_checkpoint):
    return Trainer(trained_checkpoint)


@dataclass
class Served:
    """A server of `model` that can be killed and started again at its port. folder: where it takes weights from."""

    serve: Any
    model: Any
    folder: Any
    options: tuple[object, ...] = ()
    running: Any = None

    def start(self):
        port = self.running and self.running.port
        self.running = self.serve("--model", self.model, "--rollouts", self.folder, *self.options, port=port)
        return self

    def kill(self):
        os.killpg(self.running.process.pid, signal.SIGKILL)
        self.running.process.wait()


@pytest.fixture(scope="session")
def server(serve, trained_checkpoint, tmp_path_factory):
    return Served(serve, trained_checkpoint.model, tmp_path_factory.mktemp("rollouts")).start()


def connect(server, trainer, **options):
    checkpoint = LocalCheckpoint.read(trainer.path)
    return ServerRollouts(server.running.url, served_name(trainer.path, None), checkpoint, server.folder, **options)


def by_broadcast(server, trainer, **options):
    return connect(server, trainer, transport=partial(BroadcastTransport, server.folder), **options)


@pytest.fixture
def rollouts(server, trainer):
    """A client of the server, which holds the checkpoint's own weights."""
    client = connect(server, trainer)
    client.sync({})
    yield client
    client.close()


def worst(ours, theirs):
    return max(abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))


def ids_of(drawn):
    return [[sample.ids for sample in samples] for samples in drawn]


def flat(trainer, drawn):
    prompts = [p for p, samples in zip(trainer.prompts, drawn, strict=False) for _ in samples]
    samples = [sample for of_prompt in drawn for sample in of_prompt]
    return prompts, samples


def test_samples_carry_the_log_probabilities_that_transformers_gives_them(rollouts, trainer):
    drawn = rollouts.sample(trainer.prompts, 3, SEEDS, DRAW)
    prompts, samples = flat(trainer, drawn)
    assert [len(s) for s in drawn] == [3] * len(trainer.prompts)
    reference = trainer.logps(trainer.base.base, prompts, [s.ids for s in samples], temperature=1.0)
    assert worst([s.logps for s in samples], reference) < TOLERANCE_NATS
    ends = rollouts.checkpoint.stop_ids
    assert all((s.ids[-1] in ends) != s.truncated and not set(s.ids[:-1]) & set(ends) for s in samples)
    assert any(a.ids != b.ids for a, b, _ in drawn)


def test_samples_are_not_likely_with_another_clips_sound(rollouts, trainer):
    prompts, samples = flat(trainer, rollouts.sample(trainer.prompts, 1, SEEDS, DRAW))
    true = trainer.logps(trainer.base.base, prompts, [s.ids for s in samples])
    swapped = trainer.logps(trainer.base.base, trainer.swapped(), [s.ids for s in samples])
    lost = [sum(t) - sum(s) for t, s in zip(true, swapped, strict=True)]
    assert sum(lost) / len(lost) > 2
    assert worst([s.logps for s in samples], swapped) > 1


def test_given_completions_are_scored_as_transformers_scores_them_with_true_and_swapped_audio(rollouts, trainer):
    _, samples = flat(trainer, rollouts.sample(trainer.prompts, 1, SEEDS, DRAW))
    completions = [s.ids for s in samples]
    completions[0], completions[1] = completions[0][::-1], []  # no text that a tokenizer would give back; and nothing
    for prompts in (trainer.prompts, trainer.swapped()):
        ours = rollouts.logps(prompts, completions)
        assert worst(ours, trainer.logps(trainer.base.base, prompts, completions)) < TOLERANCE_NATS
        assert ours[1] == []


def test_a_seed_draws_the_same_alone_and_among_others_and_sample_j_is_that_of_seed_plus_j(rollouts, trainer):
    whole = ids_of(rollouts.sample(trainer.prompts, 3, SEEDS, DRAW))
    assert ids_of(rollouts.sample(trainer.prompts[4:5], 3, SEEDS[4:5], DRAW)) == whole[4:5]
    for j in range(3):
        assert ids_of(rollouts.sample(trainer.prompts[4:5], 1, [SEEDS[4] + j], DRAW))[0][0] == whole[4][j]


def test_temperature_and_cuts_are_those_asked_for(rollouts, trainer):
    hot = replace(DRAW, temperature=1.7)
    prompts, samples = flat(trainer, rollouts.sample(trainer.prompts[:4], 2, SEEDS[:4], hot))
    expected = trainer.logps(trainer.base.base, prompts, [s.ids for s in samples], temperature=1.7)
    assert worst([s.logps for s in samples], expected) < TOLERANCE_NATS
    greedy = ids_of(rollouts.sample(trainer.prompts[:4], 1, SEEDS[:4], GREEDY))
    assert ids_of(rollouts.sample(trainer.prompts[:4], 1, SEEDS[:4], replace(hot, top_k=1))) == greedy
    (short,) = rollouts.sample(trainer.prompts[:1], 1, [0], replace(DRAW, max_new_tokens=3))
    assert (len(short[0].ids), short[0].truncated) == (3, True)


def test_text_without_audio_is_sampled_too(rollouts, trainer):
    ids = trainer.prompter.prompt_ids("a tone", None, "no_think")
    prompt = Prompt("deaf", ids, "a tone", "no_think", None, None)
    ((sample,),) = rollouts.sample([prompt], 1, [0], DRAW)
    expected = trainer.logps(trainer.base.base, [prompt], [sample.ids], temperature=1.0)
    assert worst([sample.logps], expected) < TOLERANCE_NATS


def test_a_prompt_that_the_server_reads_otherwise_or_that_does_not_fit_is_refused(rollouts, trainer):
    first = trainer.prompts[0]
    at = first.ids.index(rollouts.audio_id)
    longer = replace(first, ids=[*first.ids[:at], rollouts.audio_id, *first.ids[at:]])
    with pytest.raises(ModelError, match=rf"\[{first.row}\] prompt: .* prompt tokens where the local checkpoint"):
        rollouts.sample([longer], 1, [0], DRAW)
    with pytest.raises(ModelError, match=rf"\[{first.row}\] prompt: needs \d+ prompt tokens .* holds 1024"):
        rollouts.sample([first], 1, [0], replace(DRAW, max_new_tokens=1000))


@pytest.mark.parametrize("train_projector", [True, False])
def test_after_a_sync_the_server_is_the_merged_model_and_nothing_of_the_one_before(rollouts, trainer, train_projector):
    rollouts.sample(trainer.prompts, 1, SEEDS, GREEDY)  # every clip is in the server's caches now
    rollouts.sync(Touched(trainer.adapted(1).model))
    adapted = trainer.adapted(2, train_projector)
    touched = Touched(adapted.model)
    synced = rollouts.sync(touched)
    held = ask_workers(rollouts.server, "report_weights")[0]["held"]
    assert held == synced.checksum == checksum(touched)
    assert (synced.tensors, synced.bytes) == (len(touched), sum(touched[name].nbytes for name in touched))
    prompts, samples = flat(trainer, rollouts.sample(trainer.prompts, 1, SEEDS, GREEDY))
    unchanged = trainer.logps(trainer.base.base, prompts, [s.ids for s in samples], temperature=1.0)
    assert worst([s.logps for s in samples], unchanged) > 100 * TOLERANCE_NATS
    merged = adapted.model.merge_and_unload()
    expected = trainer.logps(merged, prompts, [s.ids for s in samples], temperature=1.0)
    assert worst([s.logps for s in samples], expected) < TOLERANCE_NATS
    for prompt, sample in zip(prompts, samples, strict=True):
        logits = trainer.logits(merged, prompt, sample.ids)
        logits[:, trainer.base.modality_token_ids()] = -torch.inf
        assert logits.argmax(-1).tolist() == sample.ids


def test_a_clip_that_was_heard_already_is_heard_anew_after_its_projector_changed(rollouts, trainer):
    adapted = trainer.adapted(3)
    touched = Touched(adapted.model)
    projector = {name: touched[name] for name in touched if "projector" in name}
    _, samples = flat(trainer, rollouts.sample(trainer.prompts[:3], 1, SEEDS[:3], GREEDY))
    completions = [s.ids for s in samples]
    before = rollouts.logps(trainer.prompts[:3], completions)
    assert len(projector) == rollouts.sync(projector).tensors == 2
    after = rollouts.logps(trainer.prompts[:3], completions)
    changed = load_model(trainer.path)
    changed.base.load_state_dict({f"model.{name}": tensor for name, tensor in projector.items()}, strict=False)
    assert worst(after, trainer.logps(changed.base, trainer.prompts[:3], completions)) < TOLERANCE_NATS
    assert worst(after, before) > 0.1


def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(rollouts, trainer):
    expected = rollouts.sample(trainer.prompts[:2], 2, SEEDS[:2], DRAW)
    name = next(iter(Touched(trainer.adapted(0).model)))
    with pytest.raises(RolloutError, match=r"\[model.no_such.weight\] weights: is no weight of the served checkpoint"):
        rollouts.sync({"model.no_such.weight": torch.zeros(2, 2)})
    with pytest.raises(RolloutError, match=rf"\[{name}\] weights: has shape \(2, 2\), in the served checkpoint"):
        rollouts.sync({name: torch.zeros(2, 2)})
    assert rollouts.sample(trainer.prompts[:2], 2, SEEDS[:2], DRAW) == expected


def test_no_client_can_name_a_file_outside_the_folder(rollouts, trainer):
    for name in ("../x", str(trainer.path / "model.safetensors")):
        (answer,) = ask_workers(rollouts.server, "receive_files", [name], "0")
        assert "the only folder that this server reads weights from" in answer["refused"]


def test_a_folder_that_the_server_does_not_watch_is_refused(server, trainer, tmp_path):
    for other in (connect, by_broadcast):
        with pytest.raises(RolloutError, match=rf"from {server.folder}, the training writes them to {tmp_path}"):
            other(replace(server, folder=tmp_path), trainer)


def test_a_server_of_another_base_is_refused_by_its_name(server, trainer):
    checkpoint = LocalCheckpoint.read(trainer.path)
    with pytest.raises(RolloutError, match=r"serves 'equivox-\w+', asked for is 'equivox-0123'"):
        ServerRollouts(server.running.url, "equivox-0123", checkpoint, server.folder)


def test_another_rank_samples_by_what_the_first_one_sent(server, rollouts, trainer):
    other = connect(server, trainer)
    for seed in (6, 7):
        rollouts.sync(Touched(trainer.adapted(seed).model))
        drawn = rollouts.sample(trainer.prompts[:2], 2, SEEDS[:2], DRAW)
        assert other.sample(trainer.prompts[:2], 2, SEEDS[:2], DRAW) == drawn
    other.close()
    assert rollouts.sample(trainer.prompts[:2], 2, SEEDS[:2], DRAW) == drawn


@pytest.mark.parametrize("train_projector", [True, False])
def test_weights_that_were_broadcast_give_the_log_probabilities_that_files_gave(
    server, rollouts, trainer, train_projector
):
    _, samples = flat(trainer, rollouts.sample(trainer.prompts, 1, SEEDS, DRAW))
    completions = [s.ids for s in samples]
    before = rollouts.logps(trainer.prompts, completions)
    touched = Touched(trainer.adapted(8, train_projector).model)
    filed = rollouts.sync(touched)
    expected = rollouts.logps(trainer.prompts, completions)
    assert worst(expected, before) > 0.1
    rollouts.sync({})
    rollouts.close()
    client = by_broadcast(server, trainer)
    for _ in range(2):  # in a new group, and in the same
        synced = client.sync(touched)
        assert (synced.tensors, synced.bytes) == (filed.tensors, filed.bytes)
        held = ask_workers(client.server, "report_weights")[0]["held"]
        assert held == synced.checksum != filed.checksum
        assert client.logps(trainer.prompts, completions) == expected
        client.sync({})
        assert client.logps(trainer.prompts, completions) == before
    client.close()


def test_misfits_are_refused_before_they_are_broadcast(server, rollouts, trainer):
    rollouts.close()
    client = by_broadcast(server, trainer)
    touched = Touched(trainer.adapted(9).model)
    client.sync(touched)
    expected = client.sample(trainer.prompts[:2], 2, SEEDS[:2], DRAW)
    name = next(iter(touched))
    with pytest.raises(RolloutError, match=r"\[model.no_such.weight\] weights: is no weight of the served checkpoint"):
        client.sync({"model.no_such.weight": torch.zeros(2, 2)})
    with pytest.raises(RolloutError, match=rf"\[{name}\] weights: has shape \(2, 2\), in the served checkpoint"):
        client.sync({name: torch.zeros(2, 2)})
    assert client.sample(trainer.prompts[:2], 2, SEEDS[:2], DRAW) == expected
    client.close()


def test_weights_of_another_training_are_noticed(server, rollouts, trainer):
    other = connect(server, trainer)
    other.sync(Touched(trainer.adapted(4).model))
    with pytest.raises(RolloutError, match=r"holds weights that this training did not send"):
        rollouts.sample(trainer.prompts[:1], 1, [0], DRAW)
    other.close()


def test_a_server_killed_in_the_middle_costs_time_and_no_other_samples(server, trainer, monkeypatch, caplog):
    impatient = connect(server, trainer, retries=0)
    client = connect(server, trainer, concurrency=4, retries=30)
    client.sync(Touched(trainer.adapted(5).model))
    undisturbed = ids_of(client.sample(trainer.prompts, 4, SEEDS, DRAW))
    comeback = threading.Thread(target=server.start)
    asked, ask = [], client._state

    def killed_after_three_answers(row):
        asked.append(row)
        if len(asked) == 4:
            server.kill()
            said = rf"\[{trainer.prompts[0].row}\] url: http://.*:{server.running.port}/.*serve"
            with pytest.raises(RolloutError, match=said):
                impatient.sample(trainer.prompts[:1], 1, [0], DRAW)
            comeback.start()
        return ask(row)

    monkeypatch.setattr(client, "_state", killed_after_three_answers)
    assert ids_of(client.sample(trainer.prompts, 4, SEEDS, DRAW)) == undisturbed
    comeback.join()
    assert [r.message for r in caplog.records if "was restarted" in r.message] == [
        f"{client.server.url} was restarted: it gets the weights of the last sync again"
    ]
    assert any("does not answer" in r.message for r in caplog.records)
    client.sync({})
    assert ids_of(client.sample(trainer.prompts, 4, SEEDS, DRAW)) != undisturbed  # by the checkpoint's own weights
    client.close()


def test_a_server_killed_during_a_broadcast_is_one_error_and_gets_the_last_sync_again_when_it_is_back(server, trainer):
    client = by_broadcast(server, trainer, retries=0)
    other = by_broadcast(server, trainer, retries=30, sends=False)
    touched = Touched(trainer.adapted(10).model)
    assert other.sync(Touched(trainer.adapted(10).model)) is None
    client.sync(touched)
    expected = client.logps(trainer.prompts[:3], COMPLETIONS)
    killed_while_sent(server, client, touched)
    server.start()
    assert other.logps(trainer.prompts[:3], COMPLETIONS) == expected
    assert client.logps(trainer.prompts[:3], COMPLETIONS) == expected
    client.sync({})
    assert client.logps(trainer.prompts[:3], COMPLETIONS) != expected
    client.close()
    other.close()


COMPLETIONS = [[5, 6, 7], [8, 9], [10]]


def killed_while_sent(server, client, touched):
    """Kill the server between two tensors of a sync, which says so."""

    class Killing(dict):
        armed = False

        def __getitem__(self, name):
            if self.armed and name == sorted(self)[3]:
                server.kill()
            return super().__getitem__(name)

    killing = Killing({name: tensor + 1 for name, tensor in touched.items()})
    client.transport.follow(killing)
    killing.armed = True
    said = rf"url: http://.*:{server.running.port}/collective_rpc does not answer.*equivox serve"
    with pytest.raises(RolloutError, match=said):
        client.sync(killing)


@pytest.mark.gpu
@pytest.mark.parametrize(("card", "backend"), [("0", "gloo"), ("1", "nccl")], ids=["a GPU for both", "a GPU for each"])
def test_between_gpus_too_a_broadcast_gives_the_log_probabilities_that_files_give(
    serve, trainer, tmp_path, monkeypatch, caplog, card, backend
):
    """By NCCL where the trainer has one GPU and the server the other."""
    torch.cuda.init()
    if int(card) >= torch.cuda.device_count():
        pytest.skip("needs two GPUs: NCCL lets no two members share one")
    caplog.set_level("INFO")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", card)  # of the server; this process has its own already
    server = Served(serve, trainer.path, tmp_path / "weights", ("--gpu-memory-utilization", 0.2)).start()
    adapted = trainer.adapted(11)
    adapted.model.to("cuda:0")
    touched = Touched(adapted.model)
    found = []
    for connected in (connect, by_broadcast):
        client = connected(server, trainer, retries=0)
        found.append(client.logps(trainer.prompts[:3], COMPLETIONS))
        client.sync(touched)
        found.append(client.logps(trainer.prompts[:3], COMPLETIONS))
        client.sync({})
        client.close()
    before, by_files, restored, broadcast = found
    assert worst(by_files, before) > 0.1
    assert worst(restored, before) < TOLERANCE_NATS
    assert worst(broadcast, by_files) < TOLERANCE_NATS
    assert f"by {backend}" in caplog.text
    client = by_broadcast(server, trainer, retries=0)
    client.sync(touched)
    killed_while_sent(server, client, touched)
    server.start()
    client.transport.follow(touched)
    assert worst(client.logps(trainer.prompts[:3], COMPLETIONS), by_files) < TOLERANCE_NATS
    client.close()
