"""A machine with the interface of the NixOS test driver's, so that a scenario's text runs under either.

https://nixos.org/manual/nixos/stable/#ssec-machine-objects describes the methods; those here behave alike.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time

from control import Control, Lost, mode_of, pieces
from process import RunFolder

# Seconds: default limit of a command and of a wait. A third of the NixOS driver's, which runs on faster machines but
# has a whole build farm's patience.
LIMIT = 300
# A kernel on emulated processors now and then hangs in its first second, or dies there: of two of them, each patches the kernel's
# code under the other's feet (bytes of `sched_clock_cpu` that are half a jump). So often such a boot is begun again, and it is said.
BOOTS = 3


# QEMUs that run, in whatever thread's machines, and whether there are to be none anymore.
_living, _qemus, _ended = threading.Lock(), set(), threading.Event()


class Failed(Exception):
    """Something in the machine is not as the scenario wants it."""


class Machine:
    def __init__(self, description, name="machine", network=None):
        """A machine; of `network` where it is to reach others (`network.Network`)."""
        with open(description) as file:
            self.description = json.load(file)
        self.name = name
        self.network = network
        self.folder = RunFolder()
        self.qemu, self.answers = None, False
        self.provisioned = False
        self.control = Control(self._place(self.description["control_socket"]))

    # --- life ---

    def launch(self):
        """Begins to start the machine, so that several boot side by side; `start` waits for it."""
        if self.qemu is not None:
            return
        self.begin = time.monotonic()
        disk = self.disk()
        if not os.path.exists(disk):
            _copy_sparse(self.description["root_disk"], disk)
        argv = [self._place(word) for word in self.description["argv"]]
        if self.network is not None:
            argv += self.network.plug(self.name)
        # it dies with the thread that starts it, which is one of the driver's and removes it before it ends itself
        tied = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", str(self.description["nice"])]
        with _living:
            if _ended.is_set():
                raise Failed("boot: the driver is to end")
            # a session of its own: Ctrl-C is for the driver, which then stops QEMU
            self.qemu = subprocess.Popen(tied + argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
            _qemus.add(self.qemu)
        self.answers = False

    def start(self):
        """Starts the machine and waits for its agent; installs the project in it the first time."""
        self.launch()
        if self.answers:
            return
        for left in reversed(range(BOOTS)):
            try:
                self.control.connect(self.begin + self.description["boot_timeout"], lambda: self.qemu.poll() is None)
                break
            except Lost as error:
                refused = self._qemu_failed()
                # what comes next gets a new boot instead of waiting for this one again and again
                self.crash()
                if refused or not left or not self._kernel_ended_early():
                    raise Failed(f"boot: {error}\n{self._console_tail()}") from error
                self.log(f"the kernel died or hung in its boot; booting again\n{self._console_tail()}")
                self.launch()
        self.answers = True
        self.log(f"the agent answers after {time.monotonic() - self.begin:.1f} s")
        if self.network is not None:
            self.succeed(self.network.settings(self.name))
        if self.description["provision"] and not self.provisioned:
            self.succeed(self.description["provision"], timeout=300)
            self.provisioned = True
            self.log(f"installed after {time.monotonic() - self.begin:.1f} s")

    def shutdown(self):
        """Powers the machine off in an orderly way; its disk stays for the next `start`."""
        if self.qemu is None:
            return
        # the agent may be ended before it could answer
        with contextlib.suppress(Lost):
            self.control.execute(["systemctl", "--no-block", "poweroff"], 60)
        try:
            self.qemu.wait(180)
        except subprocess.TimeoutExpired:
            raise Failed(f"shutdown: still running after 180 s\n{self._console_tail()}") from None
        self._gone()

    def crash(self):
        """Ends the machine as a loss of power would: its memory is gone; its disk stays for the next `start`."""
        if self.qemu is not None:
            self.qemu.kill()
            self.qemu.wait()
            self._gone()

    def reboot(self):
        self.shutdown()
        self.start()

    def _gone(self):
        self.control.close()
        with _living:
            _qemus.discard(self.qemu)
        self.qemu, self.answers = None, False
        socket = self._place(self.description["control_socket"])
        if os.path.exists(socket):
            os.unlink(socket)

    def remove(self):
        """Ends the machine and removes what it left on the host; the disk it was installed from is for others, too."""
        self.crash()
        self.folder.remove()

    # --- commands ---

    def execute(self, command, check_return=True, check_output=True, timeout=LIMIT):
        """Runs a command line in bash; gives (status, standard output). Failures are the caller's to judge."""
        status, stdout, _ = self._run(command, timeout)
        return (status if check_return else -1), (stdout if check_output else "")

    def succeed(self, *commands, timeout=LIMIT):
        """Runs command lines that must all exit with 0; gives their standard output."""
        output = ""
        for command in commands:
            status, stdout, stderr = self._run(command, timeout)
            if status != 0:
                raise Failed(f"command `{command}` failed (exit status {status})\n{stdout}{stderr}".rstrip())
            output += stdout
        return output

    def fail(self, *commands, timeout=LIMIT):
        """Runs command lines that must all exit with something else than 0; gives their standard output."""
        output = ""
        for command in commands:
            status, stdout, stderr = self._run(command, timeout)
            if status == 0:
                raise Failed(f"command `{command}` unexpectedly succeeded\n{stdout}{stderr}".rstrip())
            output += stdout
        return output

    def _run(self, command, timeout):
        self.start()
        argv = ["bash", "-c", f"set -euo pipefail; {command}"]
        try:
            status, stdout, stderr = self.control.execute(argv, timeout)
        except Lost:
            self.crash()
            raise
        return status, stdout.decode(errors="replace"), stderr.decode(errors="replace")

    def wait_until_succeeds(self, command, timeout=LIMIT):
        return self._retry(lambda _: self._attempt(command, True), timeout, f"`{command}` to succeed")

    def wait_until_fails(self, command, timeout=LIMIT):
        return self._retry(lambda _: self._attempt(command, False), timeout, f"`{command}` to fail")

    def _attempt(self, command, wanted):
        status, stdout, stderr = self._run(command, LIMIT)
        self.last = f"exit status {status}\n{stdout}{stderr}".rstrip()
        return (stdout or True) if (status == 0) == wanted else None

    def _retry(self, attempt, timeout, what):
        """Calls `attempt` until it gives something; it is told when a call is the last."""
        self.last = ""
        deadline = time.monotonic() + timeout
        while True:
            last = time.monotonic() >= deadline
            result = attempt(last)
            if result:
                return "" if result is True else result
            if last:
                raise Failed(f"waited {timeout} s in vain for {what}\n{self.last}".rstrip())
            time.sleep(0.3)

    # --- units, ports, files ---

    def systemctl(self, query, user=None):
        prefix = f"systemctl --user -M {shlex.quote(user)}@.host" if user else "systemctl"
        return self.execute(f"{prefix} {query}")

    def get_unit_info(self, unit, user=None):
        status, output = self.systemctl(f"--no-pager show {shlex.quote(unit)}", user)
        if status != 0:
            raise Failed(f"systemctl show {unit} failed (exit status {status})")
        return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)

    def get_unit_property(self, unit, name, user=None):
        return self.get_unit_info(unit, user).get(name, "")

    def wait_for_unit(self, unit, user=None, timeout=LIMIT):
        """Waits until a unit is active; a unit that failed, or is inactive with no job, is not waited for."""

        def attempt(_):
            info = self.get_unit_info(unit, user)
            state = info.get("ActiveState")
            self.last = f"{unit}: {state} ({info.get('SubState')}), result {info.get('Result')}"
            if state == "failed" or (state == "inactive" and info.get("Job", "0") in ("", "0")):
                raise Failed(f"wait for {self.last}\n{self.unit_log(unit)}")
            return state == "active"

        self._retry(attempt, timeout, f"unit {unit}")

    def require_unit_state(self, unit, require_state="active"):
        state = self.get_unit_property(unit, "ActiveState")
        if state != require_state:
            raise Failed(f"unit {unit} is {state}, not {require_state}")

    def start_job(self, job, user=None):
        return self.systemctl(f"start {shlex.quote(job)}", user)

    def stop_job(self, job, user=None):
        return self.systemctl(f"stop {shlex.quote(job)}", user)

    def wait_for_open_port(self, port, addr="localhost", timeout=LIMIT):
        self.wait_until_succeeds(f"(exec 3<>/dev/tcp/{addr}/{port}) 2>/dev/null", timeout)

    def wait_for_closed_port(self, port, addr="localhost", timeout=LIMIT):
        self.wait_until_fails(f"(exec 3<>/dev/tcp/{addr}/{port}) 2>/dev/null", timeout)

    def wait_for_open_unix_socket(self, addr, is_datagram=False, timeout=LIMIT):
        kind = "5" if is_datagram else "2"
        probe = f"socat -u OPEN:/dev/null UNIX-CONNECT:{shlex.quote(addr)},type={kind}"
        self.wait_until_succeeds(probe if not is_datagram else f"test -S {shlex.quote(addr)}", timeout)

    def wait_for_file(self, filename, timeout=LIMIT):
        self.wait_until_succeeds(f"test -e {shlex.quote(filename)}", timeout)

    def copy_from_host(self, source, target):
        """Copies a file or a folder of the host into the machine."""
        self.start()
        source = str(source)
        if not os.path.isdir(source):
            self.control.write_file(str(target), pieces(source), mode_of(source))
            return
        for parent, _, names in os.walk(source):
            for name in names:
                path = os.path.join(parent, name)
                self.control.write_file(os.path.join(str(target), os.path.relpath(path, source)), pieces(path), mode_of(path))

    def copy_from_machine(self, source, target_dir=""):
        """Copies a file of the machine into a folder of the host."""
        os.makedirs(target_dir or ".", exist_ok=True)
        target = os.path.join(target_dir, os.path.basename(source))
        with open(target, "wb") as file:
            status, _, stderr = self.control.execute(
                ["cat", "--", source], LIMIT, on_output=lambda event, data: file.write(data) if event == "stdout" else None
            )
        if status != 0:
            raise Failed(f"copy {source} from the machine: exit status {status} {stderr.decode(errors='replace')}")

    # --- what happened ---

    def log(self, message):
        # in one piece: others may log at the same time
        sys.stderr.write(f"{self.name}: {message}\n")

    def sleep(self, seconds):
        time.sleep(seconds)

    def unit_log(self, unit, lines=30):
        try:
            return self._run(f"journalctl --no-pager -q -n {lines} -u {shlex.quote(unit)}", 60)[1].rstrip()
        except (Lost, RuntimeError) as error:
            return f"(no journal: {error})"

    def diagnose(self):
        """What one wants to see after a failure."""
        if self.qemu is None or self.qemu.poll() is not None:
            return self._console_tail()
        try:
            return self._run("systemctl --failed --no-legend --plain; journalctl --no-pager -q -b -p warning -n 40", 60)[1]
        except (Lost, RuntimeError):
            return self._console_tail()

    def _qemu_failed(self):
        """Whether QEMU has ended with an error of its own; with a kernel that panics it ends in order."""
        try:
            return self.qemu.wait(2) != 0
        except subprocess.TimeoutExpired:
            return False

    def _kernel_ended_early(self):
        """Whether the kernel panicked by itself, not because it found no init or init ended, or hung before it had one."""
        try:
            with open(self._place(self.description["console_log"]), errors="replace") as file:
                text = file.read()
        except OSError:
            return False
        if "Kernel panic" in text:
            return "No working init" not in text and "Attempted to kill init" not in text
        # the first thing that systemd does is to reset the console
        return "\x1b" not in text

    def _console_tail(self):
        try:
            with open(self._place(self.description["console_log"]), errors="replace") as file:
                return "console: " + "".join(file.readlines()[-20:])
        except OSError as error:
            return f"console: {error}"

    def disk(self):
        """The machine's own disk, on the host."""
        return self._place("{run}/root.img")

    def _place(self, word):
        return word.replace("{run}", self.folder.path)


def end_all():
    """Ends every machine for good, also those of other threads, whose scenarios fail of it."""
    with _living:
        _ended.set()
        for qemu in _qemus:
            qemu.kill()


def _copy_sparse(source, target):
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", "--", source, target], check=True)


def remove_stage(description):
    """Removes the disk that machines are installed from, and the description itself, once none of them is left."""
    with open(description) as file:
        shutil.rmtree(json.load(file)["stage"], ignore_errors=True)
