#!/usr/bin/env python3
"""A session over D-Bus: made, used and ended with nothing but dbus-fast (PyPI; Debian's python3-dbus-fast).

    SHIPOTE_BUS_ADDRESS=unix:path=… python3 session_dbus.py NAME

Without the variable it is the system bus, which asks polkit whether the caller may.
"""

import asyncio
import json
import os
import sys

from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

SERVICE = "org.shipote.Workspaces1"
MANAGER = dict(destination=SERVICE, path="/org/shipote/Workspaces1", interface=SERVICE + ".Manager")
SPEC = """
ttl = "10m"
[soma.rlimits]
nproc = 64
[env]
GREETING = "hello"
[labels]
session = "python"          # this makes it a session: `shipote session ls` shows it
"""


class Session:
    """A living session."""

    def __init__(self, bus, name):
        self.bus, self.name = bus, name

    async def call(self, member, signature, *body, fds=()):
        """One call of the manager: its answer, or its refusal as it stands."""
        message = Message(**MANAGER, member=member, signature=signature, body=list(body), unix_fds=list(fds))
        reply = await self.bus.call(message)
        if reply.message_type is MessageType.ERROR:
            raise RuntimeError(f"{reply.error_name}: {reply.body[0] if reply.body else ''}")
        return reply

    async def create(self):
        await self.call("CreateWorkspace", "ssa{sv}", self.name, SPEC, {})

    async def run(self, *argv, stdin=b""):
        """Runs a command to its end: exit status and output. Bytes go through pipes, not over the bus."""
        (given, feed), (output, taken) = os.pipe(), os.pipe()
        # 0, 1 and 2 stand for the places of the descriptors in the message
        options = {"label": Variant("s", os.path.basename(argv[0]))}
        reply = await self.call(
            "Run", "sasa{sv}ah", self.name, list(argv), options, [0, 1, 2], fds=(given, taken, 2)
        )
        os.close(given)
        os.close(taken)
        completion = reply.unix_fds[0]
        loop = asyncio.get_running_loop()
        feeding = loop.run_in_executor(None, write_all, feed, stdin)
        data = await loop.run_in_executor(None, read_all, output)
        await feeding
        # one line of JSON when it has ended
        ended = json.loads(await loop.run_in_executor(None, read_all, completion))
        return ended["exit_status"], data

    async def end(self):
        await self.call("StopWorkspace", "sta{sv}", self.name, 1000, {})


def write_all(fd, data):
    with os.fdopen(fd, "wb") as file:
        file.write(data)


def read_all(fd):
    with os.fdopen(fd, "rb") as file:
        return file.read()


async def main(name):
    address = os.environ.get("SHIPOTE_BUS_ADDRESS")
    bus = MessageBus(bus_address=address, bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
    session = Session(await bus.connect(), name)
    await session.create()
    try:
        program = b"import os, sys; print(os.environ['GREETING'], sum(map(int, sys.argv[1:])))\n"
        await session.run("sh", "-c", "cat > /work/add.py", stdin=program)
        status, output = await session.run("python3", "/work/add.py", "1", "2", "3")
        print(status, output.decode().strip())
        status, _ = await session.run("false")
        print(status)
    finally:
        await session.end()
    bus.disconnect()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
