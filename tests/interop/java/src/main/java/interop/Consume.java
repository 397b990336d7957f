package interop;

import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.util.List;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueAveragely;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageClientExt;
import org.apache.rocketmq.common.message.MessageExt;

/** Prints every delivery, the failed ones too, until standard input ends. */
final class Consume {
    private static final long REPLY_WITHIN_MS = 10_000;

    private Consume() {
    }

    static void run(Options options) throws Exception {
        int failTimes = options.number("fail-times", 0);
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(
            options.text("group"), null, new AllocateMessageQueueAveragely(), options.flag("trace"), null);
        consumer.setNamesrvAddr(options.text("namesrv"));
        Namespaces.set(consumer, options);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setMaxReconsumeTimes(options.number("max-reconsume", -1));
        String expression = options.text("sql", "");
        if (expression.isEmpty()) {
            consumer.subscribe(options.text("topic"), options.text("tag", "*"));
        } else {
            consumer.subscribe(options.text("topic"), MessageSelector.bySql(expression));
        }
        if (options.text("model", "clustering").equals("broadcasting")) {
            setBroadcasting(consumer);
            // A broadcasting client keeps its name over restarts: two in one host need two names.
            consumer.setInstanceName(options.text("instance"));
        }
        if (options.flag("pop")) {
            // Only 5.x has it: the broker divides the queues, and says how to fetch from them.
            DefaultMQPushConsumer.class.getMethod("setClientRebalance", boolean.class).invoke(consumer, false);
        }
        if (options.flag("heartbeat-v2")) {
            ShortHeartbeats.switchOn(consumer);
        }
        if (options.flag("orderly")) {
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                return failed(messages, failTimes) ? ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT : ConsumeOrderlyStatus.SUCCESS;
            });
        } else {
            DefaultMQProducer replier = options.flag("reply") ? replier(options) : null;
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                for (MessageExt message : messages) {
                    if (replier != null && message.getProperty("REPLY_TO_CLIENT") != null) {
                        reply(replier, message);
                    }
                }
                context.setDelayLevelWhenNextConsume(options.number("retry-level", 0));
                return failed(messages, failTimes) ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
        }
        consumer.start();
        new Line("ready").print();
        if (options.flag("heartbeat-v2")) {
            ShortHeartbeats.watch(consumer);
        }
        Main.untilInputEnds();
        consumer.shutdown();
    }

    private static DefaultMQProducer replier(Options options) throws Exception {
        DefaultMQProducer replier = new DefaultMQProducer(options.text("group") + "-replier");
        replier.setNamesrvAddr(options.text("namesrv"));
        replier.start();
        return replier;
    }

    private static void reply(DefaultMQProducer replier, MessageExt request) {
        try {
            byte[] body = ("re: " + new String(request.getBody(), StandardCharsets.UTF_8)).getBytes(StandardCharsets.UTF_8);
            replier.send(MessageUtil.createReplyMessage(request, body), REPLY_WITHIN_MS);
        } catch (Exception failure) {
            new Line("error").put("error", failure.toString()).print();
        }
    }

    /** The enum moved to another package between 4.9 and 5: the one place where the two lines differ in source. */
    private static void setBroadcasting(DefaultMQPushConsumer consumer) throws ReflectiveOperationException {
        for (Method method : DefaultMQPushConsumer.class.getMethods()) {
            if (method.getName().equals("setMessageModel")) {
                for (Object model : method.getParameterTypes()[0].getEnumConstants()) {
                    if (model.toString().equals("BROADCASTING")) {
                        method.invoke(consumer, model);
                        return;
                    }
                }
            }
        }
        throw new IllegalStateException("this client has no broadcasting");
    }

    /** Prints the deliveries; says whether this attempt is one that must fail. */
    private static boolean failed(List<MessageExt> messages, int failTimes) {
        boolean failed = false;
        for (MessageExt message : messages) {
            print(message);
            failed |= message.getReconsumeTimes() < failTimes;
        }
        return failed;
    }

    static void print(MessageExt message) {
        new Line("message")
            .put("body", new String(message.getBody(), StandardCharsets.UTF_8))
            .put("id", message.getProperty("UNIQ_KEY"))
            .put("offset_id", ((MessageClientExt) message).getOffsetMsgId())
            .put("topic", message.getTopic())
            .put("queue", message.getQueueId())
            .put("offset", message.getQueueOffset())
            .put("tag", message.getTags())
            .put("keys", message.getKeys())
            .put("retry", message.getReconsumeTimes())
            .put("pop_ck", message.getProperty("POP_CK"))
            .put("at", System.currentTimeMillis())
            .print();
    }
}
