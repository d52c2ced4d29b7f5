#!/usr/bin/env bash
# A Kubernetes Indexed Job over nodes with NVIDIA GPUs; kubernetes.md says how to use it.
#
#   export NAME=… IMAGE=…            of the job, lower-case letters, digits and -; its image
#   export NAMESPACE=default
#   export HOSTS=2 GPUS=8            pods, and GPUs of each
#   export SERVICE_ACCOUNT=default   one that may use the bucket of the workdir
#
#   launch/kubernetes.sh [--dry-run] create ARGUMENT …  of retrieval_jax.main
#   launch/kubernetes.sh [--dry-run] follow             pod 0
#   launch/kubernetes.sh [--dry-run] delete             saves first
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"
if dry_run_asked "$@"; then shift; fi

need NAME
namespace=--namespace=${NAMESPACE:-default}
hosts=${HOSTS:-2}
gpus=${GPUS:-8}
[[ $hosts =~ ^[1-9][0-9]*$ && $gpus =~ ^[1-9][0-9]*$ ]] ||
  fail "HOSTS and GPUS must be whole numbers above 0, not '$hosts' and '$gpus'"

# A value as YAML's double-quoted scalar.
yaml() {
  local text=${1//\\/\\\\}
  text=${text//$'\n'/\\n}
  printf '"%s"' "${text//\"/\\\"}"
}

# An argument that Kubernetes hands over as it is: $$( is its way to write $(.
argument() {
  yaml "${1//\$(/\$\$(}"
}

manifest() {
  local arguments='' given
  for given in "$@"; do
    arguments+="$(argument "$given"), "
  done
  if [[ $hosts -gt 1 ]]; then
    arguments+="$(yaml "--config.distributed.coordinator=$NAME-0.$NAME:8476"), "
    arguments+="$(yaml "--config.distributed.processes=$hosts"), "
    # Kubernetes puts in the number of the pod.
    arguments+="$(yaml "--config.distributed.process=\$(JOB_COMPLETION_INDEX)"), "
  fi
  cat <<END
apiVersion: v1
kind: Service
metadata:
  name: $(yaml "$NAME")
spec:
  # Headless: it gives each pod a name that the others find.
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    batch.kubernetes.io/job-name: $(yaml "$NAME")
---
apiVersion: batch/v1
kind: Job
metadata:
  name: $(yaml "$NAME")
spec:
  completionMode: Indexed
  completions: $hosts
  parallelism: $hosts
  # Pods that end otherwise than the rules say: a lost host costs one for each other host.
  backoffLimit: 20
  podFailurePolicy:
    rules:
    - action: FailJob # bad input, which another try won't mend
      onExitCodes: {containerName: main, operator: In, values: [2]}
    - action: Ignore # interrupted and saved: a new pod resumes
      onExitCodes: {containerName: main, operator: In, values: [75]}
    - action: Ignore # evicted or preempted before it could save
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
  template:
    spec:
      subdomain: $(yaml "$NAME")
      restartPolicy: Never
      serviceAccountName: $(yaml "${SERVICE_ACCOUNT:-default}")
      # For the save.
      terminationGracePeriodSeconds: 300
      containers:
      - name: main
        image: $(yaml "$IMAGE")
        args: [${arguments%, }]
        resources:
          limits:
            nvidia.com/gpu: $gpus
        volumeMounts:
        - {name: shm, mountPath: /dev/shm}
      volumes:
      - name: shm # NCCL needs more than a container's 64 MB
        emptyDir: {medium: Memory}
END
}

create() {
  need IMAGE
  need_workdir "" "$@"
  local apply=(kubectl apply "$namespace" --filename=-)
  if [[ $dry_run ]]; then
    echo "$(quoted "${apply[@]}") <<'END'"
    manifest "$@"
    echo END
  else
    manifest "$@" | "${apply[@]}"
  fi
}

case ${1:-} in
  create) create "${@:2}" ;;
  follow)
    run kubectl logs "$namespace" --follow --tail=100 \
      --selector="batch.kubernetes.io/job-name=$NAME,batch.kubernetes.io/job-completion-index=0"
    ;;
  delete) run kubectl delete "$namespace" "job/$NAME" "service/$NAME" ;;
  *) fail "the action must be create, follow or delete, not '${1:-}'" ;;
esac
