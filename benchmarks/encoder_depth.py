"""python benchmarks/encoder_depth.py --data data/crema_d

After which Whisper layer should the embedded model's encoder be cut, and which layer norm should follow the cut?
Measured on dev speakers of fold 0 with what the language model would be given (pooled, normalised tower output); test
speakers are never read. Writes benchmarks/results/encoder_depth.json and the tables of docs/seed_model.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import Qwen2AudioEncoderConfig, WhisperFeatureExtractor
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from data_builders.rows import Corpus, read_corpus, split_clips
from reasoning.clips import Clip
from reasoning.distributions import jsd_bits, nll_bits, normalize_votes
from reasoning.evaluation.probe import choose_probe, pool
from reasoning.evaluation.statistics import difference_of, jackknife_interval, mean_of
from reasoning.files import replace_section
from reasoning.models.families import QWEN2_AUDIO
from reasoning.models.memory import mel_frames
from reasoning.models.seed import DEFAULT_LAYERS, SAMPLE_RATE, calibration_speech, encoder_config, whisper_encoder

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "seed_model.md", ROOT / "benchmarks" / "results" / "encoder_depth.json"
BATCH = 8
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SEEDS = 3


class Depths:
    """A whole encoder that returns what it would after each of its layers, were it cut there."""

    def __init__(self, size: str) -> None:
        weights, _ = whisper_encoder(size)
        config = encoder_config(weights, sum(name.endswith("fc1.weight") for name in weights))
        config.pop("model_type")
        self.tower = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**config)).eval()
        self.tower.load_state_dict(weights)
        norm = self.tower.layer_norm
        self.own_norm = (norm.weight.detach().numpy().copy(), norm.bias.detach().numpy().copy())
        torch.nn.init.ones_(norm.weight)  # every cut is measured behind the plain norm; scales and shifts come after
        torch.nn.init.zeros_(norm.bias)
        self.extractor = WhisperFeatureExtractor(feature_size=config["num_mel_bins"])
        self._states: list[torch.Tensor] = []
        for layer in self.tower.layers:
            layer.register_forward_hook(lambda _module, _inputs, output: self._states.append(output))

    @torch.no_grad()
    def encode(self, mel: torch.Tensor, frames: Sequence[int]) -> list[list[torch.Tensor]]:
        """[depth - 1][clip] -> (tokens, d)."""
        self._states.clear()
        encoded = QWEN2_AUDIO.encode(self.tower, mel, frames)
        pooled = [self.tower.avg_pooler(state.permute(0, 2, 1)).permute(0, 2, 1) for state in self._states]
        return [
            [state[i, : len(clip)] for i, clip in enumerate(encoded)] for state in map(self.tower.layer_norm, pooled)
        ]

    def pooled(self, corpus: Corpus, clips: Sequence[Clip]) -> list[np.ndarray]:
        """[depth - 1] -> (N, 2d): mean and standard deviation over time of every clip."""
        parts = []
        bar = tqdm(total=len(clips), unit="clip", desc="encode")
        for start in range(0, len(clips), BATCH):
            batch = clips[start : start + BATCH]
            mel, frames = mel_frames(self.extractor, [(corpus.root / clip.audio, clip.id) for clip in batch])
            parts.append([pool([f.numpy() for f in depth]) for depth in self.encode(mel, frames)])
            bar.update(len(batch))
        bar.close()
        return [np.concatenate(depth) for depth in zip(*parts, strict=True)]

    def speech_moments(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """[depth - 1] -> mean (d,) and standard deviation (d,) of every channel over synthesized speech."""
        windows = self.extractor(calibration_speech(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        heard = [self.encode(window[None], [window.shape[-1]]) for window in windows]
        depths = [torch.cat([clips[0] for clips in depth]).numpy() for depth in zip(*heard, strict=True)]
        return [(frames.mean(axis=0), frames.std(axis=0)) for frames in depths]


def votes_of(clips: Sequence[Clip]) -> np.ndarray:
    return np.array([clip.votes for clip in clips])


def interval(values_N: np.ndarray, dev: Sequence[Clip]) -> dict[str, float]:
    found = jackknife_interval(mean_of(values_N), [clip.speaker for clip in dev])
    return {"estimate": found.estimate, "low": found.low, "high": found.high}


def probe_depths(
    size: str, train_x: list[np.ndarray], dev_x: list[np.ndarray], train: Sequence[Clip], dev: Sequence[Clip]
) -> list[dict[str, Any]]:
    """One row a depth: the linear probe's dev scores with intervals clustered by speaker."""
    rows = []
    for depth, (x, y) in enumerate(zip(train_x, dev_x, strict=True), start=1):
        probe = choose_probe(x, votes_of(train), y, votes_of(dev))
        rows.append({"whisper": size, "layers": depth, "penalty": probe.penalty, **scores(probe.predict(y), dev)})
    return rows


