# Every method of every service, tried by people who should not: nobody, an ordinary user, and a member of the group
# shipote, who may run work and nothing more. And by root, so that no call is refused because it was written down wrongly
# here. What the services offer is asked of them: a method without a row below fails, and so does a polkit action.
# minutes: 7

import re
import xml.etree.ElementTree as xml

WORKSPACES, MACHINES, PROXY, PLUGINS = "Workspaces1", "Machines1", "Proxy1", "Plugins1"

# Who decides.
RUN, MANAGE = "org.shipote.workspaces.run", "org.shipote.workspaces.manage"
WORKSPACE_EGRESS, REACH = "org.shipote.workspaces.egress", "org.shipote.workspaces.connect"
MACHINES_MANAGE, MACHINES_EXEC = "org.shipote.machines.manage", "org.shipote.machines.exec"
MACHINES_REACH, MACHINES_EGRESS = "org.shipote.machines.connect", "org.shipote.machines.egress"
PROXY_MANAGE, PROXY_CERTIFY = "org.shipote.proxy.manage", "org.shipote.proxy.certify"
PLUGINS_MANAGE, PLUGINS_OPEN = "org.shipote.plugins.manage", "org.shipote.plugins.open"
# Anybody may look: names and figures of what there is, no content, and nothing changes.
OPEN = None

# Commands and pipelines that are nobody's: what is not the caller's own takes the right to manage.
UNKNOWN = "01M7XNAH7YQB736SRDXJAX07VW"

