package org.elasticsearch.xpack.citadelbuy;

import io.netty.channel.Channel;
import io.netty.channel.ChannelHandler;
import io.netty.handler.ssl.SslHandler;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLEngine;
import org.elasticsearch.TransportVersion;
import org.elasticsearch.cluster.node.DiscoveryNode;
import org.elasticsearch.common.io.stream.NamedWriteableRegistry;
import org.elasticsearch.common.network.NetworkService;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.common.ssl.SslClientAuthenticationMode;
import org.elasticsearch.common.ssl.SslConfigurationLoader;
import org.elasticsearch.common.util.PageCacheRecycler;
import org.elasticsearch.indices.breaker.CircuitBreakerService;
import org.elasticsearch.threadpool.ThreadPool;
import org.elasticsearch.transport.ConnectionProfile;
import org.elasticsearch.transport.netty4.Netty4Transport;
import org.elasticsearch.transport.netty4.SharedGroupFactory;

/** The transport between members by TLS, with the settings upstream has for it; each side shows a certificate. */
final class TlsTransport extends Netty4Transport {
    static final String NAME = "citadelbuy-tls";
    private static final String PREFIX = "xpack.security.transport.ssl.";
    private final SSLContext context;

    TlsTransport(Settings settings, ThreadPool threads, NetworkService network, PageCacheRecycler recycler,
        NamedWriteableRegistry registry, CircuitBreakerService breaker, Map<String, String> variables) {
        super(settings, TransportVersion.current(), threads, network, recycler, registry, breaker, new SharedGroupFactory(settings));
        context = new Files(variables).load(Path.of(System.getProperty("es.path.conf"))).createSslContext();
    }

    static boolean wanted(Map<String, String> variables) {
        return "true".equals(variables.get(PREFIX + "enabled"));
    }

    @Override
    protected ChannelHandler getServerChannelInitializer(String name) {
        return new ServerChannelInitializer(name) {
            @Override
            protected void initChannel(Channel channel) throws Exception {
                super.initChannel(channel);
                SSLEngine engine = context.createSSLEngine();
                engine.setUseClientMode(false);
                engine.setNeedClientAuth(true);
                channel.pipeline().addFirst(new SslHandler(engine));
            }
        };
    }

    @Override
    protected ChannelHandler getClientChannelInitializer(DiscoveryNode node, ConnectionProfile profile) {
        return new ClientChannelInitializer() {
            @Override
            protected void initChannel(Channel channel) throws Exception {
                super.initChannel(channel);
                SSLEngine engine = context.createSSLEngine();
                engine.setUseClientMode(true);
                channel.pipeline().addFirst(new SslHandler(engine));
            }
        };
    }

    /** Upstream's own reader of these settings, from the environment. */
    private static final class Files extends SslConfigurationLoader {
        private final Map<String, String> variables;

        Files(Map<String, String> variables) {
            super(PREFIX);
            this.variables = variables;
            setDefaultClientAuth(SslClientAuthenticationMode.REQUIRED);
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
