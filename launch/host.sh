#!/usr/bin/env bash
# One host with any number of GPUs, or each host of a TPU slice; gpu.md says how to use it.
#
#   launch/host.sh [--dry-run] install gpu|tpu      PYTHON=python3: a Python ≥ 3.11
#   launch/host.sh [--dry-run] run ARGUMENT …       of retrieval_jax.main
#   launch/host.sh [--dry-run] follow
#   launch/host.sh [--dry-run] stop                 saves first
#
# The run goes on without the terminal, is resumed when it exits with 75, and leaves its output in
# runs/launch.log. A second run beside it is refused.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=common.sh
. launch/common.sh
if dry_run_asked "$@"; then shift; fi
action=${1:-}
[[ $# -eq 0 ]] || shift

install() {
  [[ ${1:-} == gpu || ${1:-} == tpu ]] || fail "install gpu or tpu, not '${1:-}'"
  run "${PYTHON:-python3}" -m venv .venv
  run .venv/bin/python -m pip install --quiet -c constraints.txt ".[$1,gcs]"
}

start() {
  need_workdir "" "$@"
  local command=(launch/resume.sh .venv/bin/python -m retrieval_jax.main "$@")
  if [[ $dry_run ]]; then
    run nohup "${command[@]}"
    return
  fi
  mkdir -p runs
  # The run inherits descriptor 9, and with it the lock, until its last process ends.
  exec 9>runs/launch.lock
  flock --nonblock 9 || fail "a run goes on here already: host.sh follow shows it, stop ends it"
  nohup "${command[@]}" >>runs/launch.log 2>&1 </dev/null &
  echo $! >runs/launch.pid
}

stop() {
  if [[ $dry_run ]]; then
    run kill -TERM "the process in runs/launch.pid"
  else
    kill -TERM "$(<runs/launch.pid)"
  fi
}

case $action in
  install) install "$@" ;;
  run) start "$@" ;;
  follow) run tail -n 100 -F runs/launch.log ;;
  stop) stop ;;
  *) fail "the action must be install, run, follow or stop, not '$action'" ;;
esac