# Service, interface and method, arguments as busctl(1) takes them (a descriptor by a redirection), and the action that
# polkit is asked about. `victim` is root's. {workspace}, {command}, {pipeline}: objects of root's.
CALLS = [
    (WORKSPACES, "Manager.CreateWorkspace", 'ssa{sv} mallory "" 0', MANAGE),
    (WORKSPACES, "Manager.ListWorkspaces", "a{sv} 0", OPEN),
    (WORKSPACES, "Manager.GetWorkspace", "s victim", OPEN),
    (WORKSPACES, "Manager.StopWorkspace", "sta{sv} victim 0 0", MANAGE),
    (WORKSPACES, "Manager.Run", 'sasa{sv}ah "" 1 true 0 0', RUN),
    (WORKSPACES, "Manager.Run", "sasa{sv}ah victim 1 true 0 0", MANAGE),
    (WORKSPACES, "Manager.ListCommands", 'sa{sv} "" 0', OPEN),
    (WORKSPACES, "Manager.SignalCommand", f"si {UNKNOWN} 9", MANAGE),
    (WORKSPACES, "Manager.SignalCommand", "si {command} 9", MANAGE),
    (WORKSPACES, "Manager.ExplainCommand", "s {command}", MANAGE),
    (WORKSPACES, "Manager.OpenLog", "ssa{sv} {command} stdout 0", MANAGE),
    (WORKSPACES, "Manager.OpenInput", "sa{sv} {command} 0", MANAGE),
    (WORKSPACES, "Manager.ResizeTerminal", "sqq {command} 80 24", MANAGE),
    (WORKSPACES, "Manager.RunPipeline", 'ssa{ss}a{sv}ah victim "nodes = []" 0 0 0', RUN),
    (WORKSPACES, "Manager.StopPipeline", f"sta{{sv}} {UNKNOWN} 0 0", RUN),
    (WORKSPACES, "Manager.StopPipeline", "sta{sv} {pipeline} 0 0", MANAGE),
    (WORKSPACES, "Manager.ListPipelines", "a{sv} 0", OPEN),
    (WORKSPACES, "Manager.ListFlows", "a{sv} 0", OPEN),
    (WORKSPACES, "Manager.DropFlows", f"sa{{sv}} {UNKNOWN} 0", RUN),
    (WORKSPACES, "Manager.DropFlows", "sa{sv} {pipeline} 0", MANAGE),
    (WORKSPACES, "Manager.Discern", 'aysb 2 35 33 "" true', OPEN),
    (WORKSPACES, "Manager.Connect", "sqa{sv} victim 8080 0", REACH),
    (WORKSPACES, "Manager.Serve", "sasa{sv}ah victim 1 /usr/bin/true 1 timeout_ms t 1000 0", REACH),
    (WORKSPACES, "Manager.Capabilities", "", OPEN),
    (WORKSPACES, "Figures.Stats", "sa{sv} victim 0", MANAGE),
    (WORKSPACES, "Figures.Stats", 'sa{sv} "" 0', RUN),
    (WORKSPACES, "Figures.History", "sua{sv} victim 0 0", MANAGE),
    (WORKSPACES, "Figures.Quota", "sa{sv} victim 0", MANAGE),
    (WORKSPACES, "Saved.Save", "ssa{sv} victim 'label = \"p\"' 0", MANAGE),
    (WORKSPACES, "Saved.List", "a{sv} 0", OPEN),
    (WORKSPACES, "Saved.Get", "sa{sv} victim 0", RUN),
    (WORKSPACES, "Saved.Drop", "sa{sv} victim 0", MANAGE),
    (WORKSPACES, "Manager.Publish", "saqaqa{sv} victim 1 80 0 0", MANAGE),
    (WORKSPACES, "Egress.Change", "sasasa{sv} victim 1 example.com 0 0", WORKSPACE_EGRESS),
    (WORKSPACES, "Egress.List", "a{sv} 0", OPEN),
    (WORKSPACES, "Egress.Open", "s {workspace}", REACH),
    (WORKSPACES, "Workspace.Stop", "t 0", MANAGE),
    (WORKSPACES, "Command.Signal", "i 9", MANAGE),
    (WORKSPACES, "Pipeline.Stop", "t 0", MANAGE),
    (MACHINES, "Manager.Create", 'ssa{sv} mallory "" 0', MACHINES_MANAGE),
    (MACHINES, "Manager.Start", "sa{sv} victim 0", MACHINES_MANAGE),
    (MACHINES, "Manager.Stop", "sta{sv} victim 0 0", MACHINES_MANAGE),
    (MACHINES, "Manager.Pause", "sa{sv} victim 0", MACHINES_MANAGE),
    (MACHINES, "Manager.Resume", "sa{sv} victim 0", MACHINES_MANAGE),
    (MACHINES, "Manager.Inspect", "sa{sv} victim 0", OPEN),
    (MACHINES, "Manager.Delete", "sa{sv} victim 0", MACHINES_MANAGE),
    (MACHINES, "Manager.List", "a{sv} 0", OPEN),
    (MACHINES, "Manager.Connect", "sua{sv} victim 6000 0", MACHINES_EXEC),
    (MACHINES, "Manager.Reach", "sqa{sv} victim 8080 0", MACHINES_REACH),
    (MACHINES, "Manager.WorkloadToken", "sa{sv} victim 0", MACHINES_MANAGE),
    (MACHINES, "Manager.Snapshot", "ssa{sv} victim mallory 0", MACHINES_MANAGE),
    (MACHINES, "Manager.ListSnapshots", "a{sv} 0", OPEN),
    (MACHINES, "Manager.DeleteSnapshot", "sa{sv} victim 0", MACHINES_MANAGE),
    (MACHINES, "Manager.Capabilities", "", OPEN),
    (MACHINES, "Manager.Console", "sa{sv} victim 0", MACHINES_MANAGE),
    (MACHINES, "Manager.SetMemory", "sta{sv} victim 0 0", MACHINES_MANAGE),
    (MACHINES, "Manager.Publish", "sasasa{sv} victim 1 80 0 0", MACHINES_MANAGE),
    (MACHINES, "Egress.Change", "sasasa{sv} victim 1 example.com 0 0", MACHINES_EGRESS),
    (MACHINES, "Egress.List", "a{sv} 0", OPEN),
    (MACHINES, "Egress.Open", "s 1", MACHINES_REACH),
    (PROXY, "Manager.ListRules", "a{sv} 0", OPEN),
    (PROXY, "Manager.Graph", "s json", OPEN),
    (PROXY, "Manager.Compile", "'a(ss)s' 0 json", OPEN),
    (PROXY, "Manager.Reload", "a{sv} 0", PROXY_MANAGE),
    (PROXY, "Manager.ListConnections", "a{sv} 0", OPEN),
    (PROXY, "Manager.ListUpstreams", "a{sv} 0", OPEN),
    (PROXY, "Manager.ListFlows", "ua{sv} 10 0", OPEN),
    (PROXY, "Manager.ListPools", "a{sv} 0", OPEN),
    (PROXY, "Manager.ListCerts", "a{sv} 0", OPEN),
    (PROXY, "Manager.SetEgress", "sasa{sv} mallory 1 example.com 0", PROXY_MANAGE),
    (PROXY, "Manager.RemoveEgress", "sa{sv} mallory 0", PROXY_MANAGE),
    (PROXY, "Manager.ListEgress", "a{sv} 0", OPEN),
    (PROXY, "Manager.Metrics", "", OPEN),
    (PROXY, "Certificates.AnswerChallenge", "ssa{sv} token token.thumbprint 0", PROXY_CERTIFY),
    (PROXY, "Certificates.ForgetChallenge", "sa{sv} token 0", PROXY_CERTIFY),
    (PROXY, "Certificates.Renewed", "sa{sv} victim.example 0", PROXY_CERTIFY),
    (PROXY, "Egress.ListDenials", "a{sv} 0", OPEN),
    (PROXY, "Egress.ListPending", "a{sv} 0", OPEN),
    (PROXY, "Egress.Answer", "tba{sv} 1 true 0", PROXY_MANAGE),
    (PLUGINS, "Manager.Add", "ha{sv} 3 0 3< /tmp/plugin.wasm", PLUGINS_MANAGE),
    (PLUGINS, "Manager.Check", "ha{sv} 3 0 3< /tmp/plugin.wasm", PLUGINS_MANAGE),
    (PLUGINS, "Manager.List", "a{sv} 0", OPEN),
    (PLUGINS, "Manager.Show", "s victim", OPEN),
    (PLUGINS, "Manager.Activate", "sa{sv} victim 0", PLUGINS_MANAGE),
    (PLUGINS, "Manager.Rollback", "sa{sv} victim 0", PLUGINS_MANAGE),
    (PLUGINS, "Manager.Canary", "sua{sv} victim 500 0", PLUGINS_MANAGE),
    (PLUGINS, "Manager.Promote", "sa{sv} victim 0", PLUGINS_MANAGE),
    (PLUGINS, "Manager.Abort", "sa{sv} victim 0", PLUGINS_MANAGE),
    (PLUGINS, "Manager.CanaryFailed", "sts victim 1 no", PLUGINS_OPEN),
    (PLUGINS, "Manager.Remove", "sa{sv} victim 0", PLUGINS_MANAGE),
    (PLUGINS, "Manager.Open", "sa{sv} victim 0", PLUGINS_OPEN),
    (PLUGINS, "Manager.Policy", "s victim", OPEN),
    (PLUGINS, "Manager.Plan", "ssa{sv} remove victim 0", OPEN),
    (PLUGINS, "Manager.Graph", "s text", OPEN),
]
# Of every service.
CALLS += [(service, "Service1.Health", "", OPEN) for service in (WORKSPACES, MACHINES, PROXY, PLUGINS)]

