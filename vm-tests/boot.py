# The four services run from their own unit files, confined, none of them as root, and answer on the system bus.
# machine: fresh
# minutes: 4

import json

# What has something to do at boot; the others start with the first call to their name, or connection to their socket.
AT_BOOT = ("proxy",)
SOCKET = "/run/shipote/workspaces/shipote.sock"
SERVICES = {
    "plugins": "org.shipote.Plugins1",
    "workspaces": "org.shipote.Workspaces1",
    "machines": "org.shipote.Machines1",
    "proxy": "org.shipote.Proxy1",
}


def path_of(bus_name):
    return "/" + bus_name.replace(".", "/")


def health(bus_name):
    return machine.succeed(f"busctl call {bus_name} {path_of(bus_name)} org.shipote.Service1 Health")


def main_pid(service):
    return machine.succeed(f"systemctl show -P MainPID shipote-{service}.service").strip()


def state(service):
    """What `shipote status` has of it, which starts nothing."""
    return next(s for s in json.loads(machine.succeed("shipote status --json"))["services"] if s["name"] == service)


start_all()
machine.wait_for_unit("multi-user.target")
machine.wait_for_unit("shipote-workspaces.socket")

with subtest("what nobody has called yet does not run, and a call starts it"):
    for service, bus_name in SERVICES.items():
        if service in AT_BOOT:
            machine.wait_for_unit(f"shipote-{service}.service", timeout=120)
            continue
        machine.require_unit_state(f"shipote-{service}.service", "inactive")
        found = state(service)
        assert (found["state"], found["pid"]) == ("stopped", None) and "first call" in found["status"], found
        if service == "workspaces":
            # nothing that speaks its protocol, and a connection all the same
            machine.execute(f"curl -sS --max-time 20 --unix-socket {SOCKET} http://shipote/")
            machine.wait_for_unit("shipote-workspaces.service", timeout=120)
        assert "running" in health(bus_name)
        assert state(service)["state"] == "running"

for service, bus_name in SERVICES.items():
    unit = f"shipote-{service}.service"
    with subtest(f"{unit} is active"):
        machine.require_unit_state(unit)

    with subtest(f"{unit} says in the journal that it serves"):
        machine.succeed(f"journalctl -q -b -u {unit} --grep 'serves {bus_name}' | grep -q serves")

    with subtest(f"{bus_name} has a tree and documented interfaces"):
        assert path_of(bus_name) in machine.succeed(f"busctl tree --list {bus_name}").splitlines()
        interfaces = machine.succeed(f"busctl introspect {bus_name} {path_of(bus_name)}")
        for interface in ("org.freedesktop.DBus.ObjectManager", "org.shipote.Service1", f"{bus_name}.Manager"):
            assert interface in interfaces, f"{interface} is missing:\n{interfaces}"

    with subtest(f"{bus_name} answers Health"):
        assert "running" in health(bus_name)

    with subtest(f"{unit} runs as a user of its own, without new privileges"):
        pid = main_pid(service)
        assert machine.succeed(f"systemctl show -P User {unit}").strip() == f"shipote-{service}"
        assert machine.succeed(f"stat -c %U /proc/{pid}").strip() == f"shipote-{service}"
        status = machine.succeed(f"cat /proc/{pid}/status")
        assert "NoNewPrivs:\t1" in status, status
        capabilities = "0000000000000400" if service == "proxy" else "0000000000000000"
        assert f"CapEff:\t{capabilities}" in status, status
        assert "Seccomp:\t2" in status, status

    with subtest(f"{unit} reports its own confinement"):
        # a(sss): name, state and reason of each mechanism
        report = machine.succeed(f"busctl get-property {bus_name} {path_of(bus_name)} org.shipote.Service1 Confinement")
        print(f"     {report.strip()}")
        for mechanism in ("capabilities", "no-new-privileges", "landlock", "seccomp"):
            assert f'"{mechanism}" "enforced"' in report, report

    with subtest(f"{unit} has a low exposure, and says why what it has is not lower"):
        limit = 22 if service == "workspaces" else 15
        file = machine.succeed(f"systemctl show -P FragmentPath {unit}").strip()
        analyze = "systemd-analyze security --no-pager --offline=true"
        machine.succeed(f"{analyze} --threshold={limit} {file} > /tmp/security")
        print("     " + machine.succeed("tail -n 1 /tmp/security").strip())
        written = machine.succeed(f"cat {file}")
        for row in json.loads(machine.succeed(f"{analyze} --json=short {file}")):
            directive = row["name"].split("=")[0]
            assert row["set"] is not False or f"{directive}=" in written, f"nothing on {directive}= in {file}: {row}"

