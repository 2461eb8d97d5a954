"""equivox COMMAND [options]: the console command, a thin dispatcher to launch/COMMAND.py.

Importing this file is light: a command's own file is imported when it is called.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import NoReturn

from reasoning.errors import ConfigError, EquivoxError


@dataclass(frozen=True)
class Command:
    does: str
    example: str
    distributed: bool = False


COMMANDS = {
    "prepare": Command(
        "read a corpus into clips and votes", "equivox prepare crema_d --root CREMA-D --out data/crema_d"
    ),
    "seed": Command("assemble the small embedded audio-language model", "equivox seed --out models/seed"),
    "sft": Command(
        "fine-tune on answers and vote distributions (LoRA)",
        "equivox sft --config launch/configs/sft.yaml --data data/crema_d --output_dir runs/mine/sft",
        distributed=True,
    ),
    "dpo": Command(
        "prefer the better of two answers, by pairs of `prepare preferences`",
        "equivox dpo --config launch/configs/dpo.yaml --data data/crema_d --adapter runs/mine/sft \\\n"
        "                  --pairs data/pairs.parquet --output_dir runs/mine/dpo",
        distributed=True,
    ),
    "preflight": Command(
        "check a GRPO run without training: memory, and rollouts held to the trainer",
        "equivox preflight --config launch/configs/grpo.yaml --data data/crema_d --adapter runs/mine/sft \\\n"
        "                  --output_dir runs/mine/grpo",
    ),
    "grpo": Command(
        "reinforce sampled answers that come close to the votes",
        "equivox grpo --config launch/configs/grpo.yaml --data data/crema_d --adapter runs/mine/sft \\\n"
        "                  --output_dir runs/mine/grpo",
        distributed=True,
    ),
    "watch": Command("show a training run while it goes on", "equivox watch runs/mine/grpo"),
    "evaluate": Command(
        "run a model on held-out speakers and score it beside the baselines",
        "equivox evaluate --model models/seed --adapter runs/mine/grpo --data data/crema_d --name grpo \\\n"
        "                  --out runs/mine/eval_grpo",
    ),
    "serve": Command(
        "serve a trained model through vLLM, for `evaluate --engine server`",
        "equivox serve --model models/seed --adapter runs/mine/grpo",
    ),
    "score": Command(
        "pool folds and systems, named in the order of training, into one report",
        "equivox score runs/mine/eval_sft runs/mine/eval_grpo --out runs/mine/report",
    ),
    "compare": Command(
        "put stages of training, in their order, side by side over seeds: which help, which only sharpen",
        "equivox compare runs/mine/eval_sft runs/mine/eval_grpo --data data/crema_d --out runs/mine/comparison",
    ),
    "pack": Command(
        "put evaluations into one small file without votes, to publish or to carry",
        "equivox pack runs/mine/eval_sft runs/mine/eval_grpo --out results.parquet",
    ),
    "unpack": Command(
        "make evaluations of such a file again, with the corpus's votes",
        "equivox unpack results.parquet --data data/crema_d --out runs/theirs",
    ),
    "diagnose": Command(
        "swap traces and sounds between clips: does the trace alone fix the answer?",
        "equivox diagnose --model models/seed --adapter runs/mine/think --data data/crema_d --traces traces.parquet",
    ),
    "predict": Command(
        "print one file's distribution and answer",
        "equivox predict clip.wav --model models/seed --adapter runs/mine/grpo",
    ),
}


def usage() -> str:
    """The text of `equivox --help`: every command in the order of use, with one example each."""
    lines = [
        "Votes in, a trained and honestly scored speech model out.",
        "",
        "usage: equivox COMMAND [options]     (equivox COMMAND --help lists a command's options)",
        "",
    ]
    for name, command in COMMANDS.items():
        lines += [f"  {name:<10}{command.does}", f"            $ {command.example}"]
    lines += [
        "",
        "sft, dpo and grpo run in this process. On several GPUs or machines, add accelerate's own --config_file:",
        "            $ equivox sft --config_file accelerate_configs/ddp.yaml --config launch/configs/sft.yaml ...",
        "which is `accelerate launch --config_file accelerate_configs/ddp.yaml -m launch.sft ...` (docs/scale.md).",
        "",
        "The whole of it in one go: bash launch/quickstart.sh",
    ]
    return "\n".join(lines)


def split_launcher(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """accelerate's --config_file and what is left for the command itself."""
    left = list(arguments)
    for i, argument in enumerate(left):
        if argument == "--config_file":
            if i + 1 == len(left):
                raise ConfigError(
                    "no file is named", field="--config_file", cure="name one of accelerate_configs/*.yaml"
                )
            return left[i + 1], left[:i] + left[i + 2 :]
        if argument.startswith("--config_file="):
            return argument.partition("=")[2], left[:i] + left[i + 1 :]
    return None, left


def dispatch(argv: list[str] | None = None) -> int:
    """Run the command that argv names and return its exit status; raise EquivoxError on an unknown one."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"equivox {version('equivox')}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        cure = f"equivox {near[0]}" if near else "equivox --help lists the commands"
        raise ConfigError(f"there is no command {name!r}", cure=cure)
    if COMMANDS[name].distributed:
        config_file, rest = split_launcher(rest)
        if config_file is not None:
            accelerate_launch(config_file, name, rest)
    return importlib.import_module(f"launch.{name}").main(rest)


def accelerate_launch(config_file: str, name: str, rest: list[str]) -> NoReturn:
    """Become `accelerate launch --config_file FILE -m launch.NAME ...`."""
    if not os.path.isfile(config_file):
        raise ConfigError(f"no file {config_file}", field="--config_file", cure="name one of accelerate_configs/*.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", config_file]
    os.execv(sys.executable, [*launcher, "-m", f"launch.{name}", *rest])


def run(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> NoReturn:
    """Call main and leave the process with its status; an EquivoxError is one clear line on stderr and status 2.

    Every command file ends with `if __name__ == "__main__": run(main)`.
    """
    try:
        status = main(argv)
        leave_ranks()
    except EquivoxError as error:
        print(f"equivox: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("equivox: stopped; the same command goes on from what is finished", file=sys.stderr)
        status = 130
    sys.exit(status)


def leave_ranks() -> None:
    """Leave the group of ranks, where there is one: gloo's threads abort about one rank in twenty that exits inside it.

    The launcher would call such a run failed, and the other machines' launchers wait five minutes for it.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def main() -> NoReturn:
    run(dispatch)


if __name__ == "__main__":
    main()