# What a member of the group may do without a session: org.shipote.workspaces.run, in what is its own or nobody's.
GROUP = {RUN}
# Root would end what the others are tried on.
NOT_AS_ROOT = {"StopWorkspace", "Stop", "Signal", "SignalCommand", "StopPipeline", "DropFlows", "Reload", "Delete"}
# The service's own error for what is not there, and the like, is an answer; these are not.
WRONG = ("unknown method", "unknown interface", "unknown object", "invalid argument", "invalid signature", "too few", "too many")
REFUSED = "is refused to uid"


def root_path(service):
    return f"/org/shipote/{service}"


def interface_of(service, interface):
    return f"org.shipote.{interface}" if interface == "Service1" else f"org.shipote.{service}.{interface}"


def command_line(service, method, arguments):
    for name, value in objects.items():
        arguments = arguments.replace("{" + name + "}", value.rsplit("/", 1)[-1])
    interface, member = method.split(".")
    path = objects.get(interface.lower(), root_path(service))
    return f"busctl call org.shipote.{service} {path} {interface_of(service, interface)} {member} {arguments}"


def called(user, rows):
    """Each row with the exit status of its call and all that was printed; one session for all."""
    calls = [command_line(service, method, arguments) for service, method, arguments, _ in rows]
    script = "".join(f"said=$({line} 2>&1); printf '%s\\n@ %s\\n' \"$said\" $?\n" for line in calls)
    machine.succeed(f"cat > /tmp/calls.sh <<'EOF'\n{script}EOF")
    said = machine.execute(f"runuser -u {user} -- sh /tmp/calls.sh", timeout=600)[1]
    answers = re.findall(r"(.*?)^@ (\d+)$", said, re.DOTALL | re.MULTILINE)
    assert len(answers) == len(rows), said
    return [(*row, int(status), text.strip()) for row, (text, status) in zip(rows, answers)]


def introspect(service, path):
    return xml.fromstring(machine.succeed(f"busctl introspect --xml-interface org.shipote.{service} {path}"))


start_all()
machine.wait_for_unit("multi-user.target")
for service in ("workspaces", "machines", "proxy", "plugins"):
    machine.succeed(f"systemctl start shipote-{service}.service", timeout=120)
