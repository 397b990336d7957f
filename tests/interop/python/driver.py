"""Drives the unmodified Python client (a binding of the C++ client): produce or consume, options as in the README.

Every client stays connected until its standard input ends, so that the caller decides when it has seen enough.
"""
import argparse
import json
import sys
import threading
import time

from rocketmq.client import Message, MessageModel, Producer, PushConsumer, RecvMessage, SendStatus

ASYNC_IN_FLIGHT = 32
BATCH_SIZE = 10
CONSUME_SUCCESS, RECONSUME_LATER = 0, 1

output = threading.Lock()


def line(event, **members):
    members = {name: value for name, value in members.items() if value is not None}
    with output:
        print(json.dumps({"event": event, **members}), flush=True)


def now():
    return int(time.time() * 1000)


def text(value):
    return value.decode() if isinstance(value, bytes) else value


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["produce", "consume"])
    parser.add_argument("--namesrv", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", default="interop-producer")
    parser.add_argument("--mode", default="sync", choices=["sync", "async", "oneway", "batch"])
    parser.add_argument("--prefix", default="")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--tags", default="", help="A,B,…: message n has tag n modulo their number")
    parser.add_argument("--keys", action="store_true")
    parser.add_argument("--delay-level", type=int, default=0)
    parser.add_argument("--shards", type=int, default=0, help="message n goes to the queue of shard n modulo this")
    parser.add_argument("--model", default="clustering", choices=["clustering", "broadcasting"])
    parser.add_argument("--instance")
    parser.add_argument("--orderly", action="store_true")
    parser.add_argument("--tag", default="*")
    parser.add_argument("--fail-times", type=int, default=0)
    # The client cannot carry these two: the group's own limit and the broker's own delays apply.
    parser.add_argument("--max-reconsume", type=int)
    parser.add_argument("--retry-level", type=int)
    return parser.parse_args()


def body(options, n):
    return f"{options.prefix}-{n}"


def message(options, n):
    result = Message(options.topic)
    result.set_body(body(options, n))
    tags = options.tags.split(",")
    if tags[n % len(tags)]:
        result.set_tags(tags[n % len(tags)])
    if options.keys:
        result.set_keys(f"key-{body(options, n)}")
    if options.delay_level:
        result.set_delay_time_level(options.delay_level)
    return result


def acknowledged(options, n, at, result):
    """The client tells neither the queue nor the offset id of what it sent."""
    if result.status != SendStatus.OK:
        line("fail", n=n, body=body(options, n), error=result.status.name)
    else:
        line("ack", n=n, body=body(options, n), id=result.msg_id or None, offset=result.offset, at=at)


def produce(options):
    producer = Producer(options.group)
    producer.set_namesrv_addr(options.namesrv)
    producer.start()
    {"sync": send_sync, "async": send_async, "oneway": send_oneway, "batch": send_batch}[options.mode](options, producer)
    line("done")
    sys.stdin.read()
    producer.shutdown()


def numbers(options):
    return range(options.first, options.first + options.count)


def send_sync(options, producer):
    for n in numbers(options):
        at = now()
        if options.shards:
            result = producer.send_orderly(message(options, n), n % options.shards)
        else:
            result = producer.send_sync(message(options, n))
        acknowledged(options, n, at, result)


def send_async(options, producer):
    window = threading.Semaphore(ASYNC_IN_FLIGHT)
    for n in numbers(options):
        window.acquire()

        def succeeded(result, n=n, at=now()):
            acknowledged(options, n, at, result)
            window.release()

        def failed(error, n=n):
            line("fail", n=n, body=body(options, n), error=str(error))
            window.release()

        producer.send_async(message(options, n), succeeded, failed)
    for _ in range(ASYNC_IN_FLIGHT):
        window.acquire()


def send_oneway(options, producer):
    for n in numbers(options):
        producer.send_oneway(message(options, n))
        line("sent", n=n, body=body(options, n))


def send_batch(options, producer):
    """A batch is acknowledged as one: only the offset of its first message is told."""
    everything = list(numbers(options))
    for start in range(0, len(everything), BATCH_SIZE):
        part = everything[start:start + BATCH_SIZE]
        at = now()
        result = producer.send_batch([message(options, n) for n in part])
        for i, n in enumerate(part):
            acknowledged(options, n, at, result._replace(msg_id=None, offset=result.offset + i))


def consume(options):
    broadcasting = options.model == "broadcasting"
    model = MessageModel.BROADCASTING if broadcasting else MessageModel.CLUSTERING
    consumer = PushConsumer(options.group, orderly=options.orderly, message_model=model)
    consumer.set_namesrv_addr(options.namesrv)
    # One message a callback: of a larger batch that fails the client sends the rest back unseen.
    consumer.set_message_batch_max_size(1)
    if options.instance:
        consumer.set_instance_name(options.instance)

    def received(_consumer, handle):
        m = RecvMessage(handle)
        line("message", body=text(m.body), id=text(m["UNIQ_KEY"]) or None, offset_id=None, topic=m.topic, queue=m.queue_id,
             offset=m.queue_offset, tag=text(m.tags) or None, keys=text(m.keys) or None, retry=m.reconsume_times, at=now())
        return RECONSUME_LATER if m.reconsume_times < options.fail_times else CONSUME_SUCCESS

    consumer.subscribe(options.topic, lambda m: None, options.tag)
    # `subscribe` re-raises from inside the C callback, which the C side takes for success: a callback that asks for a
    # retry must be registered as the client registers its own.
    consumer._register_callback(received)
    consumer.start()
    line("ready")
    sys.stdin.read()
    consumer.shutdown()


def main():
    options = parse()
    try:
        {"produce": produce, "consume": consume}[options.verb](options)
    except Exception as failure:
        line("error", error=f"{type(failure).__name__}: {failure}")
        sys.stdout.flush()
        raise SystemExit(1)


if __name__ == "__main__":
    main()
