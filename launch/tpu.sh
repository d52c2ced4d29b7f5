#!/usr/bin/env bash
# A TPU VM slice from its creation to its end; tpu.md says how to use it.
#
#   export NAME=… PROJECT=… ZONE=…       of the queued resource and of its TPU VM alike
#   export TYPE=v5litepod-16             the slice
#   export RUNTIME=v2-alpha-tpuv5-lite   its software
#   export SPOT=                         1: cheaper, may be preempted
#   export WORKER=0                      the host that `follow` shows
#
#   launch/tpu.sh [--dry-run] create
#   launch/tpu.sh [--dry-run] install         the last commit of this checkout
#   launch/tpu.sh [--dry-run] run ARGUMENT …  of retrieval_jax.main, on every host
#   launch/tpu.sh [--dry-run] follow
#   launch/tpu.sh [--dry-run] resume ARGUMENT …
#   launch/tpu.sh [--dry-run] stop            saves first
#   launch/tpu.sh [--dry-run] delete
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"
if dry_run_asked "$@"; then shift; fi

need NAME PROJECT ZONE
place=(--project="$PROJECT" --zone="$ZONE")
root=$here/..
in_checkout="cd retrieval_jax && launch/host.sh"

create() {
  run gcloud compute tpus queued-resources create "$NAME" "${place[@]}" --node-id="$NAME" \
    --accelerator-type="${TYPE:-v5litepod-16}" --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}" \
    ${SPOT:+--spot}
  wait_until_active
}

state() {
  run gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" \
    --format='value(state.state)'
}

wait_until_active() {
  if [[ $dry_run ]]; then
    state
    return
  fi
  local now
  until now=$(state) && [[ $now == ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDING | SUSPENDED) fail "the slice is $now; tpu.sh delete, then create" ;;
    esac
    echo "the slice is ${now:-unknown}; waiting" >&2
    sleep "${POLL_SECONDS:-30}"
  done
}

on_hosts() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker="$1" --command="$2"
}

install() {
  local archive=$root/build/retrieval_jax.tar.gz
  run mkdir -p "$root/build"
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$NAME:retrieval_jax.tar.gz" "${place[@]}" \
    --worker=all
  # The image's own Python is older than 3.11.
  on_hosts all "mkdir -p retrieval_jax && tar -xzf retrieval_jax.tar.gz -C retrieval_jax \
&& python3 -m pip install --quiet --user uv && .local/bin/uv python install --quiet 3.12 \
&& export PYTHON=\"\$(.local/bin/uv python find 3.12)\" && $in_checkout install tpu"
}

start() {
  on_hosts all "$in_checkout $(quoted run "$@")"
}

delete() {
  run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet
}

# Brings back a slice that is gone; hosts refuse a second run beside one that goes on.
resume() {
  local now
  if [[ $dry_run ]]; then
    state
    now=SUSPENDED # the longest way
  else
    now=$(state || true)
  fi
  case $now in
    ACTIVE) ;;
    '') create && install ;;
    FAILED | SUSPENDING | SUSPENDED)
      delete
      create
      install
      ;;
    *)
      wait_until_active
      install
      ;;
  esac
  start "$@"
}

case ${1:-} in
  create) create ;;
  install) install ;;
  run | resume)
    # A host's own disk goes with the slice, and other hosts can't read it.
    need_workdir gs:// "${@:2}"
    if [[ $1 == run ]]; then start "${@:2}"; else resume "${@:2}"; fi
    ;;
  follow) on_hosts "${WORKER:-0}" "$in_checkout follow" ;;
  stop) on_hosts all "$in_checkout stop" ;;
  delete) delete ;;
  *) fail "the action must be create, install, run, follow, resume, stop or delete, not '${1:-}'" ;;
esac
