package org.elasticsearch.xpack.citadelbuy;

import static org.elasticsearch.rest.RestRequest.Method.GET;
import static org.elasticsearch.rest.RestRequest.Method.HEAD;

import java.io.IOException;
import java.util.List;
import java.util.function.Supplier;
import org.elasticsearch.Build;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.cluster.ClusterState;
import org.elasticsearch.index.IndexVersion;
import org.elasticsearch.rest.BaseRestHandler;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.rest.RestResponse;
import org.elasticsearch.rest.RestStatus;
import org.elasticsearch.xcontent.XContentBuilder;

/** The root page, which clients and exporters read the version from. */
final class RootHandler extends BaseRestHandler {
    private final Supplier<ClusterState> state;

    RootHandler(Supplier<ClusterState> state) {
        this.state = state;
    }

    @Override
    public String getName() {
        return "citadelbuy_root";
    }

    @Override
    public List<Route> routes() {
        return List.of(new Route(GET, "/"), new Route(HEAD, "/"));
    }

    @Override
    protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client) {
        return channel -> channel.sendResponse(new RestResponse(RestStatus.OK, page(channel.newBuilder())));
    }

    private XContentBuilder page(XContentBuilder page) throws IOException {
        ClusterState now = state.get();
        Build build = Build.current();
        page.prettyPrint().startObject();
        page.field("name", now.nodes().getLocalNode().getName());
        page.field("cluster_name", now.getClusterName().value());
        page.field("cluster_uuid", now.metadata().clusterUUID());
        page.startObject("version");
        page.field("number", build.qualifiedVersion());
        page.field("build_flavor", build.flavor());
        page.field("build_type", build.type().displayName());
        page.field("build_hash", build.hash());
        page.field("build_date", build.date());
        page.field("build_snapshot", build.isSnapshot());
        page.field("lucene_version", IndexVersion.current().luceneVersion().toString());
        page.field("minimum_wire_compatibility_version", build.minWireCompatVersion());
        page.field("minimum_index_compatibility_version", build.minIndexCompatVersion());
        page.endObject();
        page.field("tagline", "You Know, for Search");
        return page.endObject();
    }
}
