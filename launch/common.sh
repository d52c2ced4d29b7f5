# shellcheck shell=bash
# What the launch scripts share: a dry run that prints commands, and sentences for what is wrong.

# Takes --dry-run from the front of the arguments: `if dry_run_asked "$@"; then shift; fi`.
dry_run=
dry_run_asked() {
  [[ ${1:-} == --dry-run ]] && dry_run=1
}

# Prints words as one line that a shell reads back as the same words.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command; in a dry run prints it instead.
run() {
  if [[ $dry_run ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

fail() {
  echo "error: $*" >&2
  exit 2
}

# Stops unless every variable named is set.
need() {
  local variable
  for variable in "$@"; do
    [[ ${!variable:-} ]] || fail "$variable is not set; the head of the script says what it is"
  done
}

# Stops unless the arguments of retrieval_jax.main name a workdir, with $1 in front of it.
need_workdir() {
  local prefix=$1 argument
  shift
  for argument in "$@"; do
    [[ $argument == --workdir="$prefix"* ]] && return
  done
  fail "give --workdir=${prefix}DIR among the arguments of retrieval_jax.main"
}
