"""Fixtures that more than one test file needs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from reasoning.clips import Clip

REPOSITORY = Path(__file__).resolve().parents[1]

# A busy machine may take long over one example; pytest-timeout watches the whole test.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

TONES_HZ = {"anger": 2600, "disgust": 300, "fear": 1700, "happy": 1100, "neutral": 150, "sad": 600}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, and say why."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
    if item.get_closest_marker("vllm") and find_spec("vllm") is None:
        pytest.skip("needs vLLM, which is not installed")


@pytest.fixture(scope="session")
def shared_crema_d() -> Path:
    """The official CREMA-D tables with a part of its audio: data/CREMA-D in `$EQUIVOX_SHARED` or `../shared`."""
    shared = Path(os.environ.get("EQUIVOX_SHARED") or REPOSITORY.parent / "shared")
    root = shared / "data" / "CREMA-D"
    if not (root / "processedResults" / "tabulatedVotes.csv").is_file():
        pytest.skip(f"no CREMA-D votes in {root}: set EQUIVOX_SHARED to the folder that holds data/CREMA-D")
    return root


@pytest.fixture
def free_port() -> int:
    """A port of this machine on which nothing listens."""
    return unused_port()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def http_server() -> Iterator[Callable[..., str]]:
    """Start a real server on this machine: http_server(reply, port=0) -> its URL, ending in /v1.

    reply(path, body, headers) -> (status, text, headers to send); body is the JSON that came, None for GET.
    """
    running = []

    def start(reply: Callable[..., tuple[int, str, dict[str, str]]], port: int = 0) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                status, text, headers = reply(
                    self.path, json.loads(self.rfile.read(length)) if length else None, self.headers
                )
                data = text.encode()
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(data)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@dataclass(frozen=True)
class TrainedCheckpoint:
    """model: a small Qwen2-Audio that learned the votes of `corpus` from its sound. corpus: a corpus folder."""

    model: Path
    corpus: Path


@pytest.fixture(scope="session")
def tone_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 tones by 10 speakers in 5 folds. Pitch tells the votes: most for one emotion, some for the next one."""
    import soundfile

    from data_builders.folds import place
    from data_builders.rows import CorpusInfo, write_corpus
    from reasoning.clips import Clip
    from reasoning.emotions import CREMA_D

    folder = tmp_path_factory.mktemp("tones")
    clips = []
    for speaker in range(10):
        for i, emotion in enumerate(CREMA_D.names):
            rng = np.random.default_rng([speaker, i])
            name = f"s{speaker}_{emotion}"
            seconds = 0.6 + 0.05 * ((speaker + i) % 4)
            time = np.arange(int(seconds * 16_000)) / 16_000
            wave = 0.4 * np.sin(2 * np.pi * TONES_HZ[emotion] * time) + 0.02 * rng.standard_normal(len(time))
            soundfile.write(folder / f"{name}.flac", wave.astype(np.float32), 16_000)
            votes = [0] * 6
            votes[i], votes[(i + 1) % 6] = 6 + speaker % 3, 2
            clip = Clip(
                id=name, audio=f"{name}.flac", duration_s=seconds, transcript="a tone", language="en",
                speaker=f"s{speaker}", sex="female" if speaker % 2 else "male", age=None, split="train", fold=0,
                votes=tuple(votes), n_votes=sum(votes), intended=None, source="synthetic",
            )  # fmt: skip
            clips.append(clip)
    info = CorpusInfo(
        name="tones", emotions=CREMA_D, licence="CC0", citation="made by the tests", rater_task="none",
        builder_version="1", tables={}, counts={}, left_out=[], statement="tones with made-up votes",
    )  # fmt: skip
    write_corpus(folder, place(clips), info)
    return folder


def small_processor(kind: type, marks: list[str], template: str, **options: object) -> Any:
    """A processor with a tokenizer of 400 tokens. marks: its tokens for audio. template: what audio is in a prompt."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

    from reasoning.emotions import CREMA_D
    from reasoning.response import write_response

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    # special=True: skipped when text is decoded, like the real tokenizers'.
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(s, special=True) for s in ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks]],
        show_progress=False,
    )
    text = [write_response([1 / 6] * 6, name, CREMA_D, "Words: a tone") for name in CREMA_D.names]
    bpe.train_from_iterator(text * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    chat = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'audio' %}"
        f"{template}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}<|im_end|>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    extractor = WhisperFeatureExtractor(feature_size=80, return_attention_mask=True)
    return kind(feature_extractor=extractor, tokenizer=tokenizer, chat_template=chat, **options)


def save_untrained(folder: Path, kind: type, processor: Any, audio_config: dict[str, Any], **config: Any) -> Path:
    """`folder`, made the checkpoint of a random model of 0.6 M parameters, saved with its processor as any other."""
    import torch

    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    text_config = dict(
        model_type="qwen2", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = kind(kind.config_class(audio_config=audio_config, text_config=text_config, **config))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untrained_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random small Qwen2-Audio."""
    from transformers import Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

    marks = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    processor = small_processor(Qwen2AudioProcessor, marks, "<|audio_bos|><|AUDIO|><|audio_eos|>\n")
    audio_config = dict(
        model_type="qwen2_audio_encoder", num_mel_bins=80, encoder_layers=1, encoder_attention_heads=2,
        encoder_ffn_dim=64, d_model=64, max_source_positions=1500,
    )  # fmt: skip
    token = processor.tokenizer.convert_tokens_to_ids(marks[0])
    folder = tmp_path_factory.mktemp("untrained")
    return save_untrained(folder, Qwen2AudioForConditionalGeneration, processor, audio_config, audio_token_index=token)


