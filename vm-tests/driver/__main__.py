"""Starts the machine that `cargo xtask vm` described and runs scenarios, a command, or nothing but the machine.

    driver test MACHINE.json SCENARIO.py... [--hold RECORD]
    driver run (--machine MACHINE.json | --socket PATH) -- CMD...
    driver serve MACHINE.json RECORD
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
import traceback

import process
from control import Control, Lost
from machine import Failed, Machine, remove_stage
from network import Network

# A scenario with this line wants a machine that nobody has used.
FRESH = "# machine: fresh"
# A scenario with this line wants machines of these names, on one network, and none besides.
SEVERAL = "# machines: "


class Suite:
    """Counts what passed and what failed; a scenario without subtests counts as one."""

    def __init__(self):
        self.passed, self.failed, self.scenario = 0, 0, ""

    @contextlib.contextmanager
    def subtest(self, name):
        begin = time.monotonic()
        yield
        self.report("ok", name, begin)

    def report(self, verdict, name, begin, detail=""):
        if verdict == "ok":
            self.passed += 1
        else:
            self.failed += 1
        title = f"{self.scenario}: {name}" if name else self.scenario
        print(f"{verdict:4} {title} ({time.monotonic() - begin:.1f} s)")
        if detail:
            print("     " + detail.rstrip().replace("\n", "\n     "))


def test(arguments):
    suite = Suite()
    machine = None
    try:
        for path in arguments.scenarios:
            with open(path) as file:
                text = file.read()
            several = next((line.removeprefix(SEVERAL).split() for line in text.splitlines() if line.startswith(SEVERAL)), [])
            if machine is not None and (several or FRESH in text.splitlines()):
                machine.remove()
                machine = None
            if several:
                with Network(several) as network:
                    machines = [Machine(arguments.machine, name, network) for name in several]
                    try:
                        scenario(suite, machines, path, text)
                    finally:
                        for one in machines:
                            one.remove()
                continue
            machine = machine or Machine(arguments.machine)
            if scenario(suite, [machine], path, text):
                continue
            if arguments.hold:
                hold(machine, arguments.hold)
            # in whatever state it was left, the next scenario should not be judged by it
            machine.remove()
            machine = None
    finally:
        if machine is not None:
            machine.remove()
        remove_stage(arguments.machine)
    print(f"{suite.passed} passed, {suite.failed} failed")
    return 1 if suite.failed else 0


def scenario(suite, machines, path, text):
    """Runs one scenario; gives whether it passed."""
    suite.scenario = os.path.splitext(os.path.basename(path))[0]
    begin, before = time.monotonic(), suite.passed

    def start_all():
        for machine in machines:
            machine.launch()
        for machine in machines:
            machine.start()

    names = {machine.name: machine for machine in machines}
    names |= {"machines": machines, "start_all": start_all, "subtest": suite.subtest}
    try:
        exec(compile(text, path, "exec"), {"__name__": "__scenario__", **names})
    except (Exception, KeyboardInterrupt) as error:
        where = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        what = str(error) if isinstance(error, (Failed, Lost)) else "".join(traceback.format_exception_only(error))
        states = [f"{machine.name}:\n{machine.diagnose()}" for machine in machines]
        suite.report("FAIL", f"line {where[-1] if where else '?'}", begin, "\n".join([what, *states]))
        if isinstance(error, KeyboardInterrupt):
            raise
        return False
    if suite.passed == before:
        suite.report("ok", "", begin)
    return True


def hold(machine, record):
    publish(machine, record)
    machine.control.close()
    print("held: `cargo xtask vm run -- CMD` reaches the machine; Enter ends it", flush=True)
    sys.stdin.readline()
    os.unlink(record)
    machine.control.connect(time.monotonic() + 30)


def publish(machine, record):
    """Writes down, in one piece, where the machine is reached."""
    facts = {"pid": os.getpid(), "control_socket": machine.control.path, "stage": machine.description["stage"]}
    with open(record + ".new", "w") as file:
        json.dump(facts, file)
    os.replace(record + ".new", record)


def run(arguments):
    machine = None
    try:
        if arguments.machine:
            machine = Machine(arguments.machine)
            machine.start()
            control = machine.control
        else:
            control = Control(arguments.socket)
            control.connect(time.monotonic() + 30)
        words = arguments.command
        line = words[0] if len(words) == 1 else shlex.join(words)

        def show(event, data):
            stream = sys.stdout.buffer if event == "stdout" else sys.stderr.buffer
            stream.write(data)
            stream.flush()

        return control.execute(["bash", "-c", line], on_output=show)[0]
    finally:
        if machine is not None:
            machine.remove()
            remove_stage(arguments.machine)


def serve(arguments):
    machine = Machine(arguments.machine)
    try:
        machine.start()
        # QEMU's end of the control port takes one client at a time: leave it to `run`
        machine.control.close()
        publish(machine, arguments.record)
        print("ready", flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        machine.qemu.wait()
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(arguments.record)
        machine.remove()
        remove_stage(arguments.machine)
    return 0


def main():
    process.follow_parent()
    parser = argparse.ArgumentParser(prog="driver")
    modes = parser.add_subparsers(required=True)
    mode = modes.add_parser("test")
    mode.add_argument("machine")
    mode.add_argument("scenarios", nargs="+")
    mode.add_argument("--hold")
    mode.set_defaults(call=test)
    mode = modes.add_parser("run")
    mode.add_argument("--machine")
    mode.add_argument("--socket")
    mode.add_argument("command", nargs="+")
    mode.set_defaults(call=run)
    mode = modes.add_parser("serve")
    mode.add_argument("machine")
    mode.add_argument("record")
    mode.set_defaults(call=serve)
    arguments = parser.parse_args()
    try:
        return arguments.call(arguments)
    except (Failed, Lost) as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
