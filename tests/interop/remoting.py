"""The few remoting calls that prepare a case and look at it from outside: topics, groups, routes, stored offsets.

What is under test is driven by real clients only; this is the hand that sets the table.
"""
import itertools
import json
import re
import socket
import struct
import time

SEND_MESSAGE_V2 = 310
QUERY_CONSUMER_OFFSET = 14
UPDATE_TOPIC = 17
CONSUMER_LIST = 38
ROUTE = 105
CLUSTER = 106
UPDATE_GROUP = 200
QUERY_ASSIGNMENT = 400
SET_MESSAGE_REQUEST_MODE = 401

MASTER = "0"

LANGUAGE = "OTHER"  # no client of the table says so: the recorder knows our frames by it

opaques = itertools.count(1)


class Refused(Exception):
    def __init__(self, code, remark):
        super().__init__(f"code {code}: {remark}")
        self.code = code


def call(address, code, fields=None, body=b"", timeout_s=5):
    """One request on its own connection; returns (fields, body) of a success, raises Refused otherwise."""
    opaque = next(opaques)
    header = json.dumps({
        "code": code, "language": LANGUAGE, "version": 479, "opaque": opaque, "flag": 0,
        "extFields": {name: str(value) for name, value in (fields or {}).items()},
    }).encode()
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout_s) as connection:
        connection.sendall(struct.pack(">ii", 4 + len(header) + len(body), len(header)) + header + body)
        while True:
            length, = struct.unpack(">i", receive(connection, 4))
            frame = receive(connection, length)
            header_length = struct.unpack(">i", frame[:4])[0] & 0xFFFFFF
            response = json.loads(frame[4:4 + header_length])
            if response["opaque"] == opaque and response["flag"] & 1:
                break
    if response["code"] != 0:
        raise Refused(response["code"], response.get("remark"))
    return response.get("extFields") or {}, frame[4 + header_length:]


def receive(connection, count):
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("closed in the middle of a frame")
        data += part
    return data


def from_fastjson(body):
    """fastjson writes integer map keys without quotes."""
    return json.loads(re.sub(rb'([{,]\s*)(\d+):', rb'\1"\2":', body))


def brokers(namesrv):
    """Broker name -> {broker id: address}."""
    body = from_fastjson(call(namesrv, CLUSTER)[1])
    return {name: data["brokerAddrs"] for name, data in (body.get("brokerAddrTable") or {}).items()}


def masters(namesrv):
    return [addresses[MASTER] for addresses in brokers(namesrv).values() if MASTER in addresses]


def route(namesrv, topic):
    """The route, or None while nobody serves the topic."""
    try:
        return from_fastjson(call(namesrv, ROUTE, {"topic": topic, "acceptStandardJsonOnly": "true"})[1])
    except Refused as refused:
        if refused.code == 17:
            return None
        raise


def create_topic(namesrv, topic, queues, attributes=""):
    """Creates the topic everywhere and waits until the NameServer serves it so."""
    for address in masters(namesrv):
        call(address, UPDATE_TOPIC, {
            "topic": topic, "defaultTopic": "TBW102", "readQueueNums": queues, "writeQueueNums": queues, "perm": 6,
            "topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": "false", "attributes": attributes,
        })

    def served():
        data = (route(namesrv, topic) or {}).get("queueDatas") or []
        return data and all(queue["writeQueueNums"] == queues for queue in data)

    await_condition(served, 15, f"the route of {topic} with {queues} queues")


def create_group(namesrv, group, retry_max_times):
    body = json.dumps({
        "groupName": group, "consumeEnable": True, "consumeFromMinEnable": True, "consumeBroadcastEnable": True,
        "retryQueueNums": 1, "retryMaxTimes": retry_max_times, "brokerId": 0, "whichBrokerWhenConsumeSlowly": 1,
        "notifyConsumerIdsChangedEnable": True,
    }).encode()
    for address in masters(namesrv):
        call(address, UPDATE_GROUP, body=body)


def set_request_mode(namesrv, group, topic, mode):
    """What `mqadmin setConsumeMode` says, to every broker."""
    body = json.dumps({"consumerGroup": group, "mode": mode, "popShareQueueNum": 0, "topic": topic}).encode()
    for address in masters(namesrv):
        call(address, SET_MESSAGE_REQUEST_MODE, body=body)


def assignments(address, group, topic, client_id):
    """(queue, mode) of each share that the broker gives to that member of the group."""
    body = json.dumps({"topic": topic, "consumerGroup": group, "clientId": client_id, "strategyName": "AVG",
                       "messageModel": "CLUSTERING"}).encode()
    found = json.loads(call(address, QUERY_ASSIGNMENT, body=body)[1])["messageQueueAssignments"] or []
    return sorted((share["messageQueue"]["queueId"], share["mode"]) for share in found)


def send(address, topic, queue, body, tag=None):
    properties = f"TAGS\x01{tag}\x02" if tag else ""
    return call(address, SEND_MESSAGE_V2, {
        "a": "interop-probe", "b": topic, "c": "TBW102", "d": 4, "e": queue, "f": 0, "g": int(time.time() * 1000),
        "h": 0, "i": properties, "j": 0, "k": "false", "m": "false",
    }, body.encode())[0]


def consumers(address, group):
    try:
        return json.loads(call(address, CONSUMER_LIST, {"consumerGroup": group})[1])["consumerIdList"]
    except Refused:
        return []


def stored_offset(address, group, topic, queue):
    """The consumer offset that the broker keeps, or None."""
    fields = {"consumerGroup": group, "topic": topic, "queueId": queue, "setZeroIfNotFound": "false"}
    try:
        return int(call(address, QUERY_CONSUMER_OFFSET, fields)[0]["offset"])
    except Refused:
        return None


def await_condition(condition, seconds, what):
    """Asks until the answer is true. Connections refused meanwhile are answers too: not yet."""
    deadline = time.monotonic() + seconds
    last = None
    while time.monotonic() < deadline:
        try:
            if condition():
                return
            last = None
        except (OSError, Refused) as failure:
            last = failure
        time.sleep(0.05)
    raise TimeoutError(f"not within {seconds} s: {what}" + (f" (last: {last})" if last else ""))
