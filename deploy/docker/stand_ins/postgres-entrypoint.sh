#!/bin/sh
# First start: a cluster with the given password. Then the server, as the only process.
set -eu
data=/var/lib/postgresql/18/data
if [ ! -f "$data/PG_VERSION" ]; then
  mkdir -p "$data"
  printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
  initdb -D "$data" -U postgres --pwfile=/tmp/password --auth-local=scram-sha-256 --auth-host=scram-sha-256 \
    -E UTF8 --locale=C.UTF-8 --data-checksums
  rm /tmp/password
  echo 'host all all all scram-sha-256' >> "$data/pg_hba.conf"
fi
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
