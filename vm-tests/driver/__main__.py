"""Starts the machine that `cargo xtask vm` described and runs scenarios, a command, or nothing but the machine.

    driver test MACHINE.json SCENARIO.py... [--jobs N] [--hold RECORD]
    driver broken MACHINE.json BREAKS.json
    driver run (--machine MACHINE.json | --socket PATH) -- CMD...
    driver serve MACHINE.json RECORD
"""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import shlex
import sys
import time

import broken as breaking
import process
from control import Control, Lost
from machine import Failed, Machine, end_all, remove_stage
from suite import Suite, install_once, new_machines, uses_up, wants


# From so many machines on, installing on a disk that all begin with is the shorter way.
SEVERAL_MACHINES = 3
# More scenarios than that do not fail by accident.
ACCIDENTS = 3
# What a machine takes of the host's memory, in KiB: its own 1.5 GiB, what the emulator translates, and some for the rest.
MEMORY = 3 << 20
# More than that would mostly boot: each is one more to start.
AT_ONCE = 4


def fitting():
    """How many machines this host has the processors and the memory for. One alone left a third of two processors idle."""
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    return max(1, min(len(os.sched_getaffinity(0)), available // MEMORY, AT_ONCE))


def test(arguments):
    jobs = 1 if arguments.hold else min(arguments.jobs or fitting(), len(arguments.scenarios))
    suites = [Suite() for _ in range(jobs)]
    texts = []
    for path in arguments.scenarios:
        with open(path) as file:
            texts.append(file.read())
    scenarios = list(zip(arguments.scenarios, texts))
    try:
        if jobs + sum(len(several) or fresh for several, fresh in map(wants, texts)) > SEVERAL_MACHINES:
            install_once(arguments.machine)
        failed = side_by_side(suites, arguments, scenarios)
        second, suite = [], suites[0]
        if failed and not arguments.hold and len(failed) <= ACCIDENTS:
            # An emulated machine loses time to whatever else runs here. What is broken fails again; what does not is said.
            suite.failed -= len(failed)
            for path, text in failed:
                if not one_after_the_other(suite, arguments, [(path, text)]):
                    second.append(suite.scenario)
    finally:
        remove_stage(arguments.machine)
    for name in second:
        print(f"{name}: failed once (see above) and passed in a new machine")
    passed, failed = sum(suite.passed for suite in suites), sum(suite.failed for suite in suites)
    print(f"{passed} passed, {failed} failed" + (f", {len(second)} at the second attempt" if second else ""))
    return 1 if failed else 0


def side_by_side(suites, arguments, scenarios):
    """Runs scenarios, on as many machines at once as there are suites to count; gives those that failed."""
    waiting = collections.deque(scenarios)

    def taken():
        with contextlib.suppress(IndexError):
            while True:
                yield waiting.popleft()

    if len(suites) == 1:
        return one_after_the_other(suites[0], arguments, taken())
    with concurrent.futures.ThreadPoolExecutor(len(suites)) as pool:
        works = [pool.submit(one_after_the_other, suite, arguments, taken()) for suite in suites]
        try:
            return [scenario for work in works for scenario in work.result()]
        except BaseException:
            # Ctrl-C, SIGTERM, or an error of the driver's own: the others end with their machines
            waiting.clear()
            end_all()
            raise


def one_after_the_other(suite, arguments, scenarios):
    """Runs scenarios, on as few machines as they allow; gives those that failed."""
    machine, failed = None, []
    try:
        for path, text in scenarios:
            several, fresh = wants(text)
            if machine is not None and fresh:
                machine.remove()
                machine = None
            if several:
                with new_machines(arguments.machine, several) as machines:
                    if not suite.run(machines, path, text):
                        failed.append((path, text))
                continue
            machine = machine or Machine(arguments.machine)
            passed = suite.run([machine], path, text)
            if not passed:
                failed.append((path, text))
                if arguments.hold:
                    hold(machine, arguments.hold)
            # in whatever state it was left, the next scenario should not be judged by it
            if not passed or uses_up(text):
                machine.remove()
                machine = None
    finally:
        if machine is not None:
            machine.remove()
    return failed


def broken(arguments):
    try:
        return breaking.broken(arguments.machine, arguments.breaks)
    finally:
        remove_stage(arguments.machine)


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
    mode.add_argument("--jobs", type=int)
    mode.add_argument("--hold")
    mode.set_defaults(call=test)
    mode = modes.add_parser("broken")
    mode.add_argument("machine")
    mode.add_argument("breaks")
    mode.set_defaults(call=broken)
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
