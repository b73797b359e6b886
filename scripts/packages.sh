#!/bin/sh
# Sourced by the set-up scripts: installs Debian packages as root, and names them for anyone else.

say() { echo "setup: $*" >&2; }

is_root() { [ "$(id -u)" -eq 0 ]; }

install_packages() { # PACKAGE...
    if ! is_root; then
        say "missing: $*; as root, run: apt-get install $*"
        return 1
    fi
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qq --no-install-recommends "$@" >/dev/null 2>&1 && return
    # The usual reason on a fresh machine: its package lists are absent or stale.
    apt-get update -qq && apt-get install -qq --no-install-recommends "$@" >/dev/null
}

missing_packages() { # reads lines of a command or file and the package that has it; prints the packages to install
    while read -r file package; do
        case $file in
            /*) [ -e "$file" ] ;;
            *) command -v "$file" >/dev/null ;;
        esac || echo "$package"
    done
}