def scores(probs_NK: np.ndarray, dev: Sequence[Clip]) -> dict[str, Any]:
    per_clip = {
        "jsd_bits": jsd_bits(normalize_votes(votes_of(dev)), probs_NK),
        "nll_bits": nll_bits(votes_of(dev), probs_NK),
    }
    return {name: interval(values, dev) for name, values in per_clip.items()} | {"per_clip": per_clip}


def add_differences(rows: list[dict[str, Any]], dev: Sequence[Clip]) -> None:
    """Paired differences of every row to the chosen cut (above 0: worse); drops the per-clip values they come from."""
    chosen = next(r["per_clip"] for r in rows if r["whisper"] == "base" and r["layers"] == DEFAULT_LAYERS)
    for row in rows:
        for name, values in row.pop("per_clip").items():
            difference = difference_of(mean_of(values), mean_of(chosen[name]))
            found = jackknife_interval(difference, [clip.speaker for clip in dev])
            row[f"{name}_minus_chosen"] = {"estimate": found.estimate, "low": found.low, "high": found.high}


def train_projector(
    train_x: np.ndarray, train_votes: np.ndarray, dev_x: np.ndarray, width: int, rate: float, seed: int
) -> np.ndarray:
    """Dev predictions of a fresh orthogonal projector and a zero head after two epochs of AdamW, as SFT would train it.

    Linear maps commute with the mean over time, so means stand for the clips. Batches of 8; no penalty.
    """
    random = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(train_x).float(), torch.from_numpy(dev_x).float()
    shares = torch.from_numpy(normalize_votes(train_votes)).float()
    projector, head = torch.nn.Linear(x.shape[1], width), torch.nn.Linear(width, shares.shape[1])
    torch.nn.init.orthogonal_(projector.weight, generator=random)
    for zero in (projector.bias, head.weight, head.bias):
        torch.nn.init.zeros_(zero)
    with torch.no_grad():
        projector.weight /= projector(x).std()  # all norms start from outputs of the same size
    optimizer = torch.optim.AdamW([*projector.parameters(), *head.parameters()], lr=rate, weight_decay=0)
    for _ in range(2):
        for batch in torch.randperm(len(x), generator=random).split(BATCH):
            optimizer.zero_grad()
            logp = torch.log_softmax(head(projector(x[batch])), dim=1)
            (-(shares[batch] * logp).sum(1).mean()).backward()
            optimizer.step()
    with torch.no_grad():
        return torch.softmax(head(projector(y)).double(), dim=1).numpy()


