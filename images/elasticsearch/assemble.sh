#!/bin/sh
# Lay the jars out as Elasticsearch expects them: assemble.sh JARS HOME
set -eu
jars=$1 home=$2
version=8.19.0
transport=$home/modules/transport-netty4
rest=$home/modules/citadelbuy-rest

mkdir -p "$home/lib" "$home/plugins" "$home/server" "$transport" "$rest"
# Modules have nothing in common but the server: the plugin's transport is one more netty.
cp "$jars"/netty-*.jar "$jars/transport-netty4-$version.jar" "$jars/elasticsearch-ssl-config-$version.jar" "$rest/"
mv "$jars"/netty-*.jar "$jars/transport-netty4-$version.jar" "$jars/elasticsearch-ssl-config-$version.jar" "$transport/"
mv "$jars"/*.jar "$home/lib/"
(
    cd "$transport"
    jar --extract --file "transport-netty4-$version.jar" META-INF/es-plugins/transport-netty4
    mv META-INF/es-plugins/transport-netty4/* .
    rm -r META-INF
)

javac --release 17 -d plugin-classes --class-path "$home/lib/*:$rest/*" $(find source/plugin -name '*.java')
jar --create --file "$rest/citadelbuy-rest.jar" -C plugin-classes .
cp source/plugin/plugin-descriptor.properties "$rest/"
javac --release 17 -d server-classes --class-path "$home/lib/*" $(find source/server -name '*.java')
jar --create --file "$home/server/server.jar" -C server-classes .
