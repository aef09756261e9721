# What a Lambda machine does at its first boot, as root: it brings the trainer, runs one job, and tells the gateway if
# that could not be done. outbound/vendors/lambda_boot.py puts the assignments of TW_... before these lines.
# The machine stays until provider-bridge terminates it: one that is merely off costs as much (docs/decisions/0024).
set -uo pipefail
umask 077
root=${TW_ROOT:-/opt/tunewright}
run=$root/run
work=$root/work
rm -rf "$run" && mkdir -p "$run" "$work"

# Token and spec stand in this script, of which cloud-init keeps copies. From here on they are in two private files.
printf '%s' "$TW_TOKEN" > "$run/token"
printf 'Authorization: Bearer %s\n' "$TW_TOKEN" > "$run/header"
printf '%s' "$TW_SPEC_BASE64" | base64 -d > "$run/spec.json"
cloud=${TW_CLOUD_DIR:-/var/lib/cloud}
rm -f "$cloud"/instance*/user-data.txt* "$cloud"/instances/*/user-data.txt* \
      "$cloud"/instance*/scripts/part-* "$cloud"/instances/*/scripts/part-*
unset TW_TOKEN TW_SPEC_BASE64

exec >> "$root/boot.log" 2>&1

tries() {
    local left=${TW_TRIES:-5}
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        sleep "${TW_PAUSE_S:-15}"
    done
}

fetch_code() {
    rm -rf "$root/code"
    git clone --quiet "$TW_GIT_URL" "$root/code" && git -C "$root/code" checkout --quiet "$TW_GIT_REVISION"
}

bring() {
    if [ -n "$TW_IMAGE" ]; then
        tries docker pull --quiet "$TW_IMAGE"
    else
        tries fetch_code && tries python3 "$root/code/trainer/setup_env.py"
    fi
}

# The entry's settings: in a container the two folders are mounted at the same paths.
settings=(
    "TUNEWRIGHT_RUN_SPEC_FILE=$run/spec.json"
    "TUNEWRIGHT_ATTEMPT_TOKEN_FILE=$run/token"
    "TUNEWRIGHT_GATEWAY_URL=$TW_GATEWAY_URL"
    "TUNEWRIGHT_MAX_RUN_S=$TW_MAX_RUN_S"
    "TUNEWRIGHT_WORK_DIR=$work"
    "TUNEWRIGHT_AT_END=exit"
    "HF_HOME=$root/huggingface"
)

run_job() {
    if [ -n "$TW_IMAGE" ]; then
        local options=() each
        for each in "${settings[@]}"; do options+=(--env "$each"); done
        docker run --rm --user 0 --gpus all --ipc host --stop-timeout 90 --volume "$root:$root" "${options[@]}" \
            --entrypoint /opt/tunewright/.venv-trainer/bin/python "$TW_IMAGE" -m trainer.entry.container
    else
        (cd "$root/code" && env "${settings[@]}" .venv-trainer/bin/python -m trainer.entry.container)
    fi
}

# A trainer that has begun tells everything itself; one that never did cannot.
tell_failure() {
    [ -n "$TW_GATEWAY_URL" ] || return 0
    [ -z "$(find "$work" -name events.jsonl -size +0c -print -quit)" ] || return 0
    local message=$1 now
    now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    printf '{"v":1,"job":"%s","attempt":"%s","seq":1,"ts":"%s","type":"failed","data":{"kind":"%s","message":"%s","advice":"%s"}}\n' \
        "$TW_JOB_ID" "$TW_ATTEMPT_ID" "$now" unreachable "$message" \
        "See $root/boot.log on the machine; check image, git address and revision in the settings of lambda." \
        > "$run/failed.jsonl"
    tries curl --silent --show-error --fail --max-time 60 --header "@$run/header" \
        --header 'Content-Type: application/x-ndjson' --data-binary "@$run/failed.jsonl" \
        --output /dev/null "$TW_GATEWAY_URL/api/v1/attempts/$TW_ATTEMPT_ID/events"
}

if bring; then
    run_job
    code=$?
    echo "the run has ended with $code"
    [ "$code" -eq 0 ] || tell_failure "The trainer did not begin on this machine: its entry ended with $code."
else
    code=1
    tell_failure "This machine could not fetch the trainer."
fi
rm -rf "$run"
exit "$code"
