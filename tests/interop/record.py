"""Keeps one frame of every kind that a client sends, as raw bytes: tests/golden/CLIENT/CODE-N.frame.

A relay listens where the brokers and the NameServer are advertised (RELAY_HOST) and passes every byte on, unchanged, to
where they are bound, same port. A kind is (request code, serialization, set of header field names): what varies inside
is values. Frames are kept as they were sent, so a golden test replays exactly what a real client said.

    tests/interop/run --record tests/golden --client go-2.1.2 --count 20

`record.py LISTEN TARGET DIR` relays one address by hand.
"""
import json
import socket
import struct
import sys
import threading
from collections import Counter
from pathlib import Path

import remoting

RELAY_HOST = "127.0.0.2"
MAX_KEPT_BYTES = 64 << 10
RESPONSE, JSON, ROCKETMQ = 1, 0, 1


def kind(frame):
    """What makes two frames the same kind, or None for what is not a client's request. `frame` has its length word."""
    word, = struct.unpack(">I", frame[4:8])
    serialization, header = word >> 24, frame[8:8 + (word & 0xFFFFFF)]
    if serialization == ROCKETMQ:
        code, flag, names = struct.unpack(">h", header[:2])[0], struct.unpack(">i", header[9:13])[0], binary_names(header)
    else:
        fields = json.loads(header)
        code, flag = int(fields["code"]), int(fields.get("flag", 0))
        if fields.get("language") == remoting.LANGUAGE:
            return None
        names = [*fields, *(f"extFields.{name}" for name in fields.get("extFields") or {})]
    return None if flag & RESPONSE else (code, serialization, tuple(sorted(names)))


def binary_names(header):
    remark_length, = struct.unpack(">i", header[13:17])
    position = 17 + remark_length + 4
    names = []
    while position < len(header):
        length, = struct.unpack(">h", header[position:position + 2])
        names.append(header[position + 2:position + 2 + length].decode())
        position += 2 + length
        position += 4 + struct.unpack(">i", header[position:position + 4])[0]
    return names


class Album:
    """The frames kept of one client."""

    def __init__(self, directory):
        self.directory = directory
        self.lock = threading.Lock()
        self.kinds, self.counts = set(), Counter()
        for path in sorted(directory.glob("*.frame")):
            found = kind(path.read_bytes())
            self.kinds.add(found)
            self.counts[found[0]] += 1

    def see(self, frame):
        found = kind(frame)
        with self.lock:
            if found is None or found in self.kinds or len(frame) > MAX_KEPT_BYTES:
                return
            self.kinds.add(found)
            self.counts[found[0]] += 1
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / f"{found[0]}-{self.counts[found[0]]}.frame").write_bytes(frame)


class Relays:
    """One relay an address; `now(client)` says whose frames pass from here on."""

    def __init__(self, addresses, target_host, directory):
        self.directory, self.album = directory, None
        for address in addresses:
            host, port = address.rsplit(":", 1)
            listener = socket.create_server((host, int(port)))
            start(self.accept, listener, (target_host, int(port)))

    def now(self, client):
        self.album = Album(self.directory / client)

    def accept(self, listener, target):
        while True:
            client, _ = listener.accept()
            try:
                server = socket.create_connection(target)
            except OSError:
                client.close()  # as the client would see it without the relay
                continue
            start(self.listen_in, client, server, self.album)
            start(passed_on, server, client)

    def listen_in(self, client, server, album):
        pending = b""
        for data in passed_on(client, server, each=True):
            pending += data
            while len(pending) >= 4 and len(pending) >= (whole := 4 + struct.unpack(">i", pending[:4])[0]):
                frame, pending = pending[:whole], pending[whole:]
                if album:
                    album.see(frame)


def start(target, *arguments):
    threading.Thread(target=lambda: list(target(*arguments) or []), daemon=True).start()


def passed_on(source, sink, each=False):
    """Copies until either side ends, then ends both; yields what passed."""
    try:
        while data := source.recv(64 << 10):
            sink.sendall(data)
            if each:
                yield data
    except OSError:
        pass
    finally:
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


if __name__ == "__main__":
    listen, target, directory = sys.argv[1:]
    relays = Relays([], "", Path(directory).parent)
    relays.now(Path(directory).name)
    host, port = listen.rsplit(":", 1)
    target_host, target_port = target.rsplit(":", 1)
    relays.accept(socket.create_server((host, int(port))), (target_host, int(target_port)))
