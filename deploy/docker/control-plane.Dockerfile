# The control plane: gateway, scheduler, storage, billing, relay and migrations. No torch.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/tunewright
COPY requirements/control-plane.txt requirements/control-plane.txt
RUN python3 -m venv .venv \
 && .venv/bin/pip install --no-cache-dir --require-hashes -r requirements/control-plane.txt
COPY shared shared
COPY services services
COPY deploy/__init__.py deploy/__init__.py
COPY deploy/embedded deploy/embedded

RUN useradd --system --uid 10001 --home-dir /var/lib/tunewright --create-home tunewright
USER tunewright
ENTRYPOINT ["/opt/tunewright/.venv/bin/python", "-m"]
CMD ["services.gateway"]
