package com.citadelbuy.elasticsearch;

import java.net.InetAddress;
import java.net.UnknownHostException;
import java.nio.file.Path;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/** Starts one node with the settings of config/elasticsearch.yml and of the environment, and stops it on SIGTERM. */
public final class Server {
    private static final long STOP_SECONDS = 20;

    private Server() {}

    public static void main(String[] arguments) throws Exception {
        Map<String, String> variables = System.getenv();
        boolean open = "false".equals(variables.get("xpack.security.enabled"));
        if (!open && variables.getOrDefault("ELASTIC_PASSWORD", "").isEmpty()) {
            System.err.println("elasticsearch image: ELASTIC_PASSWORD is not set or empty; set it on the container,"
                + " or xpack.security.enabled=false for a server that anybody may use");
            System.exit(1);
        }
        LogConfigurator.configureESLogging();
        Environment environment = environment(variables);
        LogConfigurator.setNodeName(environment.settings().get("node.name"));
        LogConfigurator.configure(environment, true);
        PluginsLoader plugins = PluginsLoader.createPluginsLoader(
            PluginsLoader.loadModulesBundles(environment.modulesDir()),
            PluginsLoader.loadPluginsBundles(environment.pluginsDir()),
            Map.of());
        Node node = new Node(environment, plugins);
        CountDownLatch stopped = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> stop(node, stopped), "stop"));
        node.start();
        stopped.await();
    }

    /** Settings are the variables with a dot in their name, as with the official image; there is no xpack here. */
    private static Environment environment(Map<String, String> variables) {
        Path home = Path.of(System.getProperty("es.path.home"));
        Settings.Builder settings = Settings.builder().put("path.home", home);
        if ("single-node".equals(variables.get("discovery.type"))) {
            // Nobody else joins, and the transport port knows no password.
            settings.put("transport.host", "127.0.0.1");
        }
        variables.forEach((name, value) -> {
            if (name.matches("[a-z0-9_]+(\\.[a-z0-9_]+)+") && !name.startsWith("xpack.")) {
                settings.put(name, value);
            }
        });
        Path configuration = Path.of(System.getProperty("es.path.conf"));
        return InternalSettingsPreparer.prepareEnvironment(settings.build(), Map.of(), configuration, Server::hostname);
    }

    private static String hostname() {
        String name = System.getenv("HOSTNAME");
        try {
            return name == null || name.isEmpty() ? InetAddress.getLocalHost().getHostName() : name;
        } catch (UnknownHostException error) {
            return "elasticsearch";
        }
    }

    private static void stop(Node node, CountDownLatch stopped) {
        try {
            node.prepareForClose();
            node.close();
            node.awaitClose(STOP_SECONDS, TimeUnit.SECONDS);
        } catch (Exception error) {
            System.err.println("elasticsearch image: the node did not stop cleanly: " + error);
        } finally {
            stopped.countDown();
        }
    }
}
