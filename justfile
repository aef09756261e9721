# Everything a developer or CI runs. On a fresh clone:
#   python3 -m venv .venv && .venv/bin/pip install -q rust-just && .venv/bin/just setup

set shell := ["bash", "-euo", "pipefail", "-c"]

python := ".venv/bin/python"
trainer_python := ".venv-trainer/bin/python"
compile := ".venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header"

[private]
default:
    @{{ just_executable() }} --list --unsorted

# Install what the control plane and its tests need into .venv, exactly as locked; returns at once when it is there
[group('set up')]
setup:
    #!/usr/bin/env bash
    set -euo pipefail
    [ -x {{ python }} ] || python3 -m venv .venv
    stamp=.venv/dev-lock.sha256
    wanted=$({{ python }} -c 'import hashlib, pathlib, sys; lock = pathlib.Path("requirements/dev.txt").read_bytes(); print(hashlib.sha256(sys.version.encode() + lock).hexdigest())')
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || exit 0
    # uv installs in seconds what takes pip a minute and a half; pip brings uv itself, by the same lock.
    if [ ! -x .venv/bin/uv ]; then
        {{ python }} -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r <(sed -n '/^uv==/,/[^\\]$/p' requirements/dev.txt)
    fi
    .venv/bin/uv pip install --quiet --require-hashes --python {{ python }} -r requirements/dev.txt
    echo "$wanted" > "$stamp"

# Build the trainer's own environment (torch and diffusers) in .venv-trainer; returns at once when it is there
[group('set up')]
setup-trainer: setup
    {{ python }} trainer/setup_env.py

# Install the vendors' own programs, which the provider entries are tested against, in .venv-vendors
[group('set up')]
setup-vendors: setup
    [ -x .venv-vendors/bin/python ] || {{ python }} -m venv --without-pip .venv-vendors
    .venv/bin/uv pip sync --quiet --require-hashes --python .venv-vendors/bin/python requirements/vendors.txt

# Build the environment that compares the trainer with its peers (TRL, datasets) in .venv-bench
[group('set up')]
setup-bench: setup
    {{ python }} trainer/setup_env.py --venv .venv-bench
    .venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/bench.txt
    .venv-bench/bin/python -m pip check --disable-pip-version-check

# Run everything on this machine on one port; options as for `tunewright up`
[group('run')]
up *options: setup
    {{ python }} -m services.cli up {{ options }}

# Train a small model for real, from submit to a downloaded LoRA
[group('run')]
demo *options: setup setup-trainer
    {{ python }} -m deploy.demo {{ options }}

# Format the code
[group('check')]
fmt: setup
    .venv/bin/ruff format
    .venv/bin/ruff check --fix-only --quiet

# Lint, and check the formatting
[group('check')]
lint: setup
    .venv/bin/ruff format --check --quiet
    .venv/bin/ruff check --quiet

# Check the types, of the trainer against its own environment
[group('check')]
types: setup setup-trainer
    .venv/bin/pyright
    .venv/bin/pyright -p trainer

# Check who imports whom
[group('check')]
imports: setup
    .venv/bin/lint-imports

# Everything that needs no server
[group('check')]
check: lint types imports

# Everything: environments, checks, the tests of the parts beside the trainer's, then the whole system
[group('test')]
test: setup setup-trainer setup-vendors check && test-system
    #!/usr/bin/env bash
    set -euo pipefail
    report=$(mktemp)
    {{ just_executable() }} test-trainer > "$report" 2>&1 & trainer=$!
    trap 'kill "$trainer" 2> /dev/null || true; cat "$report"; rm "$report"' EXIT
    {{ just_executable() }} test-parts
    {{ just_executable() }} test-vendors
    wait "$trainer"

# The tests of the parts: units, properties, contracts, and services on real Postgres and NATS; three workers
[group('test')]
test-parts *options: setup
    {{ python }} -m pytest tests --ignore=tests/trainer --ignore=tests/vendors --ignore=tests/acceptance -n 3 --dist loadfile -q {{ options }}

