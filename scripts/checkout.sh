# shellcheck shell=bash
# Sourced by the scripts of a checkout: where it is, and where everything it generates goes.

set -euo pipefail
umask 022

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=$TOP/.cache
VENV=$TOP/.venv
# The engine runs wherever AnsiballZ carries it, so it is tested on all of these.
# shellcheck disable=SC2034
ENGINE_PYTHONS=(3.9 3.10 3.11 3.12 3.13)

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
die() { say "$*" >&2; exit 1; }

# find_python VERSION: the path of a Python of that version, from PATH or from pyenv.
find_python() {
    local candidate
    [[ $1 ]] || return
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        # Asked for its own path, a pyenv shim names the real one, or fails where it leads nowhere.
        "$candidate" -c 'import sys; print(sys.executable)' 2>/dev/null && return
    done
    return 1
}

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "root is needed for '$*': run as root, or install sudo"
    fi
}

# From here on, tools that write to a home or cache directory write below .cache.
contain_home() {
    # pip's own settings stay in force: they may name the only index that can be reached.
    local pip_config=${PIP_CONFIG_FILE:-${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf}
    [[ ! -e $pip_config ]] || export PIP_CONFIG_FILE=$pip_config
    export PYENV_ROOT=${PYENV_ROOT:-$HOME/.pyenv}
    export HOME=$CACHE/home XDG_CACHE_HOME=$CACHE/xdg ANSIBLE_HOME=$CACHE/ansible
    export PIP_CACHE_DIR=$CACHE/pip
    unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME
    mkdir -p "$HOME" "$XDG_CACHE_HOME" "$ANSIBLE_HOME"
    PATH=$VENV/bin:$PATH
}

# Containers and images of the test hosts live below .cache as well.
contain_podman() {
    export CONTAINERS_CONF=$TOP/tests/hosts/containers.conf
    export CONTAINERS_STORAGE_CONF=$CACHE/containers/storage.conf
    mkdir -p "$CACHE/containers"
    cat >"$CONTAINERS_STORAGE_CONF" <<EOF
[storage]
driver = "overlay"
graphroot = "$CACHE/containers/storage"
runroot = "$CACHE/containers/run"
EOF
}
