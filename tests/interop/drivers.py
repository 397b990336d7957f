"""A driver process seen live: every JSON line it prints, as it prints it."""
import json
import subprocess
import threading
import time

EXIT_S = 20


class Failed(Exception):
    """The case did not hold; the text says how."""


class Driver:
    def __init__(self, name, command, environment, directory):
        self.name = name
        self.lines = []
        self.ended = False
        self.changed = threading.Condition()
        self.errors_path = directory / f"{name}.stderr"
        self.output_path = directory / f"{name}.jsonl"
        with open(self.errors_path, "wb") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                            env=environment, cwd=directory)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        with open(self.output_path, "wb") as copy:
            for raw in self.process.stdout:
                copy.write(raw)
                try:
                    line = json.loads(raw)
                except ValueError:
                    continue  # clients print banners too
                with self.changed:
                    self.lines.append(line)
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def seen(self, *events):
        with self.changed:
            return [line for line in self.lines if line.get("event") in events]

    def await_event(self, event, seconds):
        """Waits for the event; as long as lines keep coming the driver is given more time."""
        progress, deadline = 0, time.monotonic() + seconds
        with self.changed:
            while not any(line.get("event") == event for line in self.lines):
                if self.ended:
                    raise Failed(f"{self.name} ended before '{event}': {self.complaint()}")
                if len(self.lines) > progress:
                    progress, deadline = len(self.lines), time.monotonic() + seconds
                if not self.changed.wait(max(0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise Failed(f"{self.name}: no '{event}' and no other line for {seconds} s: {self.complaint()}")

    def complaint(self):
        said = [line["error"] for line in self.lines if line.get("error")]
        tail = self.errors_path.read_text(errors="replace").strip().splitlines()[-3:]
        return "; ".join(said[-3:] + tail) or "it said nothing"

    def close(self):
        """Lets the client shut down in its own way. One that hangs or crashes in doing so has already shown its work."""
        try:
            self.process.stdin.close()
            self.process.wait(EXIT_S)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.reader.join()
