package interop;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * {@code consume --lite}: polls until standard input ends, and prints what came. Commits behind each poll whose messages all have
 * numbers below {@code --commit-below}; what comes later is left to whoever polls next.
 */
final class LitePull {
    private static final long POLL_MS = 100;

    private LitePull() {
    }

    static void run(Options options) throws Exception {
        int commitBelow = options.number("commit-below", Integer.MAX_VALUE);
        DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(options.text("group"));
        consumer.setNamesrvAddr(options.text("namesrv"));
        consumer.setPollNameServerInterval(options.number("route-interval-ms", consumer.getPollNameServerInterval()));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setAutoCommit(false);
        consumer.subscribe(options.text("topic"), options.text("tag", "*"));
        consumer.start();
        new Line("ready").print();
        AtomicBoolean inputEnded = whenInputEnds();
        while (!inputEnded.get()) {
            List<MessageExt> polled = consumer.poll(POLL_MS);
            polled.forEach(Consume::print);
            if (!polled.isEmpty() && polled.stream().allMatch(message -> number(message) < commitBelow)) {
                consumer.commitSync();
            }
        }
        consumer.shutdown();
    }

    /** Every body ends in one. */
    private static int number(MessageExt message) {
        String body = new String(message.getBody(), StandardCharsets.UTF_8);
        return Integer.parseInt(body.substring(body.lastIndexOf('-') + 1));
    }

    private static AtomicBoolean whenInputEnds() {
        AtomicBoolean inputEnded = new AtomicBoolean();
        Thread watcher = new Thread(() -> {
            try {
                Main.untilInputEnds();
            } catch (IOException broken) {
                new Line("error").put("error", broken.toString()).print();
            } finally {
                inputEnded.set(true);
            }
        });
        watcher.setDaemon(true);
        watcher.start();
        return inputEnded;
    }
}
