package interop;

import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageAccessor;
import org.apache.rocketmq.common.message.MessageExt;

/** Sends the messages {@code first .. first + count}, each body {@code PREFIX-n}, and prints what was acknowledged. */
final class Produce {
    private static final int ASYNC_IN_FLIGHT = 32;
    private static final int BATCH_SIZE = 10;
    private static final long RETRY_FOR_MS = 120_000;
    private static final long REPLY_WITHIN_MS = 30_000;

    private final Options options;
    private final DefaultMQProducer producer;
    private final String[] tags;
    private final int shards;

    static void run(Options options) throws Exception {
        new Produce(options).run();
    }

    private Produce(Options options) throws ReflectiveOperationException {
        this.options = options;
        this.tags = options.text("tags", "").split(",");
        this.shards = options.number("shards", 0);
        String group = options.text("group", "interop-producer");
        this.producer = options.text("mode", "sync").equals("transaction") ? transactional(group)
            : new DefaultMQProducer(group, null, options.flag("trace"), null);
        producer.setNamesrvAddr(options.text("namesrv"));
        producer.setPollNameServerInterval(options.number("route-interval-ms", producer.getPollNameServerInterval()));
        Namespaces.set(producer, options);
        compress(producer, options.text("compress", ""));
    }

    /** Every body, however short. What 4.9 uses is zlib; only 5.x can be told another kind. */
    private static void compress(DefaultMQProducer producer, String kind) throws ReflectiveOperationException {
        if (kind.isEmpty()) {
            return;
        }
        producer.setCompressMsgBodyOverHowmuch(1);
        for (Method method : DefaultMQProducer.class.getMethods()) {
            if (method.getName().equals("setCompressType")) {
                Class<?> kinds = method.getParameterTypes()[0];
                method.invoke(producer, kinds.getMethod("valueOf", String.class).invoke(null, kind));
            }
        }
    }

    private void run() throws Exception {
        int first = options.number("first", 0);
        int end = first + options.number("count", 1);
        producer.start();
        switch (options.text("mode", "sync")) {
            case "sync":
                for (int n = first; n < end; n++) {
                    sendSync(n);
                }
                break;
            case "async":
                sendAsync(first, end);
                break;
            case "oneway":
                for (int n = first; n < end; n++) {
                    Message message = message(n);
                    producer.sendOneway(message);
                    new Line("sent").put("n", n).put("body", body(n)).put("id", uniqueKey(message)).print();
                }
                break;
            case "batch":
                for (int n = first; n < end; n += BATCH_SIZE) {
                    sendBatch(n, Math.min(n + BATCH_SIZE, end));
                }
                break;
            case "request":
                for (int n = first; n < end; n++) {
                    long at = System.currentTimeMillis();
                    Message reply = producer.request(message(n), REPLY_WITHIN_MS);
                    new Line("ack").put("n", n).put("body", body(n)).put("at", at)
                        .put("reply", new String(reply.getBody(), StandardCharsets.UTF_8)).print();
                }
                break;
            case "transaction":
                for (int n = first; n < end; n++) {
                    long at = System.currentTimeMillis();
                    SendResult result = ((TransactionMQProducer) producer).sendMessageInTransaction(message(n), n);
                    acknowledged(n, at, result, result.getMsgId(), null, -1);
                }
                break;
            default:
                throw new IllegalArgumentException("unknown --mode " + options.text("mode"));
        }
        new Line("done").print();
        Main.untilInputEnds();
        producer.shutdown();
    }

