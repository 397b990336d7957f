"""The cases. Each drives one client through one use and raises `Failed` with every difference it found.

Consumers start first and are proved live on every queue by probes; only then the counted messages are sent, so that
nothing depends on how long a client takes to find its queues.
"""
import itertools
import json
import time

import compare
import remoting
import resets
import servers
from drivers import Driver, Failed

QUEUES = 4
STALL_S = 60         # a case is given up when nothing at all happens for so long
QUIET_S = 2          # how long a finished consumer is watched for messages too many
PROBE = "probe-"
TAGS = ["A", "B", "C"]
DELAY_LEVEL, DELAY_MS, DELAY_SLACK_MS = 2, 5_000, 15_000
RECALL_DELAY_MS = 10_000  # each message is recalled right behind its send
RETRIES = 2
DEAD_LETTER_S = 180  # where the broker sets the delays: 10 s, 30 s, and the client's own rebalancing before each
SHARDS = 8
PRODUCERS = 8
RESENT_MESSAGES, RESENDS = 600, 1000  # that many messages take a minute or so, and are sent again at least so often
# The ways in which each producer compresses, and the bits of `sysFlag` that say so.
COMPRESSION_BITS = 0x701
COMPRESSIONS = {"java-4.9.8": {"ZLIB": 0x301}, "java-5.5.0": {"ZLIB": 0x301, "LZ4": 0x101, "ZSTD": 0x201},
                "go-2.1.2": {"ZLIB": 0x001}}  # it tells no kind, which is zlib
TRACE_TOPIC = "RMQ_SYS_TRACE_TOPIC"


