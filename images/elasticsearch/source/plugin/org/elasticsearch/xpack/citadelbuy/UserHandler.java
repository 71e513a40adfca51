package org.elasticsearch.xpack.citadelbuy;

import static org.elasticsearch.rest.RestRequest.Method.POST;
import static org.elasticsearch.rest.RestRequest.Method.PUT;

import java.io.IOException;
import java.util.List;
import java.util.Map;
import org.elasticsearch.ElasticsearchStatusException;
import org.elasticsearch.action.admin.cluster.settings.ClusterUpdateSettingsRequest;
import org.elasticsearch.action.admin.cluster.settings.ClusterUpdateSettingsResponse;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.core.TimeValue;
import org.elasticsearch.rest.BaseRestHandler;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.rest.RestResponse;
import org.elasticsearch.rest.RestStatus;
import org.elasticsearch.rest.action.RestActionListener;

/** As far as a rotation needs the security API: makes a user, who may do everything, or changes a password. */
final class UserHandler extends BaseRestHandler {
    private static final int SHORTEST = 6; // as upstream
    private final Users users;

    UserHandler(Users users) {
        this.users = users;
    }

    @Override
    public String getName() {
        return "citadelbuy_user";
    }

    @Override
    public List<Route> routes() {
        String user = "/_security/user/{username}";
        return List.of(new Route(PUT, user), new Route(POST, user), new Route(PUT, user + "/_password"),
            new Route(POST, user + "/_password"));
    }

    @Override
    protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client) throws IOException {
        String name = request.param("username");
        Map<String, Object> body;
        try (var parser = request.contentParser()) {
            body = parser.map();
        }
        if (!name.matches("[a-z_]+") || !(body.get("password") instanceof String password) || password.length() < SHORTEST) {
            throw new IllegalArgumentException("a user is lower-case letters and underscores, a password is a text of "
                + SHORTEST + " characters or more");
        }
        boolean exists = users.exists(name);
        if (request.path().endsWith("/_password") && !exists) {
            throw new ElasticsearchStatusException("user [{}] does not exist", RestStatus.NOT_FOUND, name);
        }
        TimeValue patience = TimeValue.timeValueSeconds(20);
        ClusterUpdateSettingsRequest update = new ClusterUpdateSettingsRequest(patience, patience);
        update.persistentSettings(Users.change(name, password));
        return channel -> client.admin().cluster().updateSettings(update, new RestActionListener<>(channel) {
            @Override
            protected void processResponse(ClusterUpdateSettingsResponse answer) throws IOException {
                if (!answer.isAcknowledged()) {
                    throw new ElasticsearchStatusException("not every member knows the password yet", RestStatus.REQUEST_TIMEOUT);
                }
                channel.sendResponse(new RestResponse(RestStatus.OK,
                    channel.newBuilder().startObject().field("created", !exists).endObject()));
            }
        });
    }
}
