# `cargo xtask bench boot`: until when all units are ready after a boot, in turns with the services and without them.

import json
import os

UNITS = [f"shipote-{service}.service" for service in ("plugins", "workspaces", "machines", "proxy")]
TARGET = "multi-user.target"


def boot(services):
    """Seconds from the kernel's start to the last unit."""
    machine.succeed(f"systemctl {'unmask' if services else 'mask'} {' '.join(UNITS)}")
    machine.reboot()
    # one call that waits: asking again and again would cost the boot that is measured
    machine.execute("systemctl is-system-running --wait")
    wanted = [TARGET] + (UNITS if services else [])
    for unit in wanted:
        machine.require_unit_state(unit)
    if services:
        machine.log(machine.succeed("systemd-analyze; systemd-analyze blame | head -n 8"))
        for unit in UNITS:
            machine.log(f"{unit}: {int(machine.get_unit_property(unit, 'CPUUsageNSec')) / 1e9:.2f} s of processor time")
    return max(int(machine.get_unit_property(unit, "ActiveEnterTimestampMonotonic")) for unit in wanted) / 1e6


start_all()
machine.wait_for_unit(TARGET)
rounds = int(os.environ["SHIPOTE_ROUNDS"])
found = {"with": [], "without": []}
# the first round warms the host's caches and is not counted; who begins changes
for round in range(rounds + 1):
    for services in (True, False) if round % 2 else (False, True):
        seconds = boot(services)
        machine.log(f"boot {'with' if services else 'without'} the services: {seconds:.2f} s")
        if round:
            found["with" if services else "without"].append(seconds)
with open(os.environ["SHIPOTE_MEASURED"], "w") as file:
    json.dump(found, file)
