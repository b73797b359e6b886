#!/bin/sh
# Makes .venv ready for every recipe: the system's packages, a Python, the locked requirements, the project itself.
# As root it installs what is missing; as anyone else it names it and goes on where it can.
set -eu
cd "$(dirname "$0")/.."
umask 022                        # jobworkerd gives up root and still reads what is installed here
PATH="$PATH:/usr/sbin:/sbin"     # where mkfs.ext4 is, which a user's PATH need not name

. scripts/packages.sh

is_recent() { # PYTHON
    "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# A Python below /root works for root alone, and jobworkerd would lose it with its privileges.
is_readable_by_all() { # PYTHON
    ! is_root || setpriv --reuid=65534 --regid=65534 --clear-groups "$1" -I -c 'import ssl, sqlite3' 2>/dev/null
}

find_python() { # prints the real path of the best Python 3.11 or later
    for is_good in is_readable_by_all true; do
        for python in /usr/bin/python3 /usr/bin/python3.1[1-9] /usr/local/bin/python3 python3; do
            if is_recent "$python" && "$is_good" "$python"; then
                "$python" -I -c 'import os, sys; print(os.path.realpath(sys.executable))'
                return
            fi
        done
    done
    return 1
}

# What the tests, the demo and the bench run beside Python.
missing=$(missing_packages <<END
gcc                  gcc
/usr/include/stdio.h libc6-dev
bwrap                bubblewrap
strace               strace
openssl              openssl
ps                   procps
unshare              util-linux
stress-ng            stress-ng
capsh                libcap2-bin
mkfs.ext4            e2fsprogs
mkfs.btrfs           btrfs-progs
curl                 curl
wrk                  wrk
END
)
# Left unquoted to become one word a package.
[ -z "$missing" ] || install_packages $missing || say "going on: only the tests and benches that need these will say so"

python=$(find_python) || { install_packages python3 && python=$(find_python); } ||
    { install_packages python3.11 && python=$(find_python); } || { say "no Python 3.11 or later found"; exit 1; }

# Debian keeps this part of the standard library in a package of its own.
"$python" -I -c 'import ensurepip' 2>/dev/null || install_packages "$(basename "$python")-venv"

if [ ! -x .venv/bin/pip ] || [ "$(readlink -f .venv/bin/python)" != "$python" ]; then
    say "making .venv with $python"
    "$python" -m venv --clear .venv
fi

# Exactly the locked files, none of which may run code of its own while it is installed.
pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore .venv/bin/python -m pip --quiet install --no-deps"
say "installing the locked requirements"
$pip --require-hashes --only-binary=:all: --requirement requirements.txt
$pip --no-build-isolation --editable .

# sslyze pins an older cryptography than the server needs, and comes as source: an environment of its own, for one test.
scanner=.venv/sslyze
if ! cmp -s requirements-sslyze.txt "$scanner/installed"; then
    say "installing sslyze"
    if "$python" -m venv --clear "$scanner" && env PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
        "$scanner/bin/python" -m pip --quiet install --no-deps --require-hashes --requirement requirements-sslyze.txt; then
        cp requirements-sslyze.txt "$scanner/installed"
    else
        say "going on without sslyze: only the test that needs it will say so"
    fi
fi
