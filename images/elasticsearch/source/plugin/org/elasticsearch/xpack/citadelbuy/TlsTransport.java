package org.elasticsearch.xpack.citadelbuy;

import io.netty.channel.Channel;
import io.netty.channel.ChannelHandler;
import io.netty.handler.ssl.SslHandler;
import org.elasticsearch.TransportVersion;
import org.elasticsearch.cluster.node.DiscoveryNode;
import org.elasticsearch.common.io.stream.NamedWriteableRegistry;
import org.elasticsearch.common.network.NetworkService;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.common.util.PageCacheRecycler;
import org.elasticsearch.indices.breaker.CircuitBreakerService;
import org.elasticsearch.threadpool.ThreadPool;
import org.elasticsearch.transport.ConnectionProfile;
import org.elasticsearch.transport.netty4.Netty4Transport;
import org.elasticsearch.transport.netty4.SharedGroupFactory;

/** The transport between members by TLS; each side shows a certificate. */
final class TlsTransport extends Netty4Transport {
    private final Tls tls;

    TlsTransport(Settings settings, ThreadPool threads, NetworkService network, PageCacheRecycler recycler,
        NamedWriteableRegistry registry, CircuitBreakerService breaker, SharedGroupFactory groups, Tls tls) {
        super(settings, TransportVersion.current(), threads, network, recycler, registry, breaker, groups);
        this.tls = tls;
    }

    @Override
    protected ChannelHandler getServerChannelInitializer(String name) {
        return new ServerChannelInitializer(name) {
            @Override
            protected void initChannel(Channel channel) throws Exception {
                super.initChannel(channel);
                channel.pipeline().addFirst(new SslHandler(tls.engine(false)));
            }
        };
    }

    @Override
    protected ChannelHandler getClientChannelInitializer(DiscoveryNode node, ConnectionProfile profile) {
        return new ClientChannelInitializer() {
            @Override
            protected void initChannel(Channel channel) throws Exception {
                super.initChannel(channel);
                channel.pipeline().addFirst(new SslHandler(tls.engine(true)));
            }
        };
    }
}
