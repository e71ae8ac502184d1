#!/bin/sh
# The command line of the gateway that runs as switchyard.service: with its user, its secrets and its folder. For root.
#   install -m 0755 deploy/systemd/switchyard.sh /usr/local/sbin/switchyard
# Paths are given absolute: commands run in the service's folder. Lines of the file are NAME=value, as systemd reads them too,
# without quotes, blanks or $ in a value.
set -eu
[ "$(id -u)" = 0 ] || { echo "switchyard: run this as root: it reads the service's secrets" >&2; exit 1; }
set -a
. /etc/switchyard/switchyard.env
set +a
export HOME=/var/lib/switchyard SWITCHYARD_STATE_DIR=/var/lib/switchyard PYTHONDONTWRITEBYTECODE=1
install -d -m 0700 -o switchyard -g switchyard "$HOME"
cd "$HOME"
umask 077
exec setpriv --reuid switchyard --regid switchyard --init-groups --no-new-privs /opt/switchyard/.venv/bin/switchyard "$@"
