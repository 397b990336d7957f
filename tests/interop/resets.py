"""Proxies that reset the connection when they have forwarded a send: its sender learns nothing of what became of it.

One a broker, where that is advertised (RESET_HOST), same port. Three of four sends are struck, from a seeded source.
"""
import random
import re
import socket
import struct
import threading

import record

RESET_HOST = "127.0.0.3"
SENDS = {10, 310, 320}
STRUCK = 0.75
# In a JSON header the separators of properties are escaped.
UNIQUE_KEY = re.compile(rb"UNIQ_KEY(?:\x01|\\u0001)([0-9A-Fa-f]+)")


class Resets:
    """`sends`: how often each unique key came by. Nothing is struck any more once `ends` is set."""

    def __init__(self, addresses, target_host, seed):
        self.random, self.lock = random.Random(seed), threading.Lock()
        self.sends, self.resets, self.ends = {}, 0, False
        self.listeners = []
        for address in addresses:
            host, port = address.rsplit(":", 1)
            self.listeners.append(socket.create_server((host, int(port))))
            record.start(self.accept, self.listeners[-1], (target_host, int(port)))

    def close(self):
        for listener in self.listeners:
            listener.close()

    def resends(self):
        """Sends of a key that had been sent before."""
        with self.lock:
            return sum(self.sends.values()) - len(self.sends)

    def accept(self, listener, target):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(target)
            except OSError:
                reset(client)  # the nearest thing to the refusal that a client would see without the proxy
                continue
            record.start(self.forward, client, server)
            record.start(record.passed_on, server, client)

    def forward(self, client, server):
        pending = b""
        try:
            while data := client.recv(64 << 10):
                pending += data
                while len(pending) >= 4 and len(pending) >= (whole := 4 + struct.unpack(">i", pending[:4])[0]):
                    frame, pending = pending[:whole], pending[whole:]
                    server.sendall(frame)
                    if self.strikes(frame):
                        reset(client)
                        return
        except OSError:
            pass
        finally:
            for end in (client, server):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            client.close()

    def strikes(self, frame):
        found = record.kind(frame)
        key = UNIQUE_KEY.search(frame)
        if found is None or found[0] not in SENDS or key is None:
            return False
        with self.lock:
            self.sends[key[1]] = self.sends.get(key[1], 0) + 1
            struck = not self.ends and self.random.random() < STRUCK
            self.resets += struck
            return struck


def reset(connection):
    """No farewell: what is on its way back is lost with the connection. It must not be shut down first: that is an orderly
    end, after which Java 4.9 waits out its three seconds, whereas it fails at once on a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def pass_through(address, target_host):
    """A proxy that strikes nothing: the NameServer is advertised where the brokers are."""
    proxy = Resets([address], target_host, seed=0)
    proxy.ends = True
    return proxy
