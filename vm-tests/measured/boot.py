# `cargo xtask bench boot`: until when all units are ready after a boot, in turns: as an installation leaves them (some start
# with the first call to their name), all of them started at boot, and none there.

import json
import os

AT_BOOT = ("proxy",)
BY_CALL = ("plugins", "workspaces", "machines")
SOCKET = "shipote-workspaces.socket"
TARGET = "multi-user.target"
KINDS = {"installed": AT_BOOT, "all": AT_BOOT + BY_CALL, "without": ()}


def units(services):
    return [f"shipote-{service}.service" for service in services]


def call(service):
    """Milliseconds until a service has answered, by the machine's own clock."""
    bus = f"org.shipote.{service.capitalize()}1"
    health = f"busctl call {bus} /{bus.replace('.', '/')} org.shipote.Service1 Health"
    begin, end = machine.succeed(f"date +%s%N; {health} > /dev/null; date +%s%N").split()
    return (int(end) - int(begin)) / 1e6


def boot(kind):
    """Seconds from the kernel's start to the last unit."""
    every = " ".join(units(KINDS["all"]) + [SOCKET])
    machine.succeed(f"systemctl unmask {every}", f"systemctl disable {every}")
    if KINDS[kind]:
        machine.succeed(f"systemctl enable {SOCKET} {' '.join(units(KINDS[kind]))}")
    else:
        machine.succeed(f"systemctl mask {every}")
    machine.reboot()
    # one call that waits: asking again and again would cost the boot that is measured
    machine.execute("systemctl is-system-running --wait")
    wanted = [TARGET] + ([SOCKET] + units(KINDS[kind]) if KINDS[kind] else [])
    for unit in wanted:
        machine.require_unit_state(unit)
    if kind != "without":
        machine.log(machine.succeed("systemd-analyze; systemd-analyze blame | head -n 8"))
        for unit in units(KINDS[kind]):
            machine.log(f"{unit}: {int(machine.get_unit_property(unit, 'CPUUsageNSec')) / 1e9:.2f} s of processor time")
    ready = max(int(machine.get_unit_property(unit, "ActiveEnterTimestampMonotonic")) for unit in wanted) / 1e6
    if kind == "installed":
        for service in BY_CALL:
            machine.require_unit_state(f"shipote-{service}.service", "inactive")
            first, second = call(service), call(service)
            machine.log(f"the first call to {service} takes {first:.0f} ms, the second {second:.0f} ms")
    return ready


start_all()
machine.wait_for_unit(TARGET)
rounds = int(os.environ["SHIPOTE_ROUNDS"])
kinds = list(KINDS)
found = {kind: [] for kind in kinds}
# the first round warms the host's caches and is not counted; who begins changes
for round in range(rounds + 1):
    first = round % len(kinds)
    for kind in kinds[first:] + kinds[:first]:
        seconds = boot(kind)
        machine.log(f"boot, {kind}: {seconds:.2f} s")
        if round:
            found[kind].append(seconds)
with open(os.environ["SHIPOTE_MEASURED"], "w") as file:
    json.dump(found, file)
