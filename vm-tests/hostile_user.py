# Methods that change something, or hand something out, tried by people who should not: nobody, an ordinary user,
# and a member of the group shipote, who may run work and nothing more. And by root, so that no call is refused because
# it was written down wrongly here.

import shlex

WORKSPACES, MACHINES, PROXY, PLUGINS = "Workspaces1", "Machines1", "Proxy1", "Plugins1"

# service, method (of Manager, or INTERFACE.METHOD), arguments as busctl(1) takes them, and whether members of the group may: in what is somebody else's
# (the workspace `victim` is root's, and a command that nobody knows is nobody's) they may not
CALLS = [
    (WORKSPACES, "CreateWorkspace", 'ssa{sv} mallory "" 0', False),
    (WORKSPACES, "StopWorkspace", "sta{sv} victim 0 0", False),
    (WORKSPACES, "Run", 'sasa{sv}ah "" 1 true 0 0', True),
    (WORKSPACES, "Run", "sasa{sv}ah victim 1 true 0 0", False),
    (WORKSPACES, "SignalCommand", "si 01M7XNAH7YQB736SRDXJAX07VW 9", False),
    (WORKSPACES, "OpenLog", "ssa{sv} 01M7XNAH7YQB736SRDXJAX07VW stdout 0", False),
    (WORKSPACES, "Connect", "sqa{sv} victim 8080 0", False),
    (WORKSPACES, "Figures.Stats", "sa{sv} victim 0", False),
    (WORKSPACES, "Figures.History", "sua{sv} victim 0 0", False),
    (WORKSPACES, "Figures.Quota", "sa{sv} victim 0", False),
    (WORKSPACES, "OpenInput", "sa{sv} 01M7XNAH7YQB736SRDXJAX07VW 0", False),
    (WORKSPACES, "ResizeTerminal", "sqq 01M7XNAH7YQB736SRDXJAX07VW 80 24", False),
    (WORKSPACES, "StopPipeline", "sta{sv} 01M7XNAH7YQB736SRDXJAX07VW 0 0", True),
    (MACHINES, "Create", 'ssa{sv} mallory "" 0', False),
    (MACHINES, "Start", "sa{sv} victim 0", False),
    (MACHINES, "Stop", "sta{sv} victim 0 0", False),
    (MACHINES, "Delete", "sa{sv} victim 0", False),
    (MACHINES, "Connect", "sua{sv} victim 6000 0", False),
    (MACHINES, "Console", "sa{sv} victim 0", False),
    (PROXY, "Reload", "a{sv} 0", False),
    (PLUGINS, "Activate", "sa{sv} victim 0", False),
    (PLUGINS, "Rollback", "sa{sv} victim 0", False),
    (PLUGINS, "Remove", "sa{sv} victim 0", False),
    (PLUGINS, "Open", "sa{sv} victim 0", False),
    (PLUGINS, "Canary", "sua{sv} victim 500 0", False),
    (PLUGINS, "Promote", "sa{sv} victim 0", False),
    (PLUGINS, "Abort", "sa{sv} victim 0", False),
    (PLUGINS, "CanaryFailed", "sts victim 1 no", False),
]

# What a refusal looks like on the bus: ours, or the bus's own.
REFUSALS = ("is refused to uid", "access denied", "accessdenied", "not allowed", "may not", "notauthorized", "not authorized")


def qualified(method):
    return method if "." in method else f"Manager.{method}"


def call(user, service, method, arguments):
    name = f"org.shipote.{service}"
    path = "/" + name.replace(".", "/")
    interface, method = qualified(method).split(".")
    command = f"busctl call {name} {path} {name}.{interface} {method} {arguments}"
    return machine.execute(f"runuser -u {user} -- sh -c {shlex.quote(command)} 2>&1", timeout=60)


def refused(answer):
    status, output = answer
    return status != 0 and any(word in output.lower() for word in REFUSALS)


start_all()
machine.wait_for_unit("multi-user.target")
for service in ("workspaces", "machines", "proxy", "plugins"):
    machine.wait_for_unit(f"shipote-{service}.service", timeout=120)
machine.succeed("getent passwd mallory || useradd --create-home mallory")
machine.succeed("getent passwd runner || useradd --create-home --groups shipote runner")
machine.succeed("shipote workspace list | grep -qw victim || shipote workspace create victim")

for user in ("nobody", "mallory"):
    with subtest(f"{user} may change nothing"):
        for service, method, arguments, _ in CALLS:
            answer = call(user, service, method, arguments)
            assert refused(answer), f"{user} called {service}.{method}: {answer}"

with subtest("a member of the group shipote may run work, and nothing else"):
    for service, method, arguments, group in CALLS:
        answer = call("runner", service, method, arguments)
        assert refused(answer) != group, f"runner called {service}.{method}: {answer}"

with subtest("root is refused nothing, so every call above is one that exists"):
    for service, method, arguments, _ in CALLS:
        if method in ("StopWorkspace", "Reload"):
            continue
        status, output = call("root", service, method, arguments)
        lowered = output.lower()
        assert not any(word in lowered for word in REFUSALS), f"{service}.{method}: {output}"
        assert "unknown method" not in lowered and "invalid argument" not in lowered, f"{service}.{method}: {output}"
    machine.execute("shipote workspace stop mallory")
    machine.execute("shipote machine rm mallory")

with subtest("nobody but the service's own user may send as it, and files of the services are nobody's business"):
    for folder in ("workspaces", "machines", "proxy", "plugins"):
        machine.fail(f"runuser -u mallory -- ls /var/lib/shipote/{folder}")
        machine.fail(f"runuser -u runner -- ls /var/lib/shipote/{folder}")
    socket = "/run/shipote/workspaces/shipote.sock"
    machine.succeed(f"test -S {socket}")
    machine.fail(f'runuser -u mallory -- perl -MIO::Socket::UNIX -e \'IO::Socket::UNIX->new(Peer => "{socket}") or exit 1\'')
    machine.succeed(f'runuser -u runner -- perl -MIO::Socket::UNIX -e \'IO::Socket::UNIX->new(Peer => "{socket}") or exit 1\'')

with subtest("each refusal is on record, with who was refused"):
    uid = machine.succeed("id -u mallory").strip()
    refused_calls = machine.succeed(f"journalctl -q -b -o cat --output-fields=SHIPOTE_OBJECT SHIPOTE_ACTION=access.refused SHIPOTE_UID={uid}")
    for service, method in {(service, method) for service, method, _, _ in CALLS}:
        assert f"org.shipote.{service}.{qualified(method)}" in refused_calls.split(), f"{service}.{method}:\n{refused_calls}"
    explained = machine.succeed(f"journalctl -q -b -x -n 3 SHIPOTE_ACTION=access.refused SHIPOTE_UID={uid}")
    assert "Written when a caller was refused" in explained, explained

machine.succeed("shipote workspace stop victim")
