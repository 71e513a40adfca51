// The server accepts an interceptor of REST requests from packages below org.elasticsearch.xpack alone.
package org.elasticsearch.xpack.citadelbuy;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.function.BiConsumer;
import java.util.function.Predicate;
import java.util.function.Supplier;
import org.elasticsearch.ElasticsearchSecurityException;
import org.elasticsearch.cluster.metadata.IndexNameExpressionResolver;
import org.elasticsearch.cluster.node.DiscoveryNodes;
import org.elasticsearch.cluster.service.ClusterService;
import org.elasticsearch.common.io.stream.NamedWriteableRegistry;
import org.elasticsearch.common.network.NetworkModule;
import org.elasticsearch.common.network.NetworkService;
import org.elasticsearch.common.settings.ClusterSettings;
import org.elasticsearch.common.settings.IndexScopedSettings;
import org.elasticsearch.common.settings.Setting;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.common.settings.SettingsFilter;
import org.elasticsearch.common.ssl.SslClientAuthenticationMode;
import org.elasticsearch.common.util.BigArrays;
import org.elasticsearch.common.util.PageCacheRecycler;
import org.elasticsearch.common.util.concurrent.ThreadContext;
import org.elasticsearch.features.NodeFeature;
import org.elasticsearch.http.HttpPreRequest;
import org.elasticsearch.http.HttpServerTransport;
import org.elasticsearch.http.netty4.Netty4HttpServerTransport;
import org.elasticsearch.indices.breaker.CircuitBreakerService;
import org.elasticsearch.plugins.NetworkPlugin;
import org.elasticsearch.plugins.Plugin;
import org.elasticsearch.plugins.interceptor.RestServerActionPlugin;
import org.elasticsearch.rest.RestController;
import org.elasticsearch.rest.RestHandler;
import org.elasticsearch.rest.RestInterceptor;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.rest.RestResponse;
import org.elasticsearch.rest.RestStatus;
import org.elasticsearch.telemetry.tracing.Tracer;
import org.elasticsearch.threadpool.ThreadPool;
import org.elasticsearch.transport.Transport;
import org.elasticsearch.transport.netty4.SharedGroupFactory;
import org.elasticsearch.transport.netty4.TLSConfig;
import org.elasticsearch.xcontent.NamedXContentRegistry;

/** Asks every REST request for a user and its password, changes passwords, answers GET /, and has clients and members talk by TLS. */
public final class RestPlugin extends Plugin implements RestServerActionPlugin, NetworkPlugin {
    private static final String TYPE = "citadelbuy-tls"; // of the transport, and of HTTP
    private final Tls transport = Tls.of("transport", SslClientAuthenticationMode.REQUIRED, System.getenv());
    private final Tls http = Tls.of("http", SslClientAuthenticationMode.NONE, System.getenv());
    private SharedGroupFactory groups;
    private ClusterService clusterService;
    private final Users users = users(System.getenv()); // null where anybody may ask

    private Users users(Map<String, String> variables) {
        String password = variables.getOrDefault("ELASTIC_PASSWORD", "");
        String user = variables.getOrDefault("ELASTIC_USERNAME", "");
        return password.isEmpty() ? null
            : new Users(() -> clusterService.state().metadata().persistentSettings(), user.isEmpty() ? "elastic" : user, password);
    }

    @Override
    public List<Setting<?>> getSettings() {
        return List.of(Users.HASH);
    }

    @Override
    public Settings additionalSettings() {
        Settings.Builder settings = Settings.builder();
        if (transport != null) {
            settings.put(NetworkModule.TRANSPORT_TYPE_KEY, TYPE);
        }
        if (http != null) {
            settings.put(NetworkModule.HTTP_TYPE_KEY, TYPE);
        }
        return settings.build();
    }

    /** The threads that members and clients have in common. */
    private synchronized SharedGroupFactory groups(Settings settings) {
        if (groups == null) {
            groups = new SharedGroupFactory(settings);
        }
        return groups;
    }

    @Override
    public Map<String, Supplier<Transport>> getTransports(
        Settings settings, ThreadPool threads, PageCacheRecycler recycler, CircuitBreakerService breaker,
        NamedWriteableRegistry registry, NetworkService network) {
        return Map.of(TYPE,
            () -> new TlsTransport(settings, threads, network, recycler, registry, breaker, groups(settings), transport));
    }

    @Override
    public Map<String, Supplier<HttpServerTransport>> getHttpTransports(
        Settings settings, ThreadPool threads, BigArrays arrays, PageCacheRecycler recycler, CircuitBreakerService breaker,
        NamedXContentRegistry registry, NetworkService network, HttpServerTransport.Dispatcher dispatcher,
        BiConsumer<HttpPreRequest, ThreadContext> perRequest, ClusterSettings clusterSettings, Tracer tracer) {
        return Map.of(TYPE, () -> new Netty4HttpServerTransport(settings, network, threads, registry, dispatcher,
            clusterSettings, groups(settings), tracer,
            new TLSConfig(http.configuration(), (configuration, host, port) -> http.engine(false)), null, null) {
            @Override
            protected void populatePerRequestThreadContext(RestRequest request, ThreadContext context) {
                perRequest.accept(request.getHttpRequest(), context);
            }
        });
    }

    @Override
    public Collection<?> createComponents(PluginServices services) {
        clusterService = services.clusterService();
        for (Tls tls : new Tls[] { transport, http }) {
            if (tls != null) {
                try {
                    tls.follow(services.resourceWatcherService());
                } catch (IOException error) {
                    throw new UncheckedIOException(error);
                }
            }
        }
        return List.of();
    }

    @Override
    public RestInterceptor getRestHandlerInterceptor(ThreadContext context) {
        if (users == null) {
            return null;
        }
        return (request, channel, handler, listener) -> {
            String given = request.header("Authorization");
            boolean allowed = users.know(given);
            if (!allowed) {
                ElasticsearchSecurityException error = new ElasticsearchSecurityException(
                    given == null ? "missing authentication credentials for REST request [{}]"
                        : "unable to authenticate user for REST request [{}]",
                    RestStatus.UNAUTHORIZED, request.uri());
                error.addHeader("WWW-Authenticate", "Basic realm=\"security\", charset=\"UTF-8\"");
                channel.sendResponse(new RestResponse(channel, error));
            }
            listener.onResponse(allowed);
        };
    }

    @Override
    public Collection<RestHandler> getRestHandlers(
        Settings settings, NamedWriteableRegistry registry, RestController controller, ClusterSettings clusterSettings,
        IndexScopedSettings indexSettings, SettingsFilter filter, IndexNameExpressionResolver resolver,
        Supplier<DiscoveryNodes> nodes, Predicate<NodeFeature> features) {
        RestHandler root = new RootHandler(() -> clusterService.state());
        return users == null ? List.of(root) : List.of(root, new UserHandler(users));
    }
}