# The whole system as a person runs it, with real training; two workers
[group('test')]
test-system *options: setup setup-trainer setup-vendors
    {{ python }} -m pytest tests/acceptance -n 2 --dist loadfile -q {{ options }}

# The provider entries under the vendors' own programs, on loopback; two workers
[group('test')]
test-vendors *options: setup setup-trainer setup-vendors
    {{ python }} -m pytest tests/vendors -n 2 --dist loadfile -q {{ options }}

# The trainer's own tests, in its environment
[group('test')]
test-trainer *options: setup-trainer
    {{ trainer_python }} -m pytest -c tests/trainer/pytest.ini tests/trainer -q -m "not slow" {{ options }}

# The trainer's long tests: every family learns for longer, and what else is too slow for each change
[group('test')]
learn *options: setup-trainer
    {{ trainer_python }} -m pytest -c tests/trainer/pytest.ini tests/trainer -q -m slow {{ options }}

# Faults at every step of the real system: 200 seeds; --seeds N, or --seed S to repeat one (docs/testing.md)
[group('test')]
fault *options: setup
    {{ python }} -m tests.fault {{ options }}

# Faults of providers: 2 000 seeds over every vendor's simulator; --seeds N, --provider NAME, or --seed S to repeat one
[group('test')]
fault-providers *options: setup
    {{ python }} -m tests.provider_faults --seeds 2000 {{ options }}

# The named windows (docs/testing.md), each repeated often: NATS killed 100 times, Postgres and a rebuild 10 times
[group('test')]
windows *options: setup
    FAULT_NATS_RESTARTS=100 FAULT_POSTGRES_KILLS=10 FAULT_REBUILD_KILLS=10 {{ python }} -m pytest tests/fault -k windows -q {{ options }}

# Take each guard out of a copy of the last commit and show which tests miss it; --only NAME for one
[group('test')]
broken *options: setup
    {{ python }} -m tests.fault.broken {{ options }}

# The tests that start no server
[group('test')]
test-unit *options: setup
    {{ python }} -m pytest tests/unit tests/property {{ options }}

# What-if over a generated month of 10 000 jobs: every decision reproduced, with figures
[group('test')]
whatif-month *options: setup
    WHATIF_MONTH_JOBS=10000 {{ python }} -m pytest tests/integration/scheduler/test_whatif_month.py -k "unchanged or other" -q -s {{ options }}

# vLLM for real: build its environment (3.5 GB), then hold our glue and its simulator against it; minutes
[group('test')]
serve-real *options: setup
    {{ python }} -m tests.support.real_vllm
    REAL_VLLM=1 {{ python }} -m pytest tests/contract/test_vllm_routes.py -q {{ options }}

# Thousands of seeds of the simulation, all services in one process on a virtual clock; --seed N shows one
[group('test')]
sim *options: setup
    {{ python }} -m tests.sim {{ options }}

# Measure how fast everything is, beside what the machine gives: all, or the benchmarks named (a to f); --write keeps it
[group('test')]
bench *options: setup
    {{ python }} -m tests.bench {{ options }}

# Measure our training beside diffusers' scripts (--diffusers-examples DIR) and TRL; --write keeps it, --device cuda
[group('test')]
bench-trainer *options: setup-bench
    {{ python }} -m tests.bench.trainer {{ options }}

# Build and try the containers
[group('test')]
compose-smoke *options: setup
    {{ python }} deploy/docker/smoke.py {{ options }}

# Lock the control plane's, the tests' and the vendors' dependencies anew, with hashes and without addresses
[group('maintain')]
lock: setup
    {{ compile }} requirements/control-plane.in -o requirements/control-plane.txt
    {{ compile }} -c requirements/control-plane.txt requirements/dev.in -o requirements/dev.txt
    {{ compile }} requirements/vendors.in -o requirements/vendors.txt
    {{ compile }} -c requirements/vendors.txt deploy/runpod/requirements.in -o deploy/runpod/requirements.txt
    {{ compile }} --no-deps -c trainer/requirements/trainer.txt requirements/bench.in -o requirements/bench.txt

# Remove caches and what the demo made; environments and data directories stay
[group('maintain')]
clean:
    rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache .demo
    find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
