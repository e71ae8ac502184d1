#!/bin/sh
# Makes the secrets that are missing, each in the folder of the service that may read it, and leaves the others alone.
# Run once before the other services start. Nobody chooses a password, and none is the same on two installations.
#
#   /secrets/gateway   pepper, redis_url, ledger_url
#   /secrets/redis     password, password.conf (for its `include`)
#   /secrets/postgres  password (of the owner `switchyard`), grafana_password (of the role that may only read)
#   /secrets/grafana   admin_password, postgres_password
set -eu
umask 0227
root="${1:-/secrets}"

# made FILE: 64 hexadecimal digits, written once; appears whole or not at all.
made() {
  [ -s "$1" ] && return 0
  head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$1.new.$$"
  mv "$1.new.$$" "$1"
  echo "made $1"
}

# derived FILE TEXT: follows another secret, so it is written again whenever that says something else.
derived() {
  [ "$(cat "$1" 2>/dev/null || true)" = "$2" ] && return 0
  printf '%s\n' "$2" > "$1.new.$$"
  mv -f "$1.new.$$" "$1"
}

made "$root/gateway/pepper"
made "$root/redis/password"
made "$root/postgres/password"
made "$root/postgres/grafana_password"
made "$root/grafana/admin_password"

redis_password="$(cat "$root/redis/password")"
postgres_password="$(cat "$root/postgres/password")"
derived "$root/redis/password.conf" "requirepass $redis_password"
derived "$root/gateway/redis_url" "redis://:$redis_password@${REDIS_HOST:-redis}:6379/0"
derived "$root/gateway/ledger_url" \
  "postgresql+asyncpg://switchyard:$postgres_password@${POSTGRES_HOST:-postgres}:5432/switchyard"
derived "$root/grafana/postgres_password" "$(cat "$root/postgres/grafana_password")"
