#!/bin/sh
# As the official image: options or a configuration file alone are meant for redis-server.
set -e
case "${1:-}" in
    -* | *.conf) set -- redis-server "$@" ;;
esac
umask 0077
exec "$@"
