# The trainer on a CUDA base, beside the control plane's environment: the `local` provider of provider-bridge runs the
# trainer as its child, so the bridge container is this image. The same image serves any provider that takes containers.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE_IMAGE}

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN if ! python3 -c 'import ensurepip' 2>/dev/null; then \
      apt-get update \
   && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv ca-certificates libgomp1 \
   && rm -rf /var/lib/apt/lists/*; \
    fi
WORKDIR /opt/tunewright
COPY requirements/control-plane.txt requirements/control-plane.txt
RUN python3 -m venv .venv \
 && .venv/bin/pip install --no-cache-dir --require-hashes -r requirements/control-plane.txt
COPY trainer/requirements trainer/requirements
COPY trainer/setup_env.py trainer/setup_env.py
RUN PIP_NO_CACHE_DIR=1 python3 trainer/setup_env.py
COPY shared shared
COPY services services
COPY trainer trainer

RUN useradd --system --uid 10001 --home-dir /var/lib/tunewright --create-home tunewright
USER tunewright
ENTRYPOINT ["/opt/tunewright/.venv/bin/python", "-m"]
CMD ["services.provider_bridge"]