machine.succeed("getent passwd mallory || useradd --create-home mallory")
machine.succeed("getent passwd runner || useradd --create-home --groups shipote runner")
# a component as bytes: what is no component is refused only after the caller was looked at
machine.succeed("printf '\\0asm\\r\\0\\1\\0' > /tmp/plugin.wasm && chmod 644 /tmp/plugin.wasm")

# What is root's: a workspace with a command in it, a tapped pipeline.
machine.succeed("shipote workspace list | grep -qw victim || shipote workspace create victim")
machine.succeed("echo 'label = \"p\"' | shipote pipeline save victim -")
command = machine.succeed("shipote run -w victim --detach -- sleep 4321").strip()
machine.succeed(
    "cat > /tmp/hostile.toml <<'EOF'\n"
    'label = "victim"\n[[nodes]]\nlabel = "a"\ncommand = ["sleep", "4322"]\n[[nodes]]\nlabel = "b"\ncommand = ["cat"]\n'
    '[[edges]]\nfrom = "a"\nto = "b"\nEOF',
    "systemd-run --quiet --unit hostile-pipeline -E PATH=$PATH $(command -v shipote) pipeline run --tap /tmp/hostile.toml",
)
WANTED = {"workspace": "/workspace/", "command": "/command/", "pipeline": "/pipeline/", "flow": "/flow/"}
machine.wait_until_succeeds("busctl tree --list org.shipote.Workspaces1 | grep -q /flow/", timeout=120)
tree = machine.succeed("busctl tree --list org.shipote.Workspaces1").split()
objects = {name: next(path for path in tree if part in path) for name, part in WANTED.items()}
objects["command"] = f"{root_path(WORKSPACES)}/command/{command}"
objects["workspace"] = machine.succeed(
    "busctl call org.shipote.Workspaces1 /org/shipote/Workspaces1 org.shipote.Workspaces1.Manager GetWorkspace s victim"
).split()[1].strip('"')

with subtest("every method that a service has stands in the table, and no property can be written"):
    known = {(service, method) for service, method, _, _ in CALLS}
    there = set()
    for service in (WORKSPACES, MACHINES, PROXY, PLUGINS):
        for path in [root_path(service)] + (list(objects.values()) if service == WORKSPACES else []):
            for interface in introspect(service, path).iter("interface"):
                name = interface.get("name")
                if not name.startswith("org.shipote."):
                    continue
                there |= {(service, f"{name.rsplit('.', 1)[-1]}.{method.get('name')}") for method in interface.iter("method")}
                writable = [p.get("name") for p in interface.iter("property") if p.get("access") != "read"]
                assert writable == [], f"{name}: {writable}"
    assert there - known == set(), f"without a row: {sorted(there - known)}"
    assert known - there == set(), f"no such method: {sorted(known - there)}"

with subtest("every polkit action stands in the table"):
    actions = machine.succeed("pkaction | grep '^org.shipote.' || true").split()
    decided = {action for _, _, _, action in CALLS if action is not None}
    assert set(actions) == decided, sorted(set(actions) ^ decided)

for user in ("nobody", "mallory", "runner"):
    what = "may run work of its own, and nothing else" if user == "runner" else "may look, and change nothing"
    with subtest(f"{user} {what}"):
        for service, method, arguments, action, status, said in called(user, CALLS):
            row = f"{user} called {service}.{method} {arguments}: {status} {said}"
            if action is OPEN or (user == "runner" and action in GROUP):
                assert REFUSED not in said and "ccess denied" not in said, row
                assert not any(word in said.lower() for word in WRONG), row
            else:
                # whoever may not even run is told of that right: it is the first that is asked for
                asked = {action, RUN} if action == MANAGE else {action}
                assert status != 0 and any(f"{one} {REFUSED}" in said for one in asked), row

with subtest("root is refused nothing, so every call above is one that exists"):
    for service, method, arguments, action, status, said in called("root", [c for c in CALLS if c[1].split(".")[1] not in NOT_AS_ROOT]):
        row = f"{service}.{method} {arguments}: {status} {said}"
        assert REFUSED not in said and not any(word in said.lower() for word in WRONG), row
    machine.execute("shipote workspace stop mallory")
    machine.execute("shipote machine rm mallory")

with subtest("what was tried on is as it was"):
    machine.succeed("pgrep -f 'sleep 4321'", "pgrep -f 'sleep 4322'", "shipote workspace list | grep -w victim")

