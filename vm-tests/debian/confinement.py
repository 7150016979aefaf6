# What the units and policies deny is denied to the very processes that run: each thread of each service makes the system
# calls itself (`xtask vm inject`). A process of the same user without the confinement makes them, too: so that it is the
# confinement that is seen, not the user's rights.

SERVICES = ("plugins", "workspaces", "machines", "proxy")
# connected, on its way, or nobody listens there: it was let through
REACHED = {"ok", "EINPROGRESS", "ECONNREFUSED"}
NO_FAMILY, NO_ACCESS, NO_RIGHT, NONE = {"EAFNOSUPPORT"}, {"EACCES"}, {"EPERM"}, {"ENOSYS"}

# Attempt, what comes of it in the services, by service where they differ, and without confinement (None: not tried).
TABLE = [
    # landlock: files that every user may read, places where every user may write
    ("read /etc/passwd", {"ok"}, {"ok"}),
    ("read /var/lib/dpkg/status", NO_ACCESS, {"ok"}),
    ("create /tmp/probe", NO_ACCESS, {"ok"}),
    ("create /var/tmp/probe", NO_ACCESS, {"ok"}),
    ("create /dev/shm/probe", NO_ACCESS, {"ok"}),
    ("create /var/lib/shipote/{service}/probe", {"ok"}, {"ok"}),
    # machines start QEMU
    ("execute /usr/bin/true", {"plugins": NO_ACCESS, "workspaces": NO_ACCESS, "proxy": NO_ACCESS}, None),
    # landlock, the unit's address families and its network
    ("tcp 127.0.0.1:1", {"plugins": NO_FAMILY, "workspaces": NO_ACCESS, "machines": NO_ACCESS, "proxy": REACHED}, REACHED),
    ("socket netlink", {"plugins": NO_FAMILY, "machines": NO_FAMILY, "proxy": NO_FAMILY}, {"ok"}),
    ("socket vsock", {"plugins": NO_FAMILY, "workspaces": NO_FAMILY, "proxy": NO_FAMILY}, {"ok", "EPROTONOSUPPORT", "ENODEV"}),
    ("socket packet", NO_FAMILY, NO_RIGHT),
    # seccomp: the unit's list, and the service's own
    ("keyring", NO_RIGHT, {"EOPNOTSUPP"}),
    ("performance", NO_RIGHT, {"EFAULT"}),
    ("ptrace", NO_RIGHT, {"ESRCH"}),
    ("io_uring", NONE, {"EFAULT", "EINVAL"}),
    ("write-execute", {"plugins": {"EPERM", "EACCES"}, "proxy": {"ok"}}, {"ok"}),
    # last: where it is allowed it changes who one is
    ("user-namespace", NO_RIGHT, {"ok"}),
]


def tried(process, service, attempts):
    """What came of each attempt, by thread."""
    lines = "\n".join(attempts)
    report = machine.succeed(f"/mnt/host/xtask vm inject {process} <<'EOF'\n{lines}\nEOF")
    found = {}
    for line in report.splitlines():
        number, name, attempt, result = line.split("\t")
        found.setdefault((number, name), {})[attempt] = result
    return found


def expected(what, service):
    return what.get(service) if isinstance(what, dict) else what


start_all()
machine.wait_for_unit("multi-user.target")
for service in SERVICES:
    machine.succeed(f"systemctl start shipote-{service}.service", timeout=120)

for service in SERVICES:
    rows = [(attempt.format(service=service), expected(confined, service), control) for attempt, confined, control in TABLE]
    with subtest(f"each thread of shipote-{service} is refused what its unit and its policy deny"):
        process = machine.succeed(f"systemctl show -P MainPID shipote-{service}.service").strip()
        threads = tried(process, service, [attempt for attempt, confined, _ in rows if confined])
        assert len(threads) >= (2 if service == "proxy" else 1), threads
        for (number, name), found in threads.items():
            for attempt, confined, _ in rows:
                assert not confined or found[attempt] in confined, f"{name} ({number}): {attempt}: {found[attempt]}, not {confined}"
        names = sorted(name for _, name in threads)
        print(f"     {len(threads)} threads: {', '.join(names)}")
        # and it has gone on
        assert machine.succeed(f"systemctl show -P MainPID shipote-{service}.service").strip() == process
        bus = f"org.shipote.{service.capitalize()}1"
        assert "running" in machine.succeed(f"busctl call {bus} /{bus.replace('.', '/')} org.shipote.Service1 Health")

    with subtest(f"the user shipote-{service} is refused none of it without them"):
        machine.succeed(f"systemd-run --quiet --unit control-{service} -p User=shipote-{service} sleep 600")
        process = machine.succeed(f"systemctl show -P MainPID control-{service}.service").strip()
        machine.wait_until_succeeds(f"grep -qx sleep /proc/{process}/comm")
        (found,) = tried(process, service, [attempt for attempt, _, control in rows if control]).values()
        for attempt, confined, control in rows:
            assert not control or found[attempt] in control, f"{attempt}: {found[attempt]}, not {control}"
        machine.succeed(f"systemctl stop control-{service}")
