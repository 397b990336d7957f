"""The real clients: how each is installed (by package name, into a git-ignored folder) and started, and what it lacks."""
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE.parent.parent / ".interop"

JAVA_LINES = ["4.9.8", "5.5.0"]
REFERENCE, REFERENCE_LINE = "reference", "5.5.0"

# What the drivers need of the heap is small, and a driver lives for seconds: start fast, stay small.
NO_POP = "rocketmq-client DefaultMQPushConsumer.java (no `setClientRebalance` in 4.9)"
JAVA_LACKS = {"4.9.8": {
    "recall": "rocketmq-client 4.9.8 DefaultMQProducer.java (no `recallMessage`)",
    "namespace-v2": "rocketmq-client 4.9.8 ClientConfig.java (no `setNamespaceV2`)",
    "heartbeat-v2": "rocketmq-client 4.9.8 ClientConfig.java (no `setUseHeartbeatV2`)",
    "pop": NO_POP, "pop-dlq": NO_POP, "pop-leader-kill": NO_POP,
}}
JAVA_FLAGS = ["-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
              "--add-opens=java.base/java.nio=ALL-UNNAMED", "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED"]


class Client:
    """One client of the table: `name` is its column, `lacks` tells the case and the file of the client that shows it."""

    def __init__(self, name, command, environment=None, lacks=None, sees_every_attempt=True, checks_expressions=True,
                 hides_namespace=True):
        self.name, self.command, self.environment, self.lacks = name, command, environment or {}, lacks or {}
        self.sees_every_attempt, self.checks_expressions = sees_every_attempt, checks_expressions
        self.hides_namespace = hides_namespace


def java(root, main_class, home, heap="256m"):
    return ["java", f"-Xmx{heap}", *JAVA_FLAGS, f"-Duser.home={home}", "-cp", f"{root}/classes:{root}/jars/*", main_class]


def reference(main_class, home, heap):
    return java(HOME / REFERENCE, main_class, home, heap)


def all_clients(home):
    """`home`: what the clients take for the user's home; logs and broadcast offsets land there."""
    return [
        *(Client(f"java-{line}", java(HOME / f"java-{line}", "interop.Main", home), lacks=JAVA_LACKS.get(line)) for line in JAVA_LINES),
        Client("go-2.1.2", [HOME / "go/driver"], {"GODEBUG": "", "ROCKETMQ_GO_LOG_LEVEL": "error"},
               # It shows a listener the names as the servers have them: consumer/push_consumer.go, resetRetryAndNamespace.
               checks_expressions=False, hides_namespace=False),
        # Its C++ core hands the listener a whole pull and, when one message fails, sends the rest back unseen.
        Client("python-0.4.4", [HOME / "python/bin/python", HERE / "python/driver.py"], sees_every_attempt=False),
        Client("node-3.12.0", ["node", HERE / "node/driver.js"], {"NODE_PATH": str(HOME / "node/node_modules")}, lacks={
            "oneway": "ali-ons lib/producer/mq_producer.js (`send` is the only send)",
            "batch": "ali-ons lib/producer/mq_producer.js (`send` takes one message)",
            "orderly": "ali-ons lib/consumer/mq_push_consumer.js (no queue locks, failures are sent back)",
        }),
    ]


def installed_by(column):
    """mqadmin comes with the Java client of its line."""
    return column.replace("mqadmin-", "java-")


def install(names):
    """Installs what is not there yet, or was made from other sources. Needs the registries only then."""
    for name in names:
        kind, _, version = name.partition("-")
        {"java": install_java, "go": install_go, "python": install_python, "node": install_node, REFERENCE: install_reference}[kind](version)


def unless_fresh(directory, sources):
    """Yields once if the folder was not made from exactly these sources, and stamps it after."""
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = directory / ".made-from"
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    print(f"installing {directory.name} …", flush=True)
    yield
    stamp.write_text(digest)


def run(command, **keywords):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **keywords)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}")


def install_java(line):
    build_java(HOME / f"java-{line}", line)


def install_reference(_version):
    """Apart from the clients: the server's jars would change how theirs log."""
    build_java(HOME / REFERENCE, REFERENCE_LINE, "-Preference")


def build_java(directory, line, *flags):
    sources = sorted((HERE / "java").rglob("*.java")) + [HERE / "java/pom.xml"]
    for _ in unless_fresh(directory, sources):
        run(["mvn", "-q", "-B", f"-Drocketmq.version={line}", f"-Doutput.directory={directory}", *flags, "package"], cwd=HERE / "java")


def install_go(_version):
    directory = HOME / "go"
    for _ in unless_fresh(directory, [HERE / "go/go.mod", HERE / "go/go.sum", HERE / "go/main.go"]):
        run(["go", "build", "-o", directory / "driver", "."], cwd=HERE / "go", env={**os.environ, "GOFLAGS": "-mod=readonly"})


def install_python(_version):
    directory = HOME / "python"
    for _ in unless_fresh(directory, [HERE / "python/requirements.txt"]):
        run(["python3", "-m", "venv", directory])
        run([directory / "bin/pip", "install", "-q", "-r", HERE / "python/requirements.txt"])


def install_node(_version):
    directory = HOME / "node"
    sources = [HERE / "node/package.json", HERE / "node/package-lock.json"]
    for _ in unless_fresh(directory, sources):
        for source in sources:
            shutil.copy(source, directory)
        run(["npm", "ci", "--no-audit", "--no-fund"], cwd=directory)
