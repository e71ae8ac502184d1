#!/bin/sh
# Makes the role that Grafana asks with, or brings it up to date. It reads usage and names, never a key's hash.
set -eu
PGPASSWORD="$(cat /secrets/postgres/password)"
GRAFANA_PASSWORD="$(cat /secrets/postgres/grafana_password)"
export PGPASSWORD GRAFANA_PASSWORD
exec psql --host="${POSTGRES_HOST:-postgres}" --port="${POSTGRES_PORT:-5432}" --username=switchyard --dbname=switchyard \
  --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --file="$(dirname "$0")/grafana-role.sql"
