# shellcheck shell=bash
# Sourced by every scene: what it prints is kept for the tests.
set -euo pipefail
export LC_ALL=C

mkdir -p /root/seen
exec >"/root/seen/${1-${0##*/}}"

property() { systemctl show --property "$1" --value besom.service; }

# count DIRECTORY: how many files there are in it.
count() { find "$1" -type f | wc -l; }

# say KEY COMMAND...: a line with the key and what the command prints.
say() { printf '%s=%s\n' "$1" "$("${@:2}" | tr '\n' ' ' | sed 's/ $//')"; }

# until_true COMMAND...: wait for it, for a minute at most.
until_true() {
    local end=$((SECONDS + 60))
    until "$@"; do
        ((SECONDS < end)) || { printf '%s: waited in vain for: %s\n' "$0" "$*" >&2; exit 1; }
        sleep 0.1
    done
}

# fill DIRECTORY N: files of this age and that, the oldest with the highest number.
fill() {
    local i
    mkdir -p "$1"
    for ((i = 1; i <= $2; i++)); do
        touch -d "$i hours ago" "$1/$i"
    done
}
