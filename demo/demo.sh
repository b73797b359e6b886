#!/bin/sh
# The whole system at work: a server, two users, real programs, and what each step shows.
set -eu

say() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }
typed() { # COMMAND...: as one would type it; no word here has a single quote in it
    printf '\033[2m$'
    for word; do
        case $word in
            *[!A-Za-z0-9_./:=-]*) printf " '%s'" "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    printf '\033[0m\n'
}
show() { typed "$@" >&2; "$@"; }
expect() { # CODE COMMAND...: runs it and fails the demo on any other exit code
    wanted=$1; shift
    typed "$@" >&2
    code=0; "$@" || code=$?
    [ "$code" = "$wanted" ] || { echo "demo: exit code $code instead of $wanted" >&2; exit 1; }
    printf '  (exit code %s)\n' "$code" >&2
}

place=$(mktemp -d /var/tmp/jobworker-demo-XXXXXX)
chmod 755 "$place"
server=
finish() {
    [ -z "$server" ] || { kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; }
    rm -rf "$place"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Whether the host can enforce something; says so when it cannot, and why.
has() { # CONTROL
    grep -Eq "^$1 +yes" "$place/check" && return
    printf 'left out: no %s here\n' "$1" >&2
    sed -n "/^$1 /,/^[^ ]/{/^    /p;}" "$place/check" >&2
    return 1
}

say "What this host can enforce"
show jobworkerd check >"$place/check" || true # it is 1 when something is missing
cat "$place/check"
! grep '^No job can run here' "$place/check" >/dev/null || { echo "demo: see above how to get what is missing" >&2; exit 1; }

say "A server of our own, with users alice and bob"
state=$place/state
free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
https=127.0.0.1:$(free_port)
show jobworkerd init --dir "$state" --listen "127.0.0.1:$(free_port)" --listen-https "$https" >/dev/null
show jobworkerd user add alice --dir "$state" >/dev/null
show jobworkerd user add bob --dir "$state" >/dev/null
mkfifo "$place/ready"
jobworkerd serve --config "$state/jobworker.toml" >"$place/ready" &
server=$!
read -r ready <"$place/ready" || { echo "demo: the server did not start" >&2; exit 1; }
echo "$ready"
JOBCTL_CONTEXT=$state/clients/alice
export JOBCTL_CONTEXT
show jobctl whoami

say "A program, its output and its exit code"
show jobctl run -- date
expect 7 jobctl run -- sh -c 'echo this goes to stderr >&2; exit 7'

say "A counting loop, followed live from the first byte"
job=$(jobctl start --name counter -- sh -c 'for i in 1 2 3 4 5; do echo "line $i"; sleep 0.3; done')
show jobctl logs "$job"

say "The other door: HTTPS with a token, by curl alone"
if command -v curl >/dev/null; then
    jobs() { curl -sS --cacert "$state/clients/alice/ca.crt" -H "Authorization: Bearer $(cat "$state/clients/alice/token")" "$@"; }
    answer=$(jobs "https://$https/jobs/start" -H 'Content-Type: application/json' -d '{"program": "date", "args": ["-u"]}')
    echo "$answer"
    job=$(echo "$answer" | cut -d '"' -f 4)
    jobs "https://$https/jobs/$job/wait" -o /dev/null
    jobs "https://$https/jobs/$job/output"; echo
    curl -sS --cacert "$state/clients/alice/ca.crt" "https://$https/jobs/$job"; echo "   (without a token)"
fi

say "Half a core: sha1sum may use 0.5 cores, and says how much it got"
if has cpu-limit; then
    job=$(jobctl start --cpu 0.5 --timeout 3s -- sha1sum /dev/zero)
    expect 124 jobctl wait "$job"
    show jobctl status "$job" | grep -E 'OUTCOME|CPU TIME|THROTTLED|DURATION'
fi

say "Disk reads at 4 MiB/s: 8 MiB of direct reads take about two seconds"
big=$place/big
head -c 8388608 /dev/urandom >"$big"
chmod 644 "$big"
! has io-limit || show jobctl run --io-read 4M --io-device "$place" -- dd if="$big" of=/dev/null bs=1M iflag=direct

say "64 MiB of memory: a program that wants more is killed as a whole, and the status says why"
! has memory-limit || expect 137 jobctl run -m 64M -- sh -c 'head -c 256m /dev/zero | tail'

say "Binary output arrives byte for byte"
wanted=$(sha256sum <"$big")
got=$(jobctl run -- cat "$big" | sha256sum)
[ "$wanted" = "$got" ] && echo "same checksum: $got" || { echo "demo: different bytes" >&2; exit 1; }

say "A job with children that ignore SIGTERM, stopped: nothing of it is left"
job=$(jobctl start -- sh -c 'trap "" TERM HUP; setsid sleep 1000 & (sleep 1001 &) ; sleep 1002')
show jobctl stop "$job"
show jobctl status "$job" | grep -E 'STATE|OUTCOME'

say "Bob may not look at alice's job"
expect 125 jobctl -u bob status "$job"

say "The server is killed with a job running; the next one adopts it, and no byte is lost"
job=$(jobctl start -- sh -c 'for i in $(seq 1 20); do echo "number $i"; sleep 0.1; done')
kill -KILL "$server"; wait "$server" 2>/dev/null || true
jobworkerd serve --config "$state/jobworker.toml" >"$place/ready" 2>/dev/null &
server=$!
read -r ready <"$place/ready"
echo "$ready"
[ "$(jobctl logs "$job" | wc -l)" = 20 ] && echo "all 20 lines are there"
show jobctl wait "$job"

say "Everything that alice has run"
show jobctl ps -a

[ "$(id -u)" = 0 ] && stays=/var/lib/jobworker || stays=$HOME/jobworker
cat >&2 <<END

That was all real. For a server that stays:

  .venv/bin/jobworkerd init --dir $stays
  .venv/bin/jobworkerd user add alice --dir $stays
  .venv/bin/jobworkerd serve --config $stays/jobworker.toml &
  .venv/bin/jobctl --context $stays/clients/alice run -- date
END