    /** Of five messages in a row one is committed, one rolled back, two are left to whoever is asked, one is committed. */
    private static TransactionMQProducer transactional(String group) {
        TransactionMQProducer producer = new TransactionMQProducer(group);
        producer.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object n) {
                return isLeftOpen((Integer) n) ? LocalTransactionState.UNKNOW : ended((Integer) n);
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                String body = new String(message.getBody(), StandardCharsets.UTF_8);
                new Line("check").put("body", body).put("id", message.getTransactionId()).print();
                return ended(Integer.parseInt(body.substring(body.lastIndexOf('-') + 1)));
            }
        });
        return producer;
    }

    private static boolean isLeftOpen(int n) {
        return n % 5 == 2 || n % 5 == 3;
    }

    private static LocalTransactionState ended(int n) {
        boolean isRolledBack = n % 5 == 1 || n % 5 == 3;
        return isRolledBack ? LocalTransactionState.ROLLBACK_MESSAGE : LocalTransactionState.COMMIT_MESSAGE;
    }

    private void sendSync(int n) throws Exception {
        long deadline = System.currentTimeMillis() + RETRY_FOR_MS;
        // Sent again it is the same message: it keeps its unique key.
        Message message = message(n);
        while (true) {
            long at = System.currentTimeMillis();
            try {
                SendResult result = shards == 0
                    ? producer.send(message)
                    : producer.send(message, (queues, ignored, shard) -> queues.get((Integer) shard % queues.size()), n % shards);
                acknowledged(n, at, result, result.getMsgId(), result.getOffsetMsgId(), result.getQueueOffset());
                int recalled = options.number("recall-every", 0);
                if (recalled > 0 && n % recalled == 0) {
                    recall(n, message, result);
                }
                return;
            } catch (Exception failure) {
                new Line("fail").put("n", n).put("body", body(n)).put("error", failure.toString()).print();
                if (!options.flag("retry-failed") || at > deadline) {
                    throw failure;
                }
                // A refused connection fails at once: do not spin while the cluster elects.
                TimeUnit.MILLISECONDS.sleep(100);
            }
        }
    }

    /** By reflection: only the 5.x line can recall. */
    private void recall(int n, Message message, SendResult result) throws Exception {
        Object handle = result.getClass().getMethod("getRecallHandle").invoke(result);
        Object id = producer.getClass().getMethod("recallMessage", String.class, String.class)
            .invoke(producer, message.getTopic(), handle);
        new Line("recalled").put("n", n).put("body", body(n)).put("id", id).print();
    }

    private void sendAsync(int first, int end) throws Exception {
        Semaphore window = new Semaphore(ASYNC_IN_FLIGHT);
        for (int n = first; n < end; n++) {
            window.acquire();
            int sent = n;
            long at = System.currentTimeMillis();
            producer.send(message(n), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    acknowledged(sent, at, result, result.getMsgId(), result.getOffsetMsgId(), result.getQueueOffset());
                    window.release();
                }

                @Override
                public void onException(Throwable failure) {
                    new Line("fail").put("n", sent).put("body", body(sent)).put("error", failure.toString()).print();
                    window.release();
                }
            });
        }
        window.acquire(ASYNC_IN_FLIGHT);
    }

    /** A batch is acknowledged as one: ids are joined by commas, queue offsets count up from the first. */
    private void sendBatch(int first, int end) throws Exception {
        List<Message> batch = new ArrayList<>();
        for (int n = first; n < end; n++) {
            batch.add(message(n));
        }
        long at = System.currentTimeMillis();
        SendResult result = producer.send(batch);
        String[] ids = result.getMsgId().split(",");
        String[] offsetIds = result.getOffsetMsgId().split(",");
        for (int i = 0; i < batch.size(); i++) {
            acknowledged(first + i, at, result, ids[i], offsetIds[i], result.getQueueOffset() + i);
        }
    }

    private void acknowledged(int n, long at, SendResult result, String id, String offsetId, long queueOffset) {
        boolean ok = result.getSendStatus() == SendStatus.SEND_OK;
        new Line(ok ? "ack" : "fail")
            .put("error", ok ? null : result.getSendStatus())
            .put("n", n)
            .put("body", body(n))
            .put("id", id)
            .put("offset_id", offsetId)
            .put("queue", result.getMessageQueue().getQueueId())
            .put("offset", queueOffset < 0 ? null : queueOffset)
            .put("at", at)
            .print();
    }

    private Message message(int n) {
        Message message = new Message(options.text("topic"), body(n).getBytes(StandardCharsets.UTF_8));
        String tag = tags[n % tags.length];
        if (!tag.isEmpty()) {
            message.setTags(tag);
        }
        if (options.flag("keys")) {
            message.setKeys("key-" + body(n));
        }
        int level = options.number("delay-level", 0);
        if (level > 0) {
            message.setDelayTimeLevel(level);
        }
        int after = options.number("deliver-after-ms", 0);
        if (after > 0) {
            MessageAccessor.putProperty(message, "TIMER_DELIVER_MS", String.valueOf(System.currentTimeMillis() + after));
        }
        return message;
    }

    private String body(int n) {
        return options.text("prefix") + "-" + n;
    }

    private static String uniqueKey(Message message) {
        return message.getProperty("UNIQ_KEY");
    }
}
