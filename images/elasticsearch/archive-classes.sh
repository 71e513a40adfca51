#!/bin/bash
# Start a node once and keep its loaded classes: every later start takes half the time and half the work.
set -eu
scratch=$(mktemp -d)
env discovery.type=single-node network.host=127.0.0.1 http.port=0 path.data="$scratch/data" ELASTIC_PASSWORD=unused \
    ES_JAVA_OPTS="-Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xlog:cds=off -Xlog:cds+dynamic=off -XX:ArchiveClassesAtExit=$1" \
    docker-entrypoint.sh > "$scratch/log" 2>&1 &
node=$!
until grep -q '\] started ' "$scratch/log"; do
    if ! kill -0 "$node"; then
        cat "$scratch/log" >&2
        exit 1
    fi
    sleep 0.5
done
kill "$node"
wait "$node" || true
[[ -s $1 ]] || { cat "$scratch/log" >&2; exit 1; }
rm -r "$scratch"