with subtest("nobody but the service's own user may send as it, and files of the services are nobody's business"):
    for folder in ("workspaces", "machines", "proxy", "plugins", "acme"):
        machine.fail(f"runuser -u mallory -- ls /var/lib/shipote/{folder}")
        machine.fail(f"runuser -u runner -- ls /var/lib/shipote/{folder}")
    socket = "/run/shipote/workspaces/shipote.sock"
    machine.succeed(f"test -S {socket}")
    machine.fail(f'runuser -u mallory -- perl -MIO::Socket::UNIX -e \'IO::Socket::UNIX->new(Peer => "{socket}") or exit 1\'')
    machine.succeed(f'runuser -u runner -- perl -MIO::Socket::UNIX -e \'IO::Socket::UNIX->new(Peer => "{socket}") or exit 1\'')

with subtest("who floods the socket is answered at a user's rate, and meanwhile others are answered at once"):
    # Asks so often as fast as it can, counts the answers, and says when it has all. A ping is 5 bytes, its answer too.
    machine.succeed(
        "cat > /tmp/ask.pl <<'EOF'\n"
        "use IO::Socket::UNIX; $| = 1; my ($path, $times) = @ARGV; my $left = 5 * $times;\n"
        "my $to = IO::Socket::UNIX->new(Peer => $path) or die $!;\n"
        'if (!fork) { for (1 .. $times / 100) { print $to "\\0\\0\\0\\1\\0" x 100 or die; $to->flush } exit }\n'
        "while ($left > 0) { my $n = sysread $to, my $got, 65536; die 'cut off' unless $n; $left -= $n }\n"
        'print "all $times\\n";\nEOF'
    )
    # a minute and more of what a user may ask: it cannot be done before those who ask little
    machine.succeed(
        f"runuser -u runner -- sh -c 'for n in 1 2 3 4; do perl /tmp/ask.pl {socket} 100000 & done; wait' > /tmp/flood 2>&1 &",
    )
    machine.wait_until_succeeds("pgrep -u runner -c perl | grep -qx '[4-8]'", timeout=60)
    machine.succeed(f"perl /tmp/ask.pl {socket} 500", "shipote run -- true", "shipote ps")
    assert machine.succeed("cat /tmp/flood") == "", "the flood was over before others were answered"
    machine.succeed("pkill -u runner perl")
    machine.succeed(f"runuser -u runner -- perl /tmp/ask.pl {socket} 100")

with subtest("who floods the bus leaves others alone, and is not shut out for it"):
    call = command_line(WORKSPACES, "Manager.Run", 'sasa{sv}ah "" 1 true 0 0')
    machine.succeed(
        f"cat > /tmp/flood.sh <<'EOF'\nwhile [ ! -e /tmp/enough ]; do {call} || echo; done\nEOF",
        "rm -f /tmp/enough",
        "runuser -u runner -- sh -c 'for n in 1 2 3 4; do sh /tmp/flood.sh & done; wait' > /tmp/flood 2>&1 &",
    )
    machine.wait_until_succeeds("grep -q ^osah /tmp/flood", timeout=120)
    before = int(machine.succeed("grep -c ^osah /tmp/flood"))
    listing = command_line(WORKSPACES, "Manager.ListWorkspaces", "a{sv} 0")
    for _ in range(3):
        machine.succeed("shipote run -- true", f"runuser -u mallory -- {listing}")
    machine.wait_until_succeeds(f"test $(grep -c ^osah /tmp/flood) -gt {before}", timeout=120)
    machine.succeed("touch /tmp/enough")
    machine.wait_until_fails("pgrep -u runner busctl", timeout=120)
    machine.succeed(f"runuser -u runner -- {call}")

with subtest("each refusal is on record, with who was refused"):
    refused_uid = machine.succeed("id -u mallory").strip()
    refused = machine.succeed(f"journalctl -q -b -o cat --output-fields=SHIPOTE_OBJECT SHIPOTE_ACTION=access.refused SHIPOTE_UID={refused_uid}").split()
    for service, method, arguments, action in CALLS:
        interface, member = method.split(".")
        assert action is OPEN or f"{interface_of(service, interface)}.{member}" in refused, f"{service}.{method}:\n{refused}"
    explained = machine.succeed(f"journalctl -q -b -x -n 3 SHIPOTE_ACTION=access.refused SHIPOTE_UID={refused_uid}")
    assert "Written when a caller was refused" in explained, explained

machine.succeed("shipote workspace stop victim", "systemctl stop hostile-pipeline", "systemctl reset-failed hostile-pipeline || true")
