#!/usr/bin/env bash
# What a RunPod container starts. A serverless worker takes jobs from its queue; a pod runs the one job that its
# environment describes, reports, and ends itself. Arguments go to the handler (such as --rp_serve_api).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
volume=${TUNEWRIGHT_VOLUME:-/runpod-volume}
export TRAINER_PYTHON=${TRAINER_PYTHON:-$root/.venv-trainer/bin/python}
# The SDK's own default, DEBUG, writes every result with its signed URLs into the log.
export RUNPOD_LOG_LEVEL=${RUNPOD_LOG_LEVEL:-INFO}

# Base models and runs outlive the worker on a network volume: serverless mounts it at /runpod-volume.
if [ -d "$volume" ]; then
    export HF_HOME=${HF_HOME:-$volume/huggingface}
    export TUNEWRIGHT_WORK_DIR=${TUNEWRIGHT_WORK_DIR:-$volume/tunewright}
fi
if command -v nvidia-smi > /dev/null; then
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
fi

has_job() {
    local name suffix variable
    for name in RUN_SPEC INPUT; do
        for suffix in "" _BASE64 _FILE; do
            variable=TUNEWRIGHT_$name$suffix
            [ -z "${!variable:-}" ] || return 0
        done
    done
    return 1
}

cd "$root"
if has_job; then
    export TUNEWRIGHT_AT_END=${TUNEWRIGHT_AT_END:-terminate-runpod-pod}
    exec "$TRAINER_PYTHON" -m trainer.entry.container
fi
exec "$root/.venv-runpod/bin/python" "$root/deploy/runpod/handler.py" "$@"
