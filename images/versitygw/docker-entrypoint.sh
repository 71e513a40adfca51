#!/bin/sh
# The keys come from files where ROOT_ACCESS_KEY_FILE and ROOT_SECRET_KEY_FILE name them. BUCKETS are made, as folders.
set -eu
for name in ROOT_ACCESS_KEY ROOT_SECRET_KEY; do
    file=$(printenv "${name}_FILE" || true)
    [ -z "$file" ] || export "$name=$(cat "$file")"
done
umask 0077
for bucket in ${BUCKETS:-}; do mkdir -p "/data/$bucket"; done
exec versitygw "$@" posix --dir-perms 0700 --file-perms 0600 /data
