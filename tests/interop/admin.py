"""The real mqadmin of both release lines: what it prints of the cluster, compared by column with what is so.

Each command sees the same small world, made once a line: a topic whose queue q holds q + 1 messages, all consumed by a
group of that line's own Java client. Only columns that state facts are compared, not rates and times.
"""
import json
import os
import re
import subprocess
import time
from pathlib import Path

import clients
import remoting
import table
from drivers import Driver, Failed
from servers import CLUSTER_NAME, GROUP_NAME

QUEUES = 4
COMMAND_S = 60
TAG = "A"
BODIES = Path("/tmp/rocketmq/msgbodys")  # where mqadmin puts the body of a message that it shows


class World:
    def __init__(self, servers, line, home):
        self.servers, self.line, self.home = servers, line, home
        name = line.replace(".", "_")
        self.topic, self.group = f"admin-{name}", f"admin-group-{name}"
        self.placed = []  # response fields of each message sent, and its body
        remoting.create_topic(servers.namesrv, self.topic, QUEUES)
        for queue in range(QUEUES):
            for n in range(queue + 1):
                body = f"admin-{queue}-{n}"
                self.placed.append({**remoting.send(servers.leader(), self.topic, queue, body, TAG), "body": body})
        self.consume()

    def consumer(self, topic, group, *options):
        return self.driver("consume", topic, "--group", group, *options)

    def driver(self, verb, topic, *options):
        command = clients.java(clients.HOME / f"java-{self.line}", "interop.Main", self.home)
        words = [*map(str, command), verb, "--namesrv", self.servers.namesrv, "--topic", topic, *options]
        return Driver(f"admin-{verb}-{self.line}-{topic}", words, self.environment(), self.home)

    def consume(self):
        consumer = self.consumer(self.topic, self.group)
        try:
            remoting.await_condition(lambda: len(consumer.seen("message")) >= len(self.placed), COMMAND_S, "the world consumed")
        finally:
            consumer.close()

    def environment(self):
        return {**os.environ, "HOME": str(self.home)}

    def mqadmin(self, *words):
        command = [str(clients.HERE / "mqadmin"), self.line, *map(str, words), "-n", self.servers.namesrv]
        done = subprocess.run(command, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=COMMAND_S)
        if done.returncode != 0 or "Exception" in done.stderr:
            raise Failed(f"{' '.join(command[2:])} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[:400]}")
        return done.stdout


def rows(text):
    """The table that mqadmin prints: header line of `#Name`s, then values separated by blanks."""
    lines = text.splitlines()
    headers = [number for number, line in enumerate(lines) if line.startswith("#")]
    if not headers:
        raise Failed(f"no table in: {text.strip()[:400]}")
    names = [name.strip() for name in lines[headers[0]].split("#")[1:]]
    found = []
    for line in lines[headers[0] + 1:]:
        if not line.strip():
            break
        found.append(dict(zip(names, line.split())))
    return found


def fields(text):
    """`Name:   value` lines."""
    return {name: value.strip() for name, value in re.findall(r"^([A-Z][\w ]+):[ \t]+(.*)$", text, re.M)}


def equal(what, found, expected):
    if found != expected:
        raise Failed(f"{what}: {found} instead of {expected}")


def columns(text, *names):
    """Those columns of the printed table, as a sorted list of rows."""
    found = rows(text)
    missing = [name for name in names if found and name not in found[0]]
    if missing:
        raise Failed(f"no column {missing} in {text.strip()[:400]}")
    return sorted(tuple(row.get(name) for name in names) for row in found)


def cluster_list(world):
    expected = sorted((CLUSTER_NAME, name, broker_id, address)
                      for name, ids in remoting.brokers(world.servers.namesrv).items() for broker_id, address in ids.items())
    equal("brokers", columns(world.mqadmin("clusterList"), "Cluster Name", "Broker Name", "BID", "Addr"), expected)


def topic_route(world):
    printed = remoting.from_fastjson(world.mqadmin("topicRoute", "-t", world.topic).encode())
    served = remoting.route(world.servers.namesrv, world.topic)
    for name in ("brokerAddrs", "brokerName", "cluster"):
        equal(name, [data[name] for data in printed["brokerDatas"]], [data[name] for data in served["brokerDatas"]])
    for queue in printed["queueDatas"]:
        equal("queues", (queue["brokerName"], queue["perm"], queue["readQueueNums"], queue["writeQueueNums"]),
              (GROUP_NAME, 6, QUEUES, QUEUES))


