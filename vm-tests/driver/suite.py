"""Runs scenarios on machines, and counts what passed and what failed."""

import contextlib
import json
import os
import shutil
import sys
import time
import traceback

from control import Lost
from machine import Failed, Machine
from network import Network

# A scenario with this line wants a machine that nobody has used.
FRESH = "# machine: fresh"
# A scenario with this line leaves a machine that is of no use to another.
USED_UP = "# machine: used up"
# A scenario with this line wants machines of these names, on one network, and none besides.
SEVERAL = "# machines: "


class Suite:
    """Counts what passed and what failed; a scenario without subtests counts as one."""

    def __init__(self):
        self.passed, self.failed, self.scenario = 0, 0, ""
        # the subtest that runs, or that failed
        self.within = ""

    @contextlib.contextmanager
    def subtest(self, name):
        begin = time.monotonic()
        self.within = name
        yield
        self.within = ""
        self.report("ok", name, begin)

    def report(self, verdict, name, begin, detail=""):
        if verdict == "ok":
            self.passed += 1
        else:
            self.failed += 1
        title = f"{self.scenario}: {name}" if name else self.scenario
        lines = f"{verdict:4} {title} ({time.monotonic() - begin:.1f} s)\n"
        if detail:
            lines += "     " + detail.rstrip().replace("\n", "\n     ") + "\n"
        # in one piece: others may report at the same time
        sys.stdout.write(lines)

    def run(self, machines, path, text):
        """Runs one scenario; gives whether it passed."""
        self.scenario, self.within = os.path.splitext(os.path.basename(path))[0], ""
        begin, before = time.monotonic(), self.passed

        def start_all():
            for machine in machines:
                machine.launch()
            for machine in machines:
                machine.start()

        names = {machine.name: machine for machine in machines}
        names |= {"machines": machines, "start_all": start_all, "subtest": self.subtest}
        try:
            exec(compile(text, path, "exec"), {"__name__": "__scenario__", **names})
        except (Exception, KeyboardInterrupt) as error:
            where = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
            what = str(error) if isinstance(error, (Failed, Lost)) else "".join(traceback.format_exception_only(error))
            states = [f"{machine.name}:\n{machine.diagnose()}" for machine in machines]
            line = f"line {where[-1] if where else '?'}"
            # What it passed before counts once it has passed whole.
            self.passed = before
            self.report("FAIL", f"{self.within}, {line}" if self.within else line, begin, "\n".join([what, *states]))
            if isinstance(error, KeyboardInterrupt):
                raise
            return False
        if self.passed == before:
            self.report("ok", "", begin)
        return True


def wants(text):
    """The names of the machines that a scenario wants where it wants several; whether its machine has to be a new one."""
    lines = text.splitlines()
    several = next((line.removeprefix(SEVERAL).split() for line in lines if line.startswith(SEVERAL)), [])
    return several, bool(several) or FRESH in lines


def uses_up(text):
    """Whether no other scenario is to have the machine that this one had."""
    return USED_UP in text.splitlines()


@contextlib.contextmanager
def new_machines(description, names):
    """Machines of these names on a network of their own, or one without; they go away at the end."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network(names)) if names else None
        machines = [Machine(description, name, network) for name in names] or [Machine(description)]
        for machine in machines:
            stack.callback(machine.remove)
        yield machines


def install_once(description):
    """Installs the project in one machine and has all later ones begin with its disk: each is as new, and saves the time."""
    with open(description) as file:
        described = json.load(file)
    if not described["provision"]:
        return
    machine = Machine(description)
    try:
        machine.start()
        machine.shutdown()
        described |= {"root_disk": os.path.join(described["stage"], "installed.img"), "provision": None}
        shutil.move(machine.disk(), described["root_disk"])
    finally:
        machine.remove()
    with open(description, "w") as file:
        json.dump(described, file)
