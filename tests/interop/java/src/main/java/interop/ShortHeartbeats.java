package interop;

import java.lang.reflect.Field;
import java.util.Set;
import java.util.TreeSet;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;

/**
 * Heartbeats of version 2, which only 5.x has: a client that has told a broker all about its subscriptions sends a fingerprint of them
 * from then on, every second here.
 */
final class ShortHeartbeats {
    private static final int INTERVAL_MS = 1_000;
    private static final long LOOK_MS = 50;

    private ShortHeartbeats() {
    }

    /** Before the start. */
    static void switchOn(DefaultMQPushConsumer consumer) throws ReflectiveOperationException {
        DefaultMQPushConsumer.class.getMethod("setUseHeartbeatV2", boolean.class).invoke(consumer, true);
        consumer.setHeartbeatBrokerInterval(INTERVAL_MS);
    }

    /** Prints to which brokers the heartbeats are short, whenever that changes: the client tells it to nobody. */
    static void watch(DefaultMQPushConsumer consumer) throws ReflectiveOperationException {
        Object implementation = fieldOf(consumer, "defaultMQPushConsumerImpl");
        Object client = fieldOf(implementation, "mQClientFactory");
        Set<?> brokers = (Set<?>) fieldOf(client, "brokerSupportV2HeartbeatSet");
        Thread watcher = new Thread(() -> {
            Set<String> before = Set.of();
            while (true) {
                Set<String> now = new TreeSet<>();
                brokers.forEach(broker -> now.add(broker.toString()));
                if (!now.equals(before)) {
                    new Line("short-heartbeats").put("to", String.join(" ", now)).print();
                    before = now;
                }
                try {
                    Thread.sleep(LOOK_MS);
                } catch (InterruptedException ended) {
                    return;
                }
            }
        });
        watcher.setDaemon(true);
        watcher.start();
    }

    private static Object fieldOf(Object of, String name) throws ReflectiveOperationException {
        Field field = of.getClass().getDeclaredField(name);
        field.setAccessible(true);
        return field.get(of);
    }
}