def topic_list(world):
    printed = world.mqadmin("topicList").split()
    equal("topics listed once", printed.count(world.topic), 1)
    rows_of = [row for row in rows(world.mqadmin("topicList", "-c")) if row.get("Topic") == world.topic]
    equal("topic with cluster and group", [(row["Cluster Name"], row.get("Consumer Group")) for row in rows_of],
          [(CLUSTER_NAME, world.group)])


def update_topic(world):
    topic = f"{world.topic}-made"
    text = world.mqadmin("updateTopic", "-c", CLUSTER_NAME, "-t", topic, "-r", 6, "-w", 6)
    for address in remoting.masters(world.servers.namesrv):
        equal("answer", f"create topic to {address} success." in text, True)
    for fact in (f"topicName={topic}", "readQueueNums=6", "writeQueueNums=6", "perm=RW-"):
        equal(fact, fact in text, True)
    remoting.await_condition(lambda: remoting.route(world.servers.namesrv, topic), COMMAND_S, f"the route of {topic}")
    served = remoting.route(world.servers.namesrv, topic)["queueDatas"]
    equal("queues", [(queue["readQueueNums"], queue["writeQueueNums"]) for queue in served], [(6, 6)])


def topic_status(world):
    equal("queues", columns(world.mqadmin("topicStatus", "-t", world.topic), "Broker Name", "QID", "Min Offset", "Max Offset"),
          [(GROUP_NAME, str(queue), "0", str(queue + 1)) for queue in range(QUEUES)])


def consumer_progress(world):
    names = ("Topic", "Broker Name", "QID", "Broker Offset", "Consumer Offset", "Diff")
    equal("progress", columns(world.mqadmin("consumerProgress", "-g", world.group), *names),
          [(world.topic, GROUP_NAME, str(queue), str(queue + 1), str(queue + 1), "0") for queue in range(QUEUES)])


def update_sub_group(world):
    text = world.mqadmin("updateSubGroup", "-c", CLUSTER_NAME, "-g", f"{world.group}-made", "-r", 5)
    for address in remoting.masters(world.servers.namesrv):
        equal("answer", f"create subscription group to {address} success." in text, True)
    for fact in (f"groupName={world.group}-made", "retryMaxTimes=5", "consumeEnable=true", "retryQueueNums=1"):
        equal(fact, fact in text, True)


def shown(world, text, message):
    printed = fields(text)
    expected = {"OffsetID": message["msgId"], "Topic": world.topic, "Tags": f"[{TAG}]", "Queue ID": message["queueId"],
                "Queue Offset": message["queueOffset"], "Reconsume Times": "0", "Store Host": world.servers.leader()}
    equal("message", {name: printed.get(name) for name in expected}, expected)
    path = Path(printed["Message Body Path"])
    equal("body file", path.parent, BODIES)
    equal("body", path.read_text(), message["body"])
    path.unlink()


def query_by_id(world):
    """The 5.x line wants the topic, the 4.9 line refuses it."""
    message = world.placed[-1]
    topic = [] if world.line.startswith("4.") else ["-t", world.topic]
    shown(world, world.mqadmin("queryMsgById", "-i", message["msgId"], *topic), message)


def query_by_offset(world):
    message = world.placed[-1]
    shown(world, world.mqadmin("queryMsgByOffset", "-t", world.topic, "-b", GROUP_NAME, "-i", message["queueId"],
                               "-o", message["queueOffset"]), message)


def send_message(world):
    """Into a topic of its own: the other commands count on theirs."""
    topic = f"{world.topic}-sent"
    remoting.create_topic(world.servers.namesrv, topic, 1)
    sent = columns(world.mqadmin("sendMessage", "-t", topic, "-p", "hello", "-k", "K", "-c", TAG),
                   "Broker Name", "QID", "Send Result", "MsgId")
    equal("sends", [row[:3] for row in sent], [(GROUP_NAME, "0", "SEND_OK")])
    text = world.mqadmin("consumeMessage", "-t", topic, "-b", GROUP_NAME, "-i", 0, "-o", 0, "-c", 1)
    equal("sent and read back", re.findall(r"^MSGID: (\w+)", text, re.M), [sent[0][3]])


def keyed_message(world, name):
    """One message with the key K, in a topic of its own; its unique key, which is what the tool calls its id."""
    topic = f"{world.topic}-{name}"
    remoting.create_topic(world.servers.namesrv, topic, 1)
    sent = columns(world.mqadmin("sendMessage", "-t", topic, "-p", "hello", "-k", "K", "-c", TAG), "QID", "MsgId")
    equal("sends", len(sent), 1)
    return topic, sent[0][1]


