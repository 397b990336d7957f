"""Judges what was delivered against what was acknowledged, message by message, for every client alike.

Pure: lists of lines in, a list of differences out; an empty list is agreement. A message is known by its body, which
no two messages of a case share; whatever else both sides tell of it (ids, queue, offset) must agree too.
"""
from collections import Counter, defaultdict

SAMPLE = 3


def sample(what, found):
    if not found:
        return []
    shown = ", ".join(sorted(map(str, found))[:SAMPLE])
    return [f"{len(found)} {what}: {shown}{' …' if len(found) > SAMPLE else ''}"]


PLACE = ("offset_id", "queue", "offset")


def exactly_once(sent, received, same=("id", *PLACE)):
    """Every message sent was delivered once, nothing else was, and both sides tell the same of it.

    `same`: what must agree. A delayed message is acknowledged at another place than the one it is consumed from.
    """
    return at_least_once(sent, received, same) + once(received)


def at_least_once(sent, received, same=("id", *PLACE)):
    deliveries = defaultdict(list)
    for line in received:
        deliveries[line["body"]].append(line)
    bodies = {line["body"] for line in sent}
    problems = sample("sent but not consumed", bodies - deliveries.keys())
    problems += sample("consumed but never sent", deliveries.keys() - bodies)
    for name in same:
        wrong = set()
        for line in sent:
            told = [delivery[name] for delivery in deliveries[line["body"]] if delivery.get(name) is not None]
            if line.get(name) is not None and told and line[name] not in told:
                wrong.add(f"{line['body']} ({line[name]} acknowledged, {told[0]} consumed)")
        problems += sample(f"with another {name}", wrong)
    return problems


def once(received):
    counts = Counter(line["body"] for line in received)
    return sample("consumed more than once", {f"{body} ({count} times)" for body, count in counts.items() if count > 1})


def one_value_per_place(received):
    """One queue and offset, one message."""
    places = defaultdict(set)
    for line in received:
        if line.get("queue") is not None and line.get("offset") is not None:
            places[line["queue"], line["offset"]].add(line["body"])
    return sample("places with two messages", {f"{place}: {bodies}" for place, bodies in places.items() if len(bodies) > 1})


def sends_in_order(acknowledged):
    """A producer that awaits each send sees each queue's offsets grow."""
    return growing(acknowledged, "queue", "offset", "acknowledged out of order")


def deliveries_in_order(received):
    return growing(received, "queue", "offset", "consumed out of order in the queue")


def growing(lines, group, value, what):
    last, wrong = {}, set()
    for line in lines:
        if line.get(group) is None or line.get(value) is None:
            continue
        key = line[group]
        if key in last and line[value] <= last[key]:
            wrong.add(f"{line['body']} ({group} {key}: {line[value]} after {last[key]})")
        last[key] = line[value]
    return sample(what, wrong)


def shards_in_order(received, shards):
    """Messages of a shard lie in one queue and arrive as they were sent. A body ends in the message's number."""
    numbered = [{**line, "n": int(line["body"].rsplit("-", 1)[1])} for line in received]
    for line in numbered:
        line["shard"] = line["n"] % shards
    queues = defaultdict(set)
    for line in numbered:
        queues[line["shard"]].add(line["queue"])
    problems = sample("shards over several queues", {f"{shard}: {found}" for shard, found in queues.items() if len(found) > 1})
    return problems + growing(numbered, "shard", "n", "consumed out of order in the shard")


def as_labelled(received, label):
    """`label(n)` -> the tag and keys that message n was sent with."""
    wrong = set()
    for line in received:
        expected = label(int(line["body"].rsplit("-", 1)[1]))
        found = (line.get("tag"), line.get("keys"))
        if found != expected:
            wrong.add(f"{line['body']} ({found} instead of {expected})")
    return sample("with other labels", wrong)


def delays(sent, received, at_least_ms, at_most_ms):
    sent_at = {line["body"]: line["at"] for line in sent}
    waited = {line["body"]: line["at"] - sent_at[line["body"]] for line in received if line["body"] in sent_at}
    problems = sample(f"before {at_least_ms} ms", {f"{body} ({ms} ms)" for body, ms in waited.items() if ms < at_least_ms})
    return problems + sample(f"after {at_most_ms} ms", {f"{body} ({ms} ms)" for body, ms in waited.items() if ms > at_most_ms})


def retried(received, times, every=True):
    """Each message was delivered for attempts 0 … times, each once; not `every` one need have been shown."""
    attempts = defaultdict(list)
    for line in received:
        attempts[line["body"]].append(line["retry"])
    expected = list(range(times + 1))
    wrong = {
        f"{body} ({sorted(found)})" for body, found in attempts.items()
        if (sorted(found) != expected if every else len(found) != len(set(found)) or not set(found) <= set(expected))
    }
    return sample(f"with other attempts than {expected}", wrong)


# Where a record of a trace has the unique key of its message.
TRACED_ID = {"Pub": 5, "SubBefore": 5, "SubAfter": 2}


def traced(bodies):
    """What the topic of traces tells: for each kind of record, of which messages by unique key."""
    found = {kind: set() for kind in TRACED_ID}
    for record in "".join(bodies).split("\x02"):
        fields = record.split("\x01")
        if fields[0] in found and len(fields) > TRACED_ID[fields[0]]:
            found[fields[0]].add(fields[TRACED_ID[fields[0]]])
    return found


def tried(received, times):
    """Each message tells that it was consumed in vain so often."""
    return sample(f"not tried {times} times", {f"{line['body']} ({line['retry']})" for line in received if line["retry"] != times})
