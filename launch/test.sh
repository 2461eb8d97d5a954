#!/usr/bin/env bash
# Sets up the environment (once) and checks the whole project: lint, format, types, tests.
#
#   bash launch/test.sh                     everything
#   bash launch/test.sh -m "not slow"       arguments go to pytest; naming tests skips lint and types
#
# Tests that need a GPU or the shared CREMA-D copy skip and say why.
set -euo pipefail
export EQUIVOX_VLLM=1 # the tests of rollouts and engines run the real one
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$EQUIVOX_HOME"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # tiny models: a second thread costs more than it brings
export TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg

if [ $# -eq 0 ]; then
    say "== lint and format"
    ruff check .
    ruff format --check .
    say "== types"
    pyright
fi
say "== tests"
python -m pytest "$@"
say "All passed. To run the main job: bash launch/quickstart.sh"
