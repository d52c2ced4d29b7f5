#!/usr/bin/env bash
# A Slurm job over nodes with GPUs, one process a GPU; slurm.md says how to use it. From the checkout:
#
#   sbatch [--nodes=… and other options] launch/slurm.sh ARGUMENT …  of retrieval_jax.main
#   launch/slurm.sh --dry-run ARGUMENT …
#
#SBATCH --job-name=retrieval_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -euo pipefail
# Slurm runs a copy of this file from elsewhere.
cd "${SLURM_SUBMIT_DIR:-.}"
[[ -e launch/common.sh ]] || { echo "error: submit it from the checkout" >&2 && exit 2; }
# shellcheck source=common.sh
. launch/common.sh
if dry_run_asked "$@"; then shift; fi
need_workdir "" "$@"

code=0
# A process that has saved and left must not kill those that still save.
run srun --kill-on-bad-exit=0 .venv/bin/python -m retrieval_jax.main "$@" || code=$?
# Preemption requeues the job by itself; the end of its time, which --signal announces, does not.
if [[ $code -eq 75 || $dry_run ]]; then
  run scontrol requeue "${SLURM_JOB_ID:-the job}"
fi
exit "$code"