def query_by_key(world):
    topic, unique_key = keyed_message(world, "by-key")
    found = columns(world.mqadmin("queryMsgByKey", "-t", topic, "-k", "K"), "Message ID", "QID", "Offset")
    equal("found", found, [(unique_key, "0", "0")])


def query_by_unique_key(world):
    topic, unique_key = keyed_message(world, "by-unique-key")
    printed = fields(world.mqadmin("queryMsgByUniqueKey", "-t", topic, "-i", unique_key))
    expected = {"Topic": topic, "Tags": f"[{TAG}]", "Keys": "[K]", "Queue ID": "0", "Queue Offset": "0"}
    equal("message", {name: printed.get(name) for name in expected}, expected)
    path = Path(printed["Message Body Path"])
    equal("body", path.read_text(), "hello")
    path.unlink()


def consume_message(world):
    queue = QUEUES - 1
    text = world.mqadmin("consumeMessage", "-t", world.topic, "-b", GROUP_NAME, "-i", queue, "-o", 0, "-c", 10)
    expected = [(message["queueOffset"], TAG, message["body"]) for message in world.placed if int(message["queueId"]) == queue]
    found = re.findall(r"^MSGID: .*queueOffset=(\d+),.*TAGS=(\w+).*?BODY: (.*)$", text, re.M)
    equal("messages", found, expected)


def sent_to_one_queue(world, name, count):
    topic = f"{world.topic}-{name}"
    remoting.create_topic(world.servers.namesrv, topic, 1)
    for n in range(count):
        remoting.send(world.servers.leader(), topic, 0, f"{name}-{n}", TAG)
    return topic, f"{world.group}-{name}"


def progress(world, group, topic):
    found = columns(world.mqadmin("consumerProgress", "-g", group), "Topic", "QID", "Broker Offset", "Consumer Offset")
    return [row[1:] for row in found if row[0] == topic]


def reset_offset_by_time(world):
    """While its consumer runs, which consumes all of it again, and goes on with what comes then."""
    topic, group = sent_to_one_queue(world, "reset", 5)
    consumer = world.consumer(topic, group)
    try:
        def seen(count):
            remoting.await_condition(lambda: len(consumer.seen("message")) >= count, COMMAND_S, f"{count} messages consumed")
        seen(5)
        text = world.mqadmin("resetOffsetByTime", "-g", group, "-t", topic, "-s", 1)
        equal("reset", columns(text, "brokerName", "queueId", "offset"), [(GROUP_NAME, "0", "0")])
        seen(10)
        remoting.send(world.servers.leader(), topic, 0, "reset-5", TAG)
        seen(11)
        bodies = [event["body"] for event in consumer.seen("message")]
        equal("bodies", sorted(bodies), sorted(2 * [f"reset-{n}" for n in range(5)] + ["reset-5"]))
    finally:
        consumer.close()
    remoting.await_condition(lambda: progress(world, group, topic) == [("0", "6", "6")], COMMAND_S, "the progress stored")


def skip_accumulated_message(world):
    topic, group = sent_to_one_queue(world, "skip", 5)
    world.mqadmin("updateSubGroup", "-c", CLUSTER_NAME, "-g", group)
    text = world.mqadmin("skipAccumulatedMessage", "-g", group, "-t", topic)
    equal("skipped", columns(text, "brokerName", "queueId", "offset"), [(GROUP_NAME, "0", "5")])
    consumer = world.consumer(topic, group)
    try:
        remoting.await_condition(lambda: consumer.seen("ready"), COMMAND_S, "the consumer runs")
        remoting.send(world.servers.leader(), topic, 0, "skip-5", TAG)
        remoting.await_condition(lambda: consumer.seen("message"), COMMAND_S, "a message consumed")
        equal("bodies", [event["body"] for event in consumer.seen("message")], ["skip-5"])
    finally:
        consumer.close()


def clone_group_offset(world):
    to = f"{world.group}-cloned"
    world.mqadmin("updateSubGroup", "-c", CLUSTER_NAME, "-g", to)
    text = world.mqadmin("cloneGroupOffset", "-s", world.group, "-d", to, "-t", world.topic, "-o", "true")
    equal("answer", "clone group offset success" in text, True)
    expected = [(str(queue), str(queue + 1), str(queue + 1)) for queue in range(QUEUES)]
    equal("progress", progress(world, to, world.topic), expected)


