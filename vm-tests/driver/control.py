"""Client of the agent inside the machine: one JSON object a line over QEMU's end of a virtio-serial port.

The protocol is described where it is served, in services/xtask/src/vm/agent.rs.
"""

import base64
import itertools
import json
import os
import secrets
import socket
import time

# Files go in pieces of this size.
PIECE = 48 * 1024
# So many pieces are sent before the first one's answer is waited for.
AHEAD = 8
# An agent that has not answered this long after a command's own time limit is lost.
GRACE = 60


class Lost(Exception):
    """The machine does not answer: it is gone, or its agent is."""


class Control:
    def __init__(self, path):
        self.path = path
        self.socket = None
        self.buffer = b""
        # numbers nobody before us used: late answers to an earlier client are told apart
        self.numbers = itertools.count(secrets.randbits(40) << 20)

    def connect(self, deadline, alive=lambda: True):
        """Waits until the agent answers; `alive` says whether waiting makes sense."""
        while True:
            try:
                self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.socket.connect(self.path)
                break
            except OSError as error:
                self.close()
                if not alive() or time.monotonic() > deadline:
                    raise Lost(f"connect to {self.path}: {error}") from error
                time.sleep(0.02)
        number = self._send({"op": "ping"}, lead=b"\n")
        while True:
            # in short steps, to notice a machine that has ended
            answer = self._receive(min(deadline, time.monotonic() + 1), or_none=True)
            if answer is not None and answer["id"] == number:
                return
            if not alive():
                raise Lost("the machine ended before its agent answered")
            if time.monotonic() > deadline:
                raise Lost("the machine's agent did not answer in time")

    def close(self):
        if self.socket is not None:
            self.socket.close()
        self.socket, self.buffer = None, b""

    def execute(self, argv, timeout=None, stdin=None, on_output=None):
        """Runs a command; gives (status, stdout, stderr), the outputs as bytes."""
        request = {"op": "exec", "argv": list(argv)}
        if timeout is not None:
            request["timeout"] = timeout
        if stdin is not None:
            request["stdin"] = stdin
        number = self._send(request)
        deadline = None if timeout is None else time.monotonic() + timeout + GRACE
        collected = {"stdout": [], "stderr": []}
        while True:
            answer = self._receive(deadline)
            if answer["id"] != number:
                continue
            event = answer["event"]
            if event in collected:
                data = base64.b64decode(answer["data"])
                if on_output is not None:
                    on_output(event, data)
                else:
                    collected[event].append(data)
            elif event == "exit":
                return answer["status"], b"".join(collected["stdout"]), b"".join(collected["stderr"])
            else:
                raise RuntimeError(answer["message"])

    def write_file(self, path, chunks, mode):
        """Writes a file in the machine from an iterable of bytes."""
        append, pending = False, set()
        for chunk in itertools.chain(chunks, [b""]):
            data = base64.b64encode(chunk).decode()
            pending.add(self._send({"op": "write", "path": path, "data": data, "append": append, "mode": mode}))
            append = True
            # several pieces on their way at a time: a round trip costs more than a piece
            if len(pending) >= AHEAD:
                self._written(pending)
        while pending:
            self._written(pending)

    def _written(self, pending):
        """Waits for one of the pieces on their way."""
        answer = self._receive(time.monotonic() + GRACE)
        while answer["id"] not in pending:
            answer = self._receive(time.monotonic() + GRACE)
        pending.remove(answer["id"])
        if answer["event"] != "done":
            raise RuntimeError(answer["message"])

    def _send(self, request, lead=b""):
        if self.socket is None:
            raise Lost("the machine is not connected")
        number = next(self.numbers)
        try:
            self.socket.settimeout(None)
            self.socket.sendall(lead + json.dumps({"id": number, **request}).encode() + b"\n")
        except OSError as error:
            raise Lost(f"send to the machine: {error}") from error
        return number

    def _receive(self, deadline, or_none=False):
        while True:
            line, newline, rest = self.buffer.partition(b"\n")
            if newline:
                self.buffer = rest
                try:
                    answer = json.loads(line)
                    answer["id"], answer["event"]
                except (ValueError, TypeError, KeyError):
                    continue  # the end of a line to an earlier client
                return answer
            try:
                self.socket.settimeout(None if deadline is None else max(0.01, deadline - time.monotonic()))
                data = self.socket.recv(1 << 20)
            except TimeoutError:
                if or_none:
                    return None
                raise Lost("the machine's agent does not answer") from None
            except OSError as error:
                raise Lost(f"receive from the machine: {error}") from error
            if not data:
                raise Lost("the machine is gone")
            self.buffer += data


def pieces(path):
    """A host file in pieces that fit a request."""
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            yield piece


def mode_of(path):
    return os.stat(path).st_mode & 0o777
