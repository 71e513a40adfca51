// The server accepts an interceptor of REST requests from packages below org.elasticsearch.xpack alone.
package org.elasticsearch.xpack.citadelbuy;

import java.util.Collection;
import java.util.List;
import java.util.Map;
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
import org.elasticsearch.common.util.PageCacheRecycler;
import org.elasticsearch.common.util.concurrent.ThreadContext;
import org.elasticsearch.features.NodeFeature;
import org.elasticsearch.indices.breaker.CircuitBreakerService;
import org.elasticsearch.plugins.NetworkPlugin;
import org.elasticsearch.plugins.Plugin;
import org.elasticsearch.plugins.interceptor.RestServerActionPlugin;
import org.elasticsearch.rest.RestController;
import org.elasticsearch.rest.RestHandler;
import org.elasticsearch.rest.RestInterceptor;
import org.elasticsearch.rest.RestResponse;
import org.elasticsearch.rest.RestStatus;
import org.elasticsearch.threadpool.ThreadPool;
import org.elasticsearch.transport.Transport;

/** Asks every REST request for a user and its password, changes passwords, answers GET /, and has members talk by TLS. */
public final class RestPlugin extends Plugin implements RestServerActionPlugin, NetworkPlugin {
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
        return TlsTransport.wanted(System.getenv())
            ? Settings.builder().put(NetworkModule.TRANSPORT_TYPE_KEY, TlsTransport.NAME).build() : Settings.EMPTY;
    }

    @Override
    public Map<String, Supplier<Transport>> getTransports(
        Settings settings, ThreadPool threads, PageCacheRecycler recycler, CircuitBreakerService breaker,
        NamedWriteableRegistry registry, NetworkService network) {
        return Map.of(TlsTransport.NAME,
            () -> new TlsTransport(settings, threads, network, recycler, registry, breaker, System.getenv()));
    }

    @Override
    public Collection<?> createComponents(PluginServices services) {
        clusterService = services.clusterService();
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