def set_consume_mode(world):
    """Of a group whose consumer runs and lets the broker divide the queues: it pulls, then pops, then is told to pull."""
    topic, group = sent_to_one_queue(world, "mode", 1)
    bodies = ["mode-0"]
    consumer = world.consumer(topic, group, "--pop")

    def seen(is_popped):
        found = consumer.seen("message")
        return [line["body"] for line in found if ("pop_ck" in line) == is_popped]

    def assigned():
        address = world.servers.leader()
        return [share for member in remoting.consumers(address, group) for share in remoting.assignments(address, group, topic, member)]

    def switched_to(mode, expected):
        text = world.mqadmin("setConsumeMode", "-c", CLUSTER_NAME, "-t", topic, "-g", group, "-m", mode)
        for address in remoting.masters(world.servers.namesrv):
            equal("answer", f"set consume mode to {address} success." in text, True)
        equal(f"assignment, {mode}", assigned(), expected)

    try:
        remoting.await_condition(lambda: "mode-0" in seen(False), COMMAND_S, "a message pulled")
        equal("assignment before", assigned(), [(0, "PULL")])
        switched_to("POP", [(-1, "POP")])  # -1: all queues of a broker

        def popped_one():  # the client asks for its assignment every 20 s
            bodies.append(f"mode-{len(bodies)}")
            remoting.send(world.servers.leader(), topic, 0, bodies[-1], TAG)
            remoting.await_condition(lambda: bodies[-1] in seen(True) + seen(False), COMMAND_S, f"{bodies[-1]} consumed")
            return seen(True)

        remoting.await_condition(popped_one, 2 * COMMAND_S, "a message popped")
        equal("consumed", sorted(set(seen(True) + seen(False))), sorted(bodies))
        switched_to("PULL", [(0, "PULL")])
    finally:
        consumer.close()


def query_trace(world):
    """What a producer and a consumer with their traces switched on told of each message: one sent it, the other consumed it."""
    topic, group = f"{world.topic}-traced", f"{world.group}-traced"
    remoting.create_topic(world.servers.namesrv, topic, 1)
    consumer = world.consumer(topic, group, "--trace")
    producer = world.driver("produce", topic, "--prefix", "traced", "--count", "2", "--group", f"{group}-producers", "--trace")
    try:
        remoting.await_condition(lambda: len(consumer.seen("message")) >= 2, COMMAND_S, "the traced messages consumed")
        for sent in producer.seen("ack"):
            expected = [("Pub", f"{group}-producers", "success"), ("Sub", group, "success")]
            found = []

            def told():  # a client tells its traces in batches, a little later
                try:
                    text = world.mqadmin("queryMsgTraceById", "-i", sent["id"])
                except Failed:
                    return False
                found[:] = [(words[0], words[1], words[-1]) for words in map(str.split, text.splitlines())
                            if words and words[0] in ("Pub", "Sub")]
                return len(found) >= len(expected)

            try:
                remoting.await_condition(told, COMMAND_S, "both traces")
            finally:
                equal(f"traces of {sent['body']}", sorted(found), expected)
    finally:
        producer.close()
        consumer.close()


COMMANDS = {
    "clusterList": cluster_list,
    "topicRoute": topic_route,
    "topicList": topic_list,
    "updateTopic": update_topic,
    "topicStatus": topic_status,
    "consumerProgress": consumer_progress,
    "updateSubGroup": update_sub_group,
    "queryMsgById": query_by_id,
    "queryMsgByOffset": query_by_offset,
    "queryMsgByKey": query_by_key,
    "queryMsgByUniqueKey": query_by_unique_key,
    "sendMessage": send_message,
    "consumeMessage": consume_message,
    "resetOffsetByTime": reset_offset_by_time,
    "skipAccumulatedMessage": skip_accumulated_message,
    "cloneGroupOffset": clone_group_offset,
    "setConsumeMode": set_consume_mode,
    "queryMsgTraceById": query_trace,
}
LACKS = {"4.9.8": {"setConsumeMode": "rocketmq-tools MQAdminStartup.java (no such command in 4.9, whose clients cannot pop)"}}

COLUMNS = [f"mqadmin-{line}" for line in clients.JAVA_LINES]


def run(servers, column, chosen, home):
    """Command -> cell for one release line."""
    cells, world = {}, None
    line = column.removeprefix("mqadmin-")
    lacks = LACKS.get(line, {})
    for name in chosen:
        began = time.monotonic()
        try:
            if name in lacks:
                cells[name] = table.lacks(lacks[name])
            else:
                world = world or World(servers, line, home)
                COMMANDS[name](world)
                cells[name] = table.PASS
        except (Failed, TimeoutError, OSError, KeyError, json.JSONDecodeError, remoting.Refused, subprocess.TimeoutExpired) as failure:
            cells[name] = " ".join(f"FAIL: {type(failure).__name__} {failure}".split())
        table.show(column, name, cells[name], time.monotonic() - began)
    return cells
