# shellcheck shell=bash
# Sourced by the scripts that are installed on hosts, from beside them: how they read what they are given.

# What the usage text of each says of what they share.
explain_shared() {
    cat <<HELP

FILE of --env is read as data and never run: lines KEY=VALUE, with or without "export" before them, blank
lines and comments. A value is bare or quoted as a whole, in single or double quotes, and taken as it
stands. Only the keys BESOM_... are used, the others are left to whom they are for; BESOM_COMMAND is refused.

The command besom is the one that BESOM_COMMAND names (an absolute path), else that of the checkout that
this script is run from, else the one in $PATH.
HELP
}

# What is wrong with the call ends in one sentence and this status, as with besom itself.
usage_error() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 2; }

# value_of OPTION [WORD]: sets VALUE to the word that belongs to OPTION.
value_of() {
    VALUE=${2-}
    # A file whose name begins with a dash can be given as ./-name.
    [[ $VALUE && $VALUE != -* ]] || usage_error "a value for $1 is missing; see ${0##*/} --help"
}

# readable WHAT FILE
readable() {
    [[ -e $2 ]] || usage_error "$1 $2 does not exist"
    [[ ! -d $2 ]] || usage_error "$1 $2 is a directory, not a file"
    # Nobody may be at its other end; a shell's own <(...) is below /dev.
    [[ ! -S $2 && (! -p $2 || $2 == /dev/*) ]] || usage_error "$1 $2 is a FIFO or socket, not a file"
    [[ -r $2 ]] || usage_error "$1 $2 cannot be read by $(id -un)"
}

# read_environment FILE: exports the variables BESOM_* of FILE, which is read as data and never run.
read_environment() {
    local LC_ALL=C file=$1 fd text='' line number=0 key value
    readable 'the environment file' "$file"
    exec {fd}<"$file"
    # Read once, whole: it may be a pipe. Only a NUL ends such a reading before the end of the file does.
    if IFS= read -r -d '' -u "$fd" text; then
        line=${text//[!$'\n']/}
        usage_error "$file:$((${#line} + 1)): a NUL byte; this is not a text file"
    fi
    exec {fd}<&-
    text=${text#$'\xef\xbb\xbf'}
    while IFS= read -r line; do
        number=$((number + 1))
        line=${line%$'\r'}
        line=${line#"${line%%[![:blank:]]*}"}
        [[ $line && $line != '#'* ]] || continue
        [[ $line =~ ^(export[[:blank:]]+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] ||
            usage_error "$file:$number: not a line of the form KEY=VALUE"
        key=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
        [[ $key == BESOM_* ]] || continue
        # Which program runs is for the caller to say, not for a file of data.
        [[ $key != BESOM_COMMAND ]] ||
            usage_error "$file:$number: BESOM_COMMAND counts in the environment only, not in a file"
        unquote "$value" "$file:$number: the value of $key"
        export "$key=$VALUE"
    done < <(printf '%s\n' "$text")
}

# unquote TEXT WHAT: sets VALUE to what TEXT, a value as it is written in the file, stands for.
unquote() {
    local single="^'([^']*)'[[:blank:]]*(#.*)?$" double='^"([^"]*)"[[:blank:]]*(#.*)?$'
    VALUE=$1
    if [[ $VALUE =~ $single || $VALUE =~ $double ]]; then
        VALUE=${BASH_REMATCH[1]}
        return
    fi
    # As in a shell, a # within a word begins no comment.
    [[ $VALUE != '#'* ]] || VALUE=
    VALUE=${VALUE%%[[:blank:]]#*}
    VALUE=${VALUE%"${VALUE##*[![:blank:]]}"}
    [[ $VALUE != *[\'\"]* ]] || usage_error "$2 is not quoted as a whole"
}

# find_besom DIRECTORY: sets BESOM to the command to run, for scripts that lie in DIRECTORY.
find_besom() {
    BESOM=${BESOM_COMMAND-}
    if [[ $BESOM ]]; then
        [[ $BESOM == /* ]] || usage_error "BESOM_COMMAND: $BESOM is not an absolute path"
        [[ -f $BESOM && -x $BESOM ]] || usage_error "BESOM_COMMAND: $BESOM is not a program that can be run"
        return
    fi
    # A checkout's own.
    BESOM=${1%/*}/.venv/bin/besom
    [[ -x $BESOM ]] || BESOM=$(command -v besom) ||
        usage_error "no command besom in $PATH; install it, or name it with BESOM_COMMAND"
}
