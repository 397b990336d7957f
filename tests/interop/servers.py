"""The system under test: a NameServer and three brokers as processes; or, to prove the suite, the reference's own.

Both offer the same: `namesrv`, `start`, `stop`, `kill_leader`, `revive`. Clients reach brokers on `CLIENT_HOST`; brokers
bind `BIND_HOST`. The two differ when frames are recorded: a relay then sits on the one and passes on to the other, and
no frame needs rewriting because the brokers advertise the relay.
"""
import ctypes
import itertools
import os
import signal
import socket
import subprocess

import remoting
from drivers import Failed

BIND_HOST = "127.0.0.1"
READY_S = 60
STOP_S = 15
CLUSTER_NAME = "interop"
GROUP_NAME = "broker-a"

PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)


def die_with_parent():
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count):
    """Broker ports need the one two below too (the VIP port), so every port handed out has room around it."""
    found = []
    for port in itertools.count(20000 + os.getpid() % 5000, 10):
        if len(found) == count:
            return found
        if all(bindable(port + near) for near in (-2, 0, 1, 2)):
            found.append(port)


def bindable(port):
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
            return True
        except OSError:
            return False


class Process:
    def __init__(self, name, command, directory, environment=None):
        self.name, self.command, self.directory, self.environment = name, command, directory, environment
        self.log_path = directory / f"{name}.log"
        self.process = None

    def start(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            cwd=self.directory, env=self.environment, preexec_fn=die_with_parent)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def must_run(self):
        if self.process.poll() is not None:
            tail = self.log_path.read_text(errors="replace").strip().splitlines()[-5:]
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}: " + "\n".join(tail))


class Servers:
    """What the product and the reference have in common; a subclass fills `processes` and `brokers`."""

    members = 1  # broker ids to wait for

    def __init__(self, directory, client_host=BIND_HOST):
        self.directory, self.client_host = directory, client_host
        self.processes = []   # in starting order
        self.brokers = {}     # advertised address -> Process
        self.dead = []

    def addresses(self):
        """Where clients connect."""
        return [self.namesrv, *self.brokers]

    def start(self):
        for process in self.processes:
            process.start()
        self.await_ready()

    def await_ready(self):
        def complete():
            for process in self.processes:
                process.must_run()
            found = remoting.brokers(self.namesrv)
            return found and all(remoting.MASTER in ids and len(ids) == self.members for ids in found.values())

        remoting.await_condition(complete, READY_S, f"{self.members} broker(s) with a master at the NameServer")

    def leader(self):
        return remoting.masters(self.namesrv)[0]

    def kill_leader(self):
        """SIGKILL: no hand-over, no flush."""
        process = self.brokers[self.leader()]
        process.kill()
        self.dead.append(process)
        return process.name

    def revive(self):
        while self.dead:
            self.dead.pop().start()
        self.await_ready()

    def stop(self):
        for process in reversed(self.processes):
            process.stop()


class Product(Servers):
    members = 3

    def __init__(self, binary, directory, client_host=BIND_HOST):
        super().__init__(directory, client_host)
        namesrv, *ports = free_ports(1 + 3 * self.members)
        self.namesrv = f"{client_host}:{namesrv}"
        clients, peers, health = ports[:3], ports[3:6], ports[6:]
        config = self.write("nameserver.toml", f'listen = "{BIND_HOST}:{namesrv}"\n')
        self.processes.append(Process("nameserver", [binary, "nameserver", "-c", config], directory))
        for node in range(self.members):
            config = self.write(f"broker-{node + 1}.toml", broker_config(
                namesrv=f"{BIND_HOST}:{namesrv}", directory=directory / f"store-{node + 1}", node=node, client_host=client_host,
                clients=clients, peers=peers, health=health))
            process = Process(f"broker-{node + 1}", [binary, "broker", "-c", config], directory)
            self.processes.append(process)
            self.brokers[f"{client_host}:{clients[node]}"] = process

    def admin(self, *words):
        """What `raftmq admin` prints."""
        command = [self.processes[0].command[0], "admin", *words, "-n", self.namesrv]
        done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=READY_S)
        if done.returncode != 0:
            raise Failed(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()[:400]}")
        return done.stdout

    def write(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return path


def broker_config(namesrv, directory, node, client_host, clients, peers, health):
    """One broker's file. The only place that knows the configuration's keys."""
    founders = ", ".join(f'"{BIND_HOST}:{port}"' for port in peers)
    return f"""\
cluster = "{CLUSTER_NAME}"
namesrv = ["{namesrv}"]
http = "{BIND_HOST}:{health[node]}"

[[group]]
broker_name = "{GROUP_NAME}"
data_dir = "{directory}"
listen = "{BIND_HOST}:{clients[node]}"
vip = false
advertised_address = "{client_host}:{clients[node]}"
peer_listen = "{BIND_HOST}:{peers[node]}"
founders = [{founders}]
segment_mib = 64
"""


class Reference(Servers):
    """The reference's NameServer and one broker of the 5.x line, from the same package registry as the clients."""

    def __init__(self, java, directory, client_host=BIND_HOST):
        """`java(main_class, heap)` -> the command that runs a class of that line."""
        super().__init__(directory, client_host)
        namesrv, broker = free_ports(2)
        self.namesrv = f"{client_host}:{namesrv}"
        store = directory / "store"
        namesrv_config = directory / "namesrv.conf"
        namesrv_config.write_text(f"listenPort={namesrv}\nbindAddress={BIND_HOST}\n")
        broker_conf = directory / "broker.conf"
        broker_conf.write_text("".join(f"{key}={value}\n" for key, value in {
            "brokerClusterName": CLUSTER_NAME, "brokerName": GROUP_NAME, "brokerId": 0, "namesrvAddr": f"{BIND_HOST}:{namesrv}",
            "listenPort": broker, "bindAddress": BIND_HOST, "brokerIP1": client_host, "brokerIP2": client_host,
            "storePathRootDir": store, "storePathCommitLog": store / "commitlog", "mappedFileSizeCommitLog": 64 << 20,
            "autoCreateTopicEnable": "true", "haListenPort": broker + 1, "timerWheelEnable": "false",
        }.items()))
        environment = {**os.environ, "ROCKETMQ_HOME": str(directory), "HOME": str(directory)}
        environment.pop("ROCKETMQ_SERIALIZE_TYPE", None)  # meant for the clients; the server answers in JSON
        self.processes = [
            Process("namesrv", java("org.apache.rocketmq.namesrv.NamesrvStartup", "256m") + ["-c", namesrv_config], directory, environment),
            Process("broker", java("org.apache.rocketmq.broker.BrokerStartup", "1g") + ["-c", broker_conf], directory, environment),
        ]
        self.brokers[f"{client_host}:{broker}"] = self.processes[1]
