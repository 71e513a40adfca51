package org.elasticsearch.xpack.citadelbuy;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLParameters;
import org.apache.logging.log4j.LogManager;
import org.apache.logging.log4j.Logger;
import org.elasticsearch.common.ssl.SslClientAuthenticationMode;
import org.elasticsearch.common.ssl.SslConfiguration;
import org.elasticsearch.common.ssl.SslConfigurationLoader;
import org.elasticsearch.watcher.FileChangesListener;
import org.elasticsearch.watcher.FileWatcher;
import org.elasticsearch.watcher.ResourceWatcherService;

/** What the settings xpack.security.NAME.ssl say, read from the environment. A changed file is read again while the node runs. */
final class Tls {
    private static final Logger LOGGER = LogManager.getLogger(Tls.class);
    private final String name;
    private final SslConfiguration configuration;
    private volatile SSLContext context;

    private Tls(String name, SslConfiguration configuration) {
        this.name = name;
        this.configuration = configuration;
        context = configuration.createSslContext();
    }

    /** Null where it is not switched on. */
    static Tls of(String name, SslClientAuthenticationMode clients, Map<String, String> variables) {
        String prefix = "xpack.security." + name + ".ssl.";
        if (!"true".equals(variables.get(prefix + "enabled"))) {
            return null;
        }
        Path folder = Path.of(System.getProperty("es.path.conf"));
        return new Tls(name, new Reader(prefix, clients, variables).load(folder));
    }

    SslConfiguration configuration() {
        return configuration;
    }

    /** For one connection. */
    SSLEngine engine(boolean client) {
        SSLEngine engine = context.createSSLEngine();
        engine.setUseClientMode(client);
        SSLParameters parameters = engine.getSSLParameters();
        configuration.clientAuth().configure(parameters);
        engine.setSSLParameters(parameters);
        return engine;
    }

    /** As upstream, every five seconds. */
    void follow(ResourceWatcherService watchers) throws IOException {
        for (Path file : configuration.getDependentFiles()) {
            FileWatcher watcher = new FileWatcher(file);
            watcher.addListener(new FileChangesListener() {
                @Override
                public void onFileCreated(Path created) {
                    reload(created);
                }

                @Override
                public void onFileChanged(Path changed) {
                    reload(changed);
                }
            });
            watchers.add(watcher, ResourceWatcherService.Frequency.HIGH);
        }
    }

    private void reload(Path changed) {
        try {
            context = configuration.createSslContext();
            LOGGER.info("TLS of {}: read again, as {} has changed", name, changed);
        } catch (RuntimeException error) {
            LOGGER.error("TLS of " + name + " stays as it was: " + changed + " has changed, and cannot be used", error);
        }
    }

    /** Upstream's own reader of these settings. */
    private static final class Reader extends SslConfigurationLoader {
        private final Map<String, String> variables;

        Reader(String prefix, SslClientAuthenticationMode clients, Map<String, String> variables) {
            super(prefix);
            this.variables = variables;
            setDefaultClientAuth(clients);
        }

        @Override
        protected boolean hasSettings(String prefix) {
            return variables.keySet().stream().anyMatch(name -> name.startsWith(prefix));
        }

        @Override
        protected String getSettingAsString(String name) {
            return variables.get(name);
        }

        @Override
        protected char[] getSecureSetting(String name) {
            return null;
        }

        @Override
        protected List<String> getSettingAsList(String name) {
            String value = variables.get(name);
            return value == null ? List.of() : List.of(value.split(","));
        }
    }
}
