#!/usr/bin/env bash
# Runs a command again for as long as it exits with 75, "interrupted and saved, resume me".
#
#   launch/resume.sh COMMAND [ARGUMENT …]
#
# SIGTERM or SIGINT to this script is a wish to stop: the command gets SIGTERM, and is not run again.
# The exit code is the command's last one.
set -uo pipefail

child=
stopping=
stop() {
  stopping=1
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

while :; do
  "$@" &
  child=$!
  # A wish that came before the command had a number.
  [[ -z $stopping ]] || kill -TERM "$child" 2>/dev/null
  code=0
  wait "$child" || code=$?
  # A signal ends the wait before the command does.
  while [[ $code -gt 128 && $stopping ]] && kill -0 "$child" 2>/dev/null; do
    code=0
    wait "$child" || code=$?
  done
  [[ $code -eq 75 && ! $stopping ]] || exit "$code"
  echo "exit code 75: interrupted and saved, resuming" >&2
done