class Bench:
    """One client in one case: names of its own, the driver processes, and the questions asked of them."""

    def __init__(self, servers, client, case, count, directory, environment, attributes=""):
        self.servers, self.client, self.count = servers, client, count
        self.directory, self.environment = directory, environment
        name = f"{case}-{client.name}".replace(".", "_")
        self.topic, self.group, self.prefix = f"t-{name}", f"g-{name}", name
        self.drivers = []
        remoting.create_topic(servers.namesrv, self.topic, QUEUES, attributes)

    def driver(self, role, verb, options):
        name = f"{role}-{len(self.drivers)}"
        words = [str(word) for word in [*self.client.command, verb, "--namesrv", self.servers.namesrv, *options]]
        driver = Driver(name, words, self.environment, self.directory)
        self.drivers.append(driver)
        return driver

    def producer(self, *options, first=0, count=None, topic=None):
        count = self.count if count is None else count
        return self.driver("producer", "produce", [
            "--topic", topic or self.topic, "--prefix", self.prefix, "--first", first, "--count", count, *options])

    def consumer(self, *options, topic=None, group=None):
        consumer = self.driver("consumer", "consume", ["--topic", topic or self.topic, "--group", group or self.group, *options])
        consumer.await_event("ready", STALL_S)
        return consumer

    def sent(self, producer):
        """Waits for the producer's end; a refused send fails the case."""
        producer.await_event("done", STALL_S)
        failures = producer.seen("fail")
        if failures:
            raise Failed(f"{len(failures)} sends failed, first: {failures[0]}")
        sent = producer.seen("ack", "sent")
        if len(sent) != len({line["body"] for line in sent}):
            raise Failed("a message was acknowledged twice")
        return sent

    @staticmethod
    def received(*consumers):
        """The counted messages, in the order in which each consumer printed them."""
        return [line for consumer in consumers for line in consumer.seen("message") if not line["body"].startswith(PROBE)]

    def probe(self, consumers, everyone=False, tag=None, shared=False):
        """Sends one probe to each queue, again and again, until one round is received exactly as the model wants it.

        `shared`: whoever is quicker takes a queue's messages.
        """
        deadline = time.monotonic() + STALL_S
        for attempt in itertools.count():
            address = self.servers.leader()
            bodies = [f"{PROBE}{attempt}-{queue}" for queue in range(QUEUES)]
            for queue, body in enumerate(bodies):
                remoting.send(address, self.topic, queue, body, tag)
            round_end = time.monotonic() + 2
            while time.monotonic() < round_end:
                takers = [[line["body"] for line in consumer.seen("message") if line["body"] in bodies and not line.get("retry")]
                          for consumer in consumers]
                if everyone:
                    complete = all(sorted(taken) == bodies for taken in takers)
                else:
                    equal = all(len(taken) == QUEUES // len(consumers) for taken in takers)
                    complete = sorted(sum(takers, [])) == bodies and (shared or equal)
                if complete:
                    return
                time.sleep(0.05)
            if time.monotonic() > deadline:
                raise Failed(f"consumers never shared {QUEUES} queues as they should: last probes went {takers}")

    def await_deliveries(self, wanted, *consumers):
        """Until so many deliveries are there, then a little longer for those too many. Fewer is for the comparison to judge."""
        progress, deadline = -1, 0
        while (found := len(self.received(*consumers))) < wanted:
            if found != progress:
                progress, deadline = found, time.monotonic() + STALL_S
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
        quiet_since = time.monotonic()
        while time.monotonic() < quiet_since + QUIET_S:
            if (now := len(self.received(*consumers))) != found:
                found, quiet_since = now, time.monotonic()
            time.sleep(0.05)

    def close(self):
        for driver in self.drivers:
            driver.close()

    def kill(self):
        for driver in self.drivers:
            driver.kill()


def demand(problems):
    if problems:
        raise Failed("; ".join(problems))


def one_consumer(bench, produce=(), consume=(), tag=None):
    """The common course: a live consumer, the sends, the deliveries."""
    consumer = bench.consumer(*consume)
    bench.probe([consumer], tag=tag)
    sent = bench.sent(bench.producer(*produce))
    bench.await_deliveries(len(sent), consumer)
    return sent, bench.received(consumer)


def sync(bench):
    sent, received = one_consumer(bench, ["--mode", "sync"])
    demand(compare.exactly_once(sent, received) + compare.one_value_per_place(received) + compare.sends_in_order(sent))


def async_(bench):
    sent, received = one_consumer(bench, ["--mode", "async"])
    demand(compare.exactly_once(sent, received) + compare.one_value_per_place(received))


def oneway(bench):
    sent, received = one_consumer(bench, ["--mode", "oneway"])
    demand(compare.exactly_once(sent, received) + compare.one_value_per_place(received))


def batch(bench):
    sent, received = one_consumer(bench, ["--mode", "batch"])
    demand(compare.exactly_once(sent, received) + compare.one_value_per_place(received))


def tags_keys(bench):
    """Two of three tags are asked for; exactly those come, each with its tag and its key."""
    consumer = bench.consumer("--tag", "A || B")
    bench.probe([consumer], tag="A")
    sent = bench.sent(bench.producer("--tags", ",".join(TAGS), "--keys"))
    wanted = [line for line in sent if TAGS[line["n"] % len(TAGS)] in ("A", "B")]
    bench.await_deliveries(len(wanted), consumer)
    received = bench.received(consumer)
    demand(compare.exactly_once(wanted, received)
           + compare.as_labelled(received, lambda n: (TAGS[n % len(TAGS)], f"key-{bench.prefix}-{n}")))


def sql92(bench):
    """An expression over properties, which only the broker evaluates; and one that makes no sense stops the start, if the client
    asks the broker about it."""
    if bench.client.checks_expressions:
        bad_expression_is_refused(bench)
    consumer = bench.consumer("--sql", "TAGS NOT IN ('C') AND (KEYS IS NULL OR KEYS STARTSWITH 'key-')")
    bench.probe([consumer], tag="A")
    sent = bench.sent(bench.producer("--tags", ",".join(TAGS), "--keys"))
    wanted = [line for line in sent if TAGS[line["n"] % len(TAGS)] != "C"]
    bench.await_deliveries(len(wanted), consumer)
    received = bench.received(consumer)
    demand(compare.exactly_once(wanted, received)
           + compare.as_labelled(received, lambda n: (TAGS[n % len(TAGS)], f"key-{bench.prefix}-{n}")))


def bad_expression_is_refused(bench):
    refused = bench.driver("consumer", "consume", ["--topic", bench.topic, "--group", f"{bench.group}-bad", "--sql", "TAGS = 'A' AND"])
    refused.await_event("error", STALL_S)
    why = refused.seen("error")[0]["error"]
    demand([] if "CODE: 23" in why and "Invalid MessageSelector" in why else [f"a bad expression was refused so: {why}"])


def clustering(bench):
    consumers = [bench.consumer(), bench.consumer()]
    bench.probe(consumers)
    sent = bench.sent(bench.producer())
    bench.await_deliveries(len(sent), *consumers)
    demand(compare.exactly_once(sent, bench.received(*consumers)))
    queues = [{line["queue"] for line in bench.received(consumer)} for consumer in consumers]
    if queues[0] & queues[1] or len(queues[0]) != QUEUES // 2 or len(queues[1]) != QUEUES // 2:
        raise Failed(f"the two consumers served the queues {queues}")


def broadcasting(bench):
    consumers = [bench.consumer("--model", "broadcasting", "--instance", f"{bench.group}-{i}") for i in range(2)]
    bench.probe(consumers, everyone=True)
    sent = bench.sent(bench.producer())
    for consumer in consumers:
        bench.await_deliveries(len(sent), consumer)
    demand([problem for consumer in consumers for problem in compare.exactly_once(sent, bench.received(consumer))])


def orderly(bench):
    sent, received = one_consumer(bench, ["--shards", SHARDS], ["--orderly"])
    demand(compare.exactly_once(sent, received) + compare.deliveries_in_order(received)
           + compare.shards_in_order(received, SHARDS))


def delay(bench):
    sent, received = one_consumer(bench, ["--delay-level", DELAY_LEVEL])
    demand(compare.exactly_once(sent, received, same=["id"])
           + compare.delays(sent, received, DELAY_MS, DELAY_MS + DELAY_SLACK_MS))


def recall(bench):
    """Every third of the delayed messages is recalled before its time: nobody sees it, and the others come when they are due."""
    consumer = bench.consumer()
    bench.probe([consumer])
    producer = bench.producer("--deliver-after-ms", RECALL_DELAY_MS, "--recall-every", 3)
    sent = bench.sent(producer)
    recalled = {line["body"]: line["id"] for line in producer.seen("recalled")}
    demand([f"{len(recalled)} recalled of {bench.count}"] if len(recalled) != len(range(0, bench.count, 3)) else [])
    demand([f"{line['body']}: recalled as {recalled[line['body']]}" for line in sent
            if line["body"] in recalled and recalled[line["body"]] != line["id"]])
    kept = [line for line in sent if line["body"] not in recalled]
    bench.await_deliveries(len(kept), consumer)
    received = bench.received(consumer)
    demand(compare.exactly_once(kept, received, same=["id"])
           + compare.delays(kept, received, RECALL_DELAY_MS - 1, RECALL_DELAY_MS + DELAY_SLACK_MS))


def transaction(bench):
    demand(committed(bench, lambda: None))


def transaction_leader_kill(bench):
    """The leader is killed before it has asked: the next one asks, through whichever broker the producer is connected to."""
    try:
        demand(committed(bench, bench.servers.kill_leader))
    finally:
        bench.servers.revive()


def committed(bench, before_they_are_asked):
    """Of five transactions three are committed, one of them only when its producer is asked; these come once, the rest never."""
    consumer = bench.consumer()
    bench.probe([consumer])
    producer = bench.producer("--mode", "transaction", "--group", f"{bench.group}-producers")
    sent = bench.sent(producer)
    before_they_are_asked()
    wanted = [line for line in sent if line["n"] % 5 in (0, 2, 4)]
    bench.await_deliveries(len(wanted), consumer)
    left_open = {line["body"] for line in sent if line["n"] % 5 in (2, 3)}
    asked = lambda: {line["body"] for line in producer.seen("check")}
    remoting.await_condition(lambda: left_open <= asked(), STALL_S, "a question about each transaction that was left open")
    return compare.exactly_once(wanted, bench.received(consumer), same=["id", "queue"])


def request_reply(bench):
    """Each request gets its own reply, which the consumer sends to the cluster's reply topic and the broker pushes."""
    consumer = bench.consumer("--reply")
    bench.probe([consumer])
    asked = bench.sent(bench.producer("--mode", "request"))
    bench.await_deliveries(len(asked), consumer)
    demand([f"{line['body']} was answered with {line['reply']}" for line in asked if line["reply"] != f"re: {line['body']}"]
           + [f"a reply failed: {line['error']}" for line in consumer.seen("error")]
           + compare.exactly_once(asked, bench.received(consumer)))


def trace(bench):
    """What a producer with its trace switched on has sent is told in the topic of traces, by unique key; and so is what a consumer
    with its own switched on was shown, before and after."""
    reader = bench.consumer(topic=TRACE_TOPIC, group=f"{bench.group}-traces")
    sent, received = one_consumer(bench, ["--trace"], ["--trace"])
    ids = {line["id"] for line in sent}
    told = lambda: compare.traced(line["body"] for line in reader.seen("message"))
    remoting.await_condition(lambda: all(ids <= found for found in told().values()), STALL_S, "three traces of each message")
    demand(compare.exactly_once(sent, received))


def dead_letters(bench, count, group=None):
    """What lies in the group's dead-letter topic, once so many are there."""
    topic = f"%DLQ%{group or bench.group}"
    remoting.await_condition(lambda: remoting.route(bench.servers.namesrv, topic), DEAD_LETTER_S, f"a route of {topic}")
    reader = bench.consumer(topic=topic, group=f"{bench.group}-dlq")
    bench.await_deliveries(count, reader)
    return bench.received(reader)


def retry_dlq(bench):
    """Every attempt fails: the first delivery, the retries, then the dead-letter topic, each once."""
    remoting.create_group(bench.servers.namesrv, bench.group, RETRIES)
    consumer = bench.consumer("--fail-times", 99, "--max-reconsume", RETRIES, "--retry-level", 1)
    bench.probe([consumer])
    sent = bench.sent(bench.producer())
    dead, received = dead_letters(bench, len(sent)), bench.received(consumer)
    shown = sent
    if not bench.client.sees_every_attempt:  # perhaps none of a message's: then only the dead letter tells of them
        bodies = {line["body"] for line in received}
        shown = [line for line in sent if line["body"] in bodies]
    demand(compare.exactly_once(sent, dead, same=["id"]) + compare.tried(dead, RETRIES + 1)
           + compare.at_least_once(shown, received, same=["id"])
           + compare.retried(received, RETRIES, every=bench.client.sees_every_attempt))


def namespace(bench):
    """A client's namespace is a prefix to the servers: of its topic, of its group and so of what it retries and gives up.
    The same names without it are somebody else's."""
    prefix = f"ns-{bench.prefix}%"
    options = ["--namespace", prefix[:-1]]
    remoting.create_topic(bench.servers.namesrv, prefix + bench.topic, QUEUES)
    remoting.create_group(bench.servers.namesrv, prefix + bench.group, RETRIES)
    consumer = bench.consumer("--fail-times", 99, "--max-reconsume", RETRIES, "--retry-level", 1, *options)
    outsider = bench.consumer(topic=bench.topic, group=bench.group)
    bench.probe([outsider])
    sent = bench.sent(bench.producer(*options))
    dead, received = dead_letters(bench, len(sent), prefix + bench.group), bench.received(consumer)
    topics, shown = {line["topic"] for line in received}, bench.topic if bench.client.hides_namespace else prefix + bench.topic
    demand(compare.exactly_once(sent, dead, same=["id"]) + compare.tried(dead, RETRIES + 1)
           + compare.at_least_once(sent, received, same=["id"]) + compare.retried(received, RETRIES)
           + ([f"a client that has a namespace is shown {topics}"] if topics != {shown} else [])
           + ([] if remoting.route(bench.servers.namesrv, f"%RETRY%{prefix}{bench.group}") else ["no retry topic"])
           + compare.sample("consumed without the namespace", [line["body"] for line in bench.received(outsider)]))


def namespace_v2(bench):
    """5.x may tell its namespace in every header instead (`ns`, `nsd`), and leaves the names as they are."""
    options = ["--namespace-v2", f"ns-{bench.prefix}"]
    sent, received = one_consumer(bench, options, options)
    demand(compare.exactly_once(sent, received) + compare.one_value_per_place(received))


def compressed(bench):
    """Bodies that a producer compresses in each way it knows are stored as they are: consumers get them as they were, and
    `raftmq admin` shows them so, from the topic and from the dead letters."""
    kinds = COMPRESSIONS[bench.client.name]
    remoting.create_group(bench.servers.namesrv, bench.group, RETRIES)
    consumer = bench.consumer("--fail-times", 99, "--max-reconsume", RETRIES, "--retry-level", 1)
    bench.probe([consumer])
    by_kind = {kind: bench.sent(bench.producer("--compress", kind, first=first, count=count))
               for kind, (first, count) in zip(kinds, parts(bench.count, len(kinds)))}
    sent = sum(by_kind.values(), [])
    dead, received = dead_letters(bench, len(sent)), bench.received(consumer)
    demand(compare.exactly_once(sent, dead, same=["id"]) + compare.at_least_once(sent, received, same=["id"])
           + compare.retried(received, RETRIES))
    buried = {line["body"]: line["offset_id"] for line in dead}
    for kind, flag in kinds.items():
        first = by_kind[kind][0]
        for words in (["queryMsgByUniqueKey", "-t", bench.topic, "-i", first["id"]],
                      ["dlqShow", "-g", bench.group, "-i", buried[first["body"]]]):
            shown, = json.loads(bench.servers.admin(*words, "-o", "json"))
            found = (shown["body"], shown["sysFlag"] & COMPRESSION_BITS)
            demand([] if found == (first["body"], flag) else [f"{words[0]} shows {found} of {first['body']}, {kind}"])


def restart(bench):
    """A consumer that comes back goes on where the stored offsets say: nothing again, nothing left out."""
    half = bench.count // 2
    consumer = bench.consumer()
    bench.probe([consumer])
    sent = bench.sent(bench.producer(count=half))
    bench.await_deliveries(len(sent), consumer)
    before = bench.received(consumer)
    everything = len(consumer.seen("message"))
    consumer.close()
    await_stored(bench, everything)
    sent += bench.sent(bench.producer(first=half, count=bench.count - half))
    again = bench.consumer()
    bench.await_deliveries(bench.count - half, again)
    demand(compare.exactly_once(sent, before + bench.received(again)))


def lite_pull(bench):
    """One that polls and commits by itself; where it has stopped to commit the next one of the group goes on."""
    quarters = parts(bench.count, 4)
    committed, polled, rest = quarters[0][1] + quarters[1][1], quarters[2][1], quarters[3][1]
    consumer = bench.consumer("--lite", "--commit-below", committed)
    bench.probe([consumer])
    sent = bench.sent(bench.producer(count=committed))
    bench.await_deliveries(committed, consumer)
    offsets = len(consumer.seen("message"))
    left = bench.sent(bench.producer(first=committed, count=polled))
    bench.await_deliveries(committed + polled, consumer)
    await_stored(bench, offsets)
    consumer.close()
    await_stored(bench, offsets)
    received = bench.received(consumer)
    demand(compare.exactly_once(sent + left, received) + compare.one_value_per_place(received))
    producer = bench.producer(first=committed + polled, count=rest)
    following = bench.consumer("--lite")
    left += bench.sent(producer)
    bench.await_deliveries(len(left), following)
    following.close()
    await_stored(bench, offsets + len(left))
    received = bench.received(following)
    demand(compare.exactly_once(left, received) + compare.one_value_per_place(received))


def await_stored(bench, total):
    """Until the offsets that the broker keeps of the group add up to `total`."""
    offsets = []

    def complete():
        address = bench.servers.leader()
        offsets[:] = [remoting.stored_offset(address, bench.group, bench.topic, queue) or 0 for queue in range(QUEUES)]
        return sum(offsets) == total

    try:
        remoting.await_condition(complete, STALL_S, f"stored offsets that add up to {total}")
    except TimeoutError as late:
        raise Failed(f"{late}; stored: {offsets}") from late


def leader_kill(bench):
    """The leader is killed in the middle of sends and consumption. Nothing acknowledged may be lost; repeats may be."""
    consumer = bench.consumer()
    bench.probe([consumer])
    leader_killed(bench, consumer)


def lite_pull_leader_kill(bench):
    """As `leader-kill`, with a consumer that polls, and commits behind each poll. Both clients ask for routes every second, not every
    thirty; 4.9 may still wait half a minute for a poll that the dead leader held."""
    soon = ["--route-interval-ms", 1_000]
    consumer = bench.consumer("--lite", *soon)
    bench.probe([consumer])
    leader_killed(bench, consumer, produce=soon)


def heartbeat_v2(bench):
    """As `leader-kill`, with two consumers that have told every broker all about themselves once, and from then on send
    fingerprints of it. Both stay members, also at the broker that was started again and knows nothing of them."""
    consumers = [bench.consumer("--heartbeat-v2") for _ in range(2)]
    told = lambda consumer: [line["to"].split() for line in consumer.seen("short-heartbeats")]
    everybody = lambda: all(told(consumer) and len(told(consumer)[-1]) == len(bench.servers.brokers) for consumer in consumers)
    remoting.await_condition(everybody, STALL_S, "short heartbeats to every broker")
    bench.probe(consumers)
    leader_killed(bench, *consumers)
    bench.probe(consumers)
    for address in bench.servers.brokers:
        remoting.await_condition(lambda: len(remoting.consumers(address, bench.group)) == len(consumers), STALL_S,
                                 f"{address} knows {len(consumers)} consumers")


def leader_killed(bench, *consumers, produce=()):
    producer = bench.producer("--retry-failed", *produce)
    remoting.await_condition(lambda: len(producer.seen("ack")) >= bench.count // 3, STALL_S, "a third of the sends")
    bench.servers.kill_leader()
    try:
        producer.await_event("done", 2 * STALL_S)
        acknowledged = producer.seen("ack")
        bodies = {line["body"] for line in acknowledged}
        deadline = time.monotonic() + 2 * STALL_S
        while bodies - {line["body"] for line in bench.received(*consumers)} and time.monotonic() < deadline:
            time.sleep(0.05)
        received = bench.received(*consumers)
        # Not the offset id: it names the replica that serves the message, and that has changed.
        lost = compare.at_least_once(acknowledged, received, same=["id", "queue", "offset"])
        demand(lost + compare.one_value_per_place(received) + compare.sends_in_order(acknowledged))
    finally:
        bench.servers.revive()


def idempotent_send(bench):
    """Proxies reset the connection behind most sends, and the leader is killed: the producer sends each message again and
    again under its unique key, on a topic that takes that for one message."""
    binary = bench.servers.processes[0].command[0]
    system = servers.Product(binary, bench.directory, resets.RESET_HOST)
    proxies = resets.Resets(system.brokers, servers.BIND_HOST, seed=bench.count)
    namesrv = resets.pass_through(system.namesrv, servers.BIND_HOST)
    inner = None
    wanted, patience_s = min(bench.count, RESENT_MESSAGES), 10 * STALL_S
    try:
        system.start()
        inner = Bench(system, bench.client, "idempotent-send", wanted, bench.directory, bench.environment,
                      attributes="+idempotent.send=true")
        producers = [inner.producer("--retry-failed", "--group", f"{inner.group}-{part}", first=first, count=count)
                     for part, (first, count) in enumerate(parts(wanted, PRODUCERS))]
        acknowledged = lambda: sum((producer.seen("ack") for producer in producers), [])
        remoting.await_condition(lambda: len(acknowledged()) >= wanted // 3, patience_s, "a third of the sends")
        system.kill_leader()
        for producer in producers:
            producer.await_event("done", patience_s)
        proxies.ends = True
        system.revive()
        sent, resends = acknowledged(), proxies.resends()
        print(f"    {len(sent)} messages, {proxies.resets} connections reset, {resends} resends", flush=True)
        if resends < RESENDS * wanted // RESENT_MESSAGES:
            raise Failed(f"only {resends} resends of {len(sent)} messages")
        consumer = inner.consumer()
        inner.await_deliveries(len(sent), consumer)
        # Not the offset id: it names the replica that answers, and that has changed.
        demand(compare.exactly_once(sent, inner.received(consumer), same=["id", "queue", "offset"]))
    finally:
        if inner:
            inner.kill()
        system.stop()
        proxies.close()
        namesrv.close()


def parts(count, of):
    """(first, count) of `of` nearly equal parts."""
    bounds = [count * part // of for part in range(of + 1)]
    return [(first, end - first) for first, end in zip(bounds, bounds[1:])]


def pop_consumers(bench, count, *options):
    """Consumers of a group that pops: any of them may get any message, as long as nobody else has it."""
    remoting.set_request_mode(bench.servers.namesrv, bench.group, bench.topic, "POP")
    consumers = [bench.consumer("--pop", *options) for _ in range(count)]
    bench.probe(consumers, shared=True)
    return consumers


def pop(bench):
    """Two that pop from the same queues get every message once, and when all is acknowledged the stored offsets say so."""
    consumers = pop_consumers(bench, 2)
    sent = bench.sent(bench.producer())
    bench.await_deliveries(len(sent), *consumers)
    received = bench.received(*consumers)
    demand(compare.exactly_once(sent, received) + compare.one_value_per_place(received))
    await_stored(bench, sum(len(consumer.seen("message")) for consumer in consumers))


def pop_dlq(bench):
    """Every attempt fails: the client asks for each message again later, and the broker gives up after the last time."""
    remoting.create_group(bench.servers.namesrv, bench.group, RETRIES)
    consumer, = pop_consumers(bench, 1, "--fail-times", 99, "--max-reconsume", RETRIES)
    sent = bench.sent(bench.producer())
    dead, received = dead_letters(bench, len(sent)), bench.received(consumer)
    demand(compare.exactly_once(sent, dead, same=["id"]) + compare.tried(dead, RETRIES + 1)
           + compare.at_least_once(sent, received) + compare.retried(received, RETRIES))


def pop_leader_kill(bench):
    """As `leader-kill`, with messages in the hands of a consumer that pops."""
    consumer, = pop_consumers(bench, 1)
    leader_killed(bench, consumer)


CASES = {
    "sync": sync,
    "async": async_,
    "oneway": oneway,
    "tags-keys": tags_keys,
    "batch": batch,
    "clustering": clustering,
    "broadcasting": broadcasting,
    "orderly": orderly,
    "delay": delay,
    "recall": recall,
    "retry-dlq": retry_dlq,
    "restart": restart,
    "leader-kill": leader_kill,
    "sql92": sql92,
    "transaction": transaction,
    "transaction-leader-kill": transaction_leader_kill,
    "idempotent-send": idempotent_send,
    "request-reply": request_reply,
    "trace": trace,
    "compressed": compressed,
    "namespace": namespace,
    "namespace-v2": namespace_v2,
    "heartbeat-v2": heartbeat_v2,
    "lite-pull": lite_pull,
    "lite-pull-leader-kill": lite_pull_leader_kill,
    "pop": pop,
    "pop-dlq": pop_dlq,
    "pop-leader-kill": pop_leader_kill,
}

# Only these drivers have them. Not of the reference: it runs one broker, which has nobody to take over, with its defaults it
# refuses expressions and recalls and has no topic of traces, it stores what is sent again again, and what it pops it copies,
# so that a message has another place each time.
JAVA_AND_GO = {"sql92", "transaction", "transaction-leader-kill", "request-reply", "trace", "compressed", "namespace"}
JAVA_ONLY = {"leader-kill", "recall", "idempotent-send", "namespace-v2", "heartbeat-v2", "lite-pull", "lite-pull-leader-kill",
             "pop", "pop-dlq", "pop-leader-kill"}
