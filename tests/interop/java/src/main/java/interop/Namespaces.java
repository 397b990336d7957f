package interop;

import org.apache.rocketmq.client.ClientConfig;

/** {@code --namespace}: the client prefixes every name by it. {@code --namespace-v2} (5.x): it tells it in every header. */
final class Namespaces {
    private Namespaces() {
    }

    /** Before anything is subscribed to: names are prefixed when they are given. */
    static void set(ClientConfig client, Options options) throws ReflectiveOperationException {
        String namespace = options.text("namespace", "");
        if (!namespace.isEmpty()) {
            client.setNamespace(namespace);
        }
        String told = options.text("namespace-v2", "");
        if (!told.isEmpty()) {
            ClientConfig.class.getMethod("setNamespaceV2", String.class).invoke(client, told);
        }
    }
}