@pytest.fixture(scope="session")
def untrained_flamingo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random small AudioFlamingo3. Like any other it hears windows of 30 s, of which its context holds one."""
    from transformers import AudioFlamingo3ForConditionalGeneration, AudioFlamingo3Processor

    processor = small_processor(AudioFlamingo3Processor, ["<sound>"], "<sound>", max_audio_len=30)
    audio_config = dict(
        model_type="audioflamingo3_encoder", num_mel_bins=80, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, hidden_size=64, max_source_positions=1500,
    )  # fmt: skip
    token = processor.tokenizer.convert_tokens_to_ids("<sound>")
    folder = tmp_path_factory.mktemp("flamingo")
    return save_untrained(folder, AudioFlamingo3ForConditionalGeneration, processor, audio_config, audio_token_id=token)


@pytest.fixture(scope="session", params=["untrained_checkpoint", "untrained_flamingo"])
def untrained_family(request: pytest.FixtureRequest) -> Path:
    """A random checkpoint of each family in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def trained_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, untrained_checkpoint: Path, tone_corpus: Path
) -> TrainedCheckpoint:
    """The small Qwen2-Audio after it learned to answer the training speakers' tones."""
    return train_to_answer(untrained_checkpoint, tone_corpus, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def trained_flamingo(
    tmp_path_factory: pytest.TempPathFactory, untrained_flamingo: Path, tone_corpus: Path
) -> TrainedCheckpoint:
    """The small AudioFlamingo3 after it learned the same; of the shares that it writes, some do not add up yet."""
    return train_to_answer(untrained_flamingo, tone_corpus, tmp_path_factory.mktemp("trained_flamingo"))


@pytest.fixture(scope="session", params=["trained_checkpoint", "trained_flamingo"])
def trained_family(request: pytest.FixtureRequest) -> TrainedCheckpoint:
    """A trained checkpoint of each family in turn."""
    return request.getfixturevalue(request.param)


def train_to_answer(untrained: Path, tone_corpus: Path, folder: Path) -> TrainedCheckpoint:
    """`folder`, made `untrained` after it learned to answer the training tones."""
    teach(untrained, tone_corpus, folder, steps=TRAINING_STEPS)
    return TrainedCheckpoint(folder, tone_corpus)


@pytest.fixture(scope="session", name="teach")
def teach_of_this_file() -> Callable[..., None]:
    """`teach`, for the fixtures of other folders."""
    return teach


def teach(
    before: Path,
    tone_corpus: Path,
    after: Path,
    *,
    steps: int,
    thinking: Callable[[Clip], str] | None = None,
    last_rate: float = 1.0,
) -> None:
    """Save `before` in `after` once it learned to answer the training tones, all weights but the tower's trained.

    thinking: what to think of a clip before the answer; without it none. last_rate: share of the learning rate that it
    falls to.
    """
    import torch

    from data_builders.rows import read_corpus, split_clips
    from reasoning.models.answer_head import add_answer_head
    from reasoning.models.loading import load_model
    from reasoning.models.prompter import Prompter
    from reasoning.response import ShareGrid
    from reasoning.training.collate import AnswerCollator
    from reasoning.training.objective import IGNORE, response_nll_nats, vote_kl_nats

    corpus = read_corpus(tone_corpus)
    loaded = load_model(before)
    prompter = Prompter(loaded, corpus.info.emotions)
    add_answer_head(loaded.base, prompter.labels)
    level = "think" if thinking else "no_think"
    collator = AnswerCollator(prompter, loaded.memory(), level=level, seed=0, grid=ShareGrid(10))
    rows = [
        {
            "id": c.id, "audio": str(corpus.root / c.audio), "transcript": c.transcript, "votes": c.votes,
            "thinking": thinking(c) if thinking else None,
        }
        for c in split_clips(corpus, 0)["train"]
    ]  # fmt: skip
    model = loaded.base.train()
    weights = [p for name, p in model.named_parameters() if "audio_tower" not in name]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, last_rate, steps)
    order = np.random.default_rng(0)
    for step in range(steps):
        collator.epoch = step
        batch = collator([rows[i] for i in order.choice(len(rows), 12, replace=False)])
        votes, labels = batch.pop("votes"), batch["labels"]
        output = model(**batch, answer_head=True)
        ce = response_nll_nats(output.logps, output.label_mass, labels, batch["slots"]) / (labels != IGNORE).sum()
        loss = ce + vote_kl_nats(output.label_logits, votes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
    model.save_pretrained(after)
    loaded.processor.save_pretrained(after)


TRAINING_STEPS = 220


@dataclass(frozen=True)
class VllmServer:
    """A running `equivox serve`. url: ends in /v1. model: the name that it gave itself."""

    url: str
    model: str
    process: subprocess.Popen

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].partition("/")[0])


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., VllmServer]]:
    """Start `equivox serve` by the command that users type: serve("--model", folder, ..., port=None) waits for it."""
    from reasoning.errors import EvaluationError
    from reasoning.inference.endpoint import Endpoint

    started: list[subprocess.Popen] = []

    def start(*options: object, port: int | None = None) -> VllmServer:
        port, log = port or unused_port(), tmp_path_factory.mktemp("serve") / "log"
        command = [sys.executable, "-m", "launch.cli", "serve", *map(str, options), "--port", str(port)]
        with log.open("w") as out:
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=out, stderr=out, start_new_session=True)
        started.append(process)
        endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", retries=0)
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            with contextlib.suppress(EvaluationError):
                return VllmServer(endpoint.url, endpoint.get("/models")["data"][0]["id"], process)
            time.sleep(1)

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):  # killed by its test
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="session")
def vllm_server(serve: Callable[..., VllmServer], trained_checkpoint: TrainedCheckpoint) -> VllmServer:
    """The one server of a test session that is asked only."""
    return serve("--model", trained_checkpoint.model)