def compare_norms(
    depths: Depths, train_x: np.ndarray, dev_x: np.ndarray, train: Sequence[Clip], dev: Sequence[Clip]
) -> list[dict[str, Any]]:
    """One row a layer norm behind the chosen cut: dev jsd_bits and nll_bits at each learning rate, mean over seeds."""
    mean, std = depths.speech_moments()[DEFAULT_LAYERS - 1]
    width = len(mean)
    affine = {
        "Whisper's own": depths.own_norm,
        "plain (scale 1, shift 0)": (np.ones(width), np.zeros(width)),
        "fitted to synthesized speech": (1 / std, -mean / std),
    }
    rows = []
    for name, (scale, shift) in affine.items():
        x, y = train_x[:, :width] * scale + shift, dev_x[:, :width] * scale + shift
        for rate in RATES:
            probs = [train_projector(x, votes_of(train), y, 576, rate, seed) for seed in range(SEEDS)]
            jsd = np.mean([jsd_bits(normalize_votes(votes_of(dev)), p).mean() for p in probs])
            nll = np.mean([nll_bits(votes_of(dev), p).mean() for p in probs])
            rows.append({"norm": name, "rate": rate, "jsd_bits": float(jsd), "nll_bits": float(nll)})
    return rows


def depth_table(rows: list[dict[str, Any]]) -> str:
    def cell(value: dict[str, float], sign: str = "") -> str:
        return f"{value['estimate']:{sign}.3f} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"

    lines = [
        "| encoder | layers kept | jsd_bits | nll_bits per vote | nll_bits minus the chosen cut's |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        chosen = row["whisper"] == "base" and row["layers"] == DEFAULT_LAYERS
        difference = "chosen" if chosen else cell(row["nll_bits_minus_chosen"], "+")
        lines.append(
            f"| {row['whisper']} | {row['layers']} | {cell(row['jsd_bits'])} | {cell(row['nll_bits'])} | {difference} |"
        )
    return "\n".join(lines)


def norm_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| layer norm after the cut | {' | '.join(f'rate {rate:g}' for rate in RATES)} |",
        "|---" * (len(RATES) + 1) + "|",
    ]
    for name in dict.fromkeys(row["norm"] for row in rows):
        cells = [f"{row['jsd_bits']:.3f} / {row['nll_bits']:.3f}" for row in rows if row["norm"] == name]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="corpus folder made by `equivox prepare crema_d`")
    args = parser.parse_args()
    corpus = read_corpus(args.data)
    clips = split_clips(corpus, fold=0)
    # Clips of like length share a batch: what is padded is encoded too.
    train, dev = (sorted(clips[name], key=lambda clip: clip.duration_s) for name in ("train", "dev"))
    rows: list[dict[str, Any]] = []
    norms: list[dict[str, Any]] = []
    for size in ("base", "tiny.en"):
        depths = Depths(size)
        train_x, dev_x = depths.pooled(corpus, train), depths.pooled(corpus, dev)
        rows += probe_depths(size, train_x, dev_x, train, dev)
        if size == "base":
            norms = compare_norms(depths, train_x[DEFAULT_LAYERS - 1], dev_x[DEFAULT_LAYERS - 1], train, dev)
    add_differences(rows, dev)
    prior = np.repeat(normalize_votes(votes_of(train)).mean(axis=0, keepdims=True), len(dev), axis=0)
    prior_scores = {k: v for k, v in scores(prior, dev).items() if k != "per_clip"}
    counts = {
        f"{name}_{what}": n
        for name, part in (("train", train), ("dev", dev))
        for what, n in (("clips", len(part)), ("speakers", len({clip.speaker for clip in part})))
    }
    RESULTS.parent.mkdir(exist_ok=True)
    result = {"corpus": corpus.info.name, "fold": 0, **counts, "training_prior": prior_scores, "depths": rows}
    RESULTS.write_text(json.dumps(result | {"norms": norms}, indent=1) + "\n")
    replace_section(DOCUMENT, "encoder depth", depth_table(rows))
    replace_section(DOCUMENT, "layer norm", norm_table(norms))
    print(depth_table(rows), norm_table(norms), f"training prior: {prior_scores}", sep="\n\n")


if __name__ == "__main__":
    main()
