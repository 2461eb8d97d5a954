"""Arguments shared by the training commands, and the one way they are read: YAML plus command line, both checked."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from trl import TrlParser

from data_builders.folds import speaker_part
from reasoning.errors import ConfigError
from reasoning.prompts import LEVELS


@dataclass
class DataArguments:
    """What is trained on."""

    data: str = field(default="", metadata={"help": "Corpus folder written by `equivox prepare`."})
    fold: int = field(default=0, metadata={"help": "Which fold's speakers are held out for test."})
    folds: int = field(default=5, metadata={"help": "How many folds the corpus is cut into."})
    limit: int = field(default=0, metadata={"help": "Train on the first so many clips only; 0 is all of them."})
    speakers: str | None = field(
        default=None,
        metadata={"help": "Part of the training speakers, FROM:TO, such as 0:0.7, to leave the others to preferences."},
    )
    level: str = field(default="no_think", metadata={"help": f"Prompt level: {', '.join(LEVELS)}."})
    memory_gib: float = field(
        default=8.0, metadata={"help": "Memory for encoded audio, in GiB; clips beyond it are encoded again."}
    )

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("is missing", field="data", cure="--data FOLDER, as `equivox prepare` wrote it")
        if self.level not in LEVELS:
            raise ConfigError(f"is {self.level!r}, expected one of {', '.join(LEVELS)}", field="level")
        if not 0 <= self.fold < self.folds:
            raise ConfigError(f"is {self.fold}, expected 0 to {self.folds - 1}", field="fold")
        if not self.memory_gib > 0:
            raise ConfigError(f"is {self.memory_gib}, expected more than 0", field="memory_gib")
        speaker_part(self.speakers)


@dataclass
class ModelArguments:
    """What is trained."""

    model_name_or_path: str = field(
        default="models/seed", metadata={"help": "Folder of a checkpoint (docs/seed_model.md: which)."}
    )
    adapter: str | None = field(default=None, metadata={"help": "Folder of an adapter to train further."})
    dtype: str = field(default="float32", metadata={"help": "float32 or bfloat16."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa or flash_attention_2; transformers' own choice by default."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale; the update is multiplied by alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    lora_target_modules: str | None = field(
        default=None, metadata={"help": "Pattern of module names to adapt; the family's own by default."}
    )
    train_projector: bool = field(
        default=False,
        metadata={
            "help": "Train the projector too. SFT of the embedded model needs it: its own is fresh. DPO and GRPO "
            "forget less without it (docs/train.md)."
        },
    )

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"is {self.dtype!r}, expected float32 or bfloat16", field="dtype")
        if self.lora_r <= 0:
            raise ConfigError(f"is {self.lora_r}, expected more than 0", field="lora_r")


_CHECKED = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "str | None": (str, type(None))}


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, cure=f"{self.prog} --help lists the options")


def parse(kinds: tuple[type, ...], argv: list[str] | None, command: str, doc: str | None) -> tuple[Any, ...]:
    """Instances of the dataclasses `kinds` from `--config FILE.yaml` and the options after it, which win.

    doc: of the command's module; --help shows what stands below its first line, which is the command.
    Raises ConfigError naming the key: unknown (with the nearest known one), of a wrong type, or out of range.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # TrlParser does not recognise the equals form and would take the file's name for an unknown option.
    arguments = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    _check_yaml(kinds, arguments)
    parser = _Parser(cast(Any, kinds), prog=command, description=str(doc).partition("\n\n")[2])
    _check_options(parser, arguments)
    try:
        return parser.parse_args_and_config(arguments)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(error).split("\n")[0], cure=f"{command} --help lists the options") from None


def _check_options(parser: _Parser, arguments: list[str]) -> None:
    """Raise ConfigError on an unknown option before any value is judged: a misspelt --config would hide behind them."""
    known = [option for action in parser._actions for option in action.option_strings] + ["--config"]
    for option in (a.split("=", 1)[0] for a in arguments if a.startswith("--")):
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            cure = f"did you mean {near[0]}?" if near else f"{parser.prog} --help lists the options"
            raise ConfigError("is not a known option", field=option, cure=cure)


def _check_yaml(kinds: tuple[type, ...], arguments: list[str]) -> None:
    """Raise ConfigError on a file, key or value that TrlParser would take wrongly or explain badly."""
    if "--config" not in arguments:
        return
    at = arguments.index("--config")
    path = Path(arguments[at + 1]) if at + 1 < len(arguments) else None
    if path is None or not path.is_file():
        raise ConfigError(f"no file {path}", field="--config", cure="name one of launch/configs/*.yaml")
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {str(error).splitlines()[0]}", row=str(path)) from None
    if not isinstance(config, dict):
        raise ConfigError("holds no `key: value` lines", row=str(path))
    known = {f.name: f for kind in kinds for f in fields(kind)} | {"env": None}
    for key, value in config.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            cure = f"did you mean {near[0]}?" if near else "remove it"
            raise ConfigError("is not a known key", row=str(path), field=str(key), cure=cure)
        kind = getattr(known[key], "type", "")  # a string at first; TrlParser leaves the class itself there
        expected = kind.__name__ if isinstance(kind, type) else str(kind)
        if expected in _CHECKED and not _fits(value, expected):
            raise ConfigError(f"is {value!r}, expected {expected}", row=str(path), field=key)


def _fits(value: Any, expected: str) -> bool:
    if isinstance(value, bool):
        return expected == "bool"
    # 2e-4 without a dot is a string in YAML 1.1; argparse turns it into the number that was meant.
    if isinstance(value, str) and expected in ("int", "float"):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, _CHECKED[expected])
