#!/usr/bin/env bash
# Runs a command, and again whenever it ends with an error; ends with it when it ends well.
#
#     keep.sh ray start --block --address=HEAD:6379
#
# A host that was cut off for longer than the head waits is taken for dead. When the link is back
# its raylet ends with an error, and Ray starts no other. After a drain (idle, spot notice) the
# raylet ends well and `ray start --block` waits on: the host does not come back.
#
# KEEP_PID=FILE: one a file; who holds it is ended first, so that a start command can be repeated.
# KEEP_SECONDS: wait before the next start (5). A signal ends the command, which may take its time.
set -u

if [[ -n ${KEEP_PID:-} ]]; then
    if [[ -s $KEEP_PID ]] && read -r holder < "$KEEP_PID" && grep -qs keep.sh "/proc/$holder/cmdline"; then
        kill "$holder"
        while grep -qs keep.sh "/proc/$holder/cmdline"; do sleep 0.1; done
    fi
    echo $$ > "$KEEP_PID"
fi

running=
end() {
    trap '' TERM INT
    kill -TERM "$running" 2> /dev/null
    wait "$running"
    exit 143
}
trap end TERM INT

while true; do
    "$@" &
    running=$!
    wait "$running" && exit 0
    echo "keep.sh: $1 ended with code $?, starting it again in ${KEEP_SECONDS:-5} s" >&2
    sleep "${KEEP_SECONDS:-5}" &
    running=$!
    wait "$running"
done