with subtest("nobody but a service's user may own its name"):
    for bus_name in SERVICES.values():
        call = "org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus RequestName su"
        refusal = machine.fail(f"busctl call {call} {bus_name} 0 2>&1")
        assert "not allowed" in refusal.lower() or "denied" in refusal.lower(), refusal

with subtest("each service is started by a call to its name"):
    for service, bus_name in SERVICES.items():
        machine.succeed(f"systemctl stop shipote-{service}.service")
        machine.require_unit_state(f"shipote-{service}.service", "inactive")
        assert "running" in health(bus_name)
        machine.require_unit_state(f"shipote-{service}.service")

with subtest("a killed service is back, and nothing of the former one is left"):
    for service, bus_name in SERVICES.items():
        cgroup = f"/sys/fs/cgroup/system.slice/shipote-{service}.service"
        before = machine.succeed(f"find {cgroup} -name cgroup.procs -exec cat {{}} +").split()
        pid = main_pid(service)
        assert pid in before
        machine.succeed(f"kill -KILL {pid}")
        machine.wait_until_succeeds(
            f'pid=$(systemctl show -P MainPID shipote-{service}.service); test "$pid" -gt 0 -a "$pid" != {pid}', timeout=60
        )
        machine.wait_for_unit(f"shipote-{service}.service", timeout=60)
        assert "running" in health(bus_name)
        for pid in before:
            # what was made ahead ends by itself
            machine.wait_until_fails(f"test -e /proc/{pid}", timeout=60)

with subtest("who connects while the workspaces' service is stopped waits for it, and who may is the unit's to say"):
    machine.succeed("systemctl stop shipote-workspaces.service")
    assert machine.succeed(f"stat -c '%U:%G %a' {SOCKET}").strip() == "shipote-workspaces:shipote 660"
    assert machine.succeed(f"stat -c '%U:%G %a' $(dirname {SOCKET})").strip() == "shipote-workspaces:shipote-workspaces 755"
    machine.execute(f"curl -sS --max-time 20 --unix-socket {SOCKET} http://shipote/")
    machine.wait_for_unit("shipote-workspaces.service", timeout=120)
    assert machine.succeed(f"stat -c '%U:%G %a' {SOCKET}").strip() == "shipote-workspaces:shipote 660"

with subtest("a reload is announced and answered"):
    for service in SERVICES:
        machine.succeed(f"systemctl reload shipote-{service}.service", timeout=60)
        machine.require_unit_state(f"shipote-{service}.service")

with subtest("a service that hangs is ended by the watchdog's limit, not before"):
    for service in SERVICES:
        assert machine.get_unit_property(f"shipote-{service}.service", "WatchdogUSec") == "1min"

with subtest("after a reboot all services are there again"):
    machine.shutdown()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    for service, bus_name in SERVICES.items():
        if service in AT_BOOT:
            machine.wait_for_unit(f"shipote-{service}.service", timeout=120)
        else:
            machine.require_unit_state(f"shipote-{service}.service", "inactive")
        assert "running" in health(bus_name)
    assert machine.succeed("systemctl --failed --no-legend --plain").strip() == ""
