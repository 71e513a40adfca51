#!/bin/bash
# Settings come from the environment, as with the official image; the server itself reads those with a dot in the name.
set -e
if [[ $# -gt 0 && $1 != elasticsearch && $1 != eswrapper && $1 != -* ]]; then
    exec "$@"
fi
home=/usr/share/elasticsearch
options=(@"$home/config/jvm.args")
if [[ -f $home/server/classes.jsa ]]; then
    options+=(-XX:SharedArchiveFile="$home/server/classes.jsa")
fi
# shellcheck disable=SC2086  # ES_JAVA_OPTS holds several options
exec java "${options[@]}" ${ES_JAVA_OPTS:-} --class-path "$home/server/server.jar" com.citadelbuy.elasticsearch.Server
