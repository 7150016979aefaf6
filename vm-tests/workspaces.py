# Commands and pipelines in workspaces, under the unit's hardening; who may ask for them; what they cannot reach; and that
# nothing of them is left behind.
# minutes: 3

import json

UNIT = "shipote-workspaces.service"
CGROUP = f"/sys/fs/cgroup/system.slice/{UNIT}"
USER = "shipote-workspaces"

# What this kernel and this unit allow in full. Not in the list: host-ids (a service without privilege has one uid to give)
# and cgroup.
ENFORCED = [
    "user-namespace",
    "mount-namespace",
    "pid-namespace",
    "ipc-namespace",
    "uts-namespace",
    "network-namespace",
    "cgroup-namespace",
    "devpts",
    "own-proc",
    "pivoted-root",
    "rlimits",
    "landlock",
    "no-new-privileges",
    "capabilities",
    "seccomp",
]


def count(command):
    return int(machine.succeed(command))


# A group may end between being found and being read; that of the unit is there.
PROCESSES = f"test -d {CGROUP} && {{ find {CGROUP} -name cgroup.procs -exec cat {{}} + 2>/dev/null || true; }} | wc -l"


def leftovers():
    """Processes of the unit, descriptors and mounts of the service."""
    pid = machine.succeed(f"systemctl show -P MainPID {UNIT}").strip()
    return (
        count(PROCESSES),
        count(f"ls /proc/{pid}/fd | wc -l"),
        count(f"wc -l < /proc/{pid}/mountinfo"),
    )


start_all()
machine.wait_for_unit("multi-user.target")
machine.succeed(f"systemctl start {UNIT}", timeout=120)
machine.succeed("getent passwd mallory || useradd --create-home mallory")
machine.succeed("getent passwd runner || useradd --create-home --groups shipote runner")

with subtest("every mechanism of isolation is enforced under the unit's hardening"):
    capabilities = json.loads(machine.succeed("shipote capabilities --json"))["mechanisms"]
    states = {mechanism["name"]: mechanism for mechanism in capabilities}
    for name in ENFORCED:
        found = states.get(name)
        assert found is not None and found["state"] == "enforced", (name, found, capabilities)

with subtest("a command's input, output and exit status are its caller's"):
    assert machine.succeed("echo hello | shipote run -- tr a-z A-Z").strip() == "HELLO"
    assert machine.execute("shipote run -- sh -c 'exit 7'")[0] == 7
    assert machine.execute("shipote run -- sh -c 'kill -TERM $$'")[0] == 143
    assert machine.execute("shipote run -- no-such-program 2>/dev/null")[0] == 127

with subtest("a command reaches nothing of the host"):
    machine.succeed("echo secret > /home/mallory/file; chmod 755 /home/mallory; chmod 644 /home/mallory/file")
    machine.fail("shipote run -- cat /home/mallory/file")
    machine.fail("shipote run -- cat /etc/shadow")
    machine.fail("shipote run -- ls /root /run/dbus /run/systemd /var/lib/shipote")
    machine.fail("shipote run -- sh -c 'echo > /usr/bin/planted'")
    machine.fail("shipote run -- sh -c 'echo 1 > /proc/sys/kernel/panic'")
    machine.fail("shipote run -- mount -t tmpfs none /tmp")
    machine.fail("shipote run -- unshare --user true")
    machine.fail("shipote run -- cat /dev/kmsg")
    status = machine.succeed("shipote run -- cat /proc/self/status")
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status, status

with subtest("a command sees its own processes only, and no network"):
    seen = machine.succeed("shipote run -- sh -c 'ls -d /proc/[0-9]*'").split()
    assert len(seen) <= 4, seen
    interfaces = machine.succeed("shipote run -- cat /proc/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] in ([], ["lo"]), interfaces

with subtest("a workspace keeps its files between commands, and apart from others"):
    machine.succeed("shipote workspace create left", "shipote workspace create right")
    machine.succeed("shipote run -w left -- sh -c 'echo kept > /work/file'")
    assert machine.succeed("shipote run -w left -- cat /work/file").strip() == "kept"
    machine.fail("shipote run -w right -- cat /work/file")
    machine.fail("shipote workspace create left")
    machine.succeed("shipote workspace stop left", "shipote workspace stop right")

with subtest("a tapped pipeline works on real input and says what flows"):
    machine.succeed(
        """cat > /tmp/pipeline.toml <<'EOF'
label = "users"
[[nodes]]
label = "shells"
command = ["cut", "-d:", "-f7"]
[[nodes]]
label = "sort"
command = ["sort"]
[[nodes]]
label = "count"
command = ["uniq", "-c"]
[[edges]]
from = "shells"
to = "sort"
[[edges]]
from = "sort"
to = "count"
EOF"""
    )
    expected = machine.succeed("cut -d: -f7 /etc/passwd | sort | uniq -c")
    assert machine.succeed("shipote pipeline run --tap /tmp/pipeline.toml < /etc/passwd 2> /tmp/table") == expected
    print(machine.succeed("cat /tmp/table"))

with subtest("a detached command is attached to, and its input ends if who attaches says so"):
    command = machine.succeed("shipote run --detach --interactive -- sed -u s/^/got:/").strip()
    machine.succeed(f"echo hello | shipote attach --end-input {command} > /tmp/attached")
    assert machine.succeed("cat /tmp/attached").strip() == "got:hello"
    machine.wait_until_succeeds("shipote ps --all --json | grep -q '\"exit_status\":0'", timeout=30)

with subtest("a workspace shares flows: with itself and its owner, or with everybody"):
    machine.succeed(
        "printf '%s\\n' '[[flow_dirs]]' 'name = \"own\"' 'direction = \"output\"' "
        "'[[flow_dirs]]' 'name = \"open\"' 'direction = \"output\"' 'scope = \"public\"' > /tmp/flows.toml",
        "shipote workspace create flows -f /tmp/flows.toml",
        "shipote run -w flows -- sh -c 'echo mine >&$SHIPOTE_FLOW_OWN; echo all >&$SHIPOTE_FLOW_OPEN'",
    )
    listed = json.loads(machine.succeed("shipote flow list --json"))["flows"]
    sockets = {flow["from_output"]: flow["socket"] for flow in listed}
    read = "timeout 5 perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new($ARGV[0]) or die $!; print scalar <$s>'"
    assert machine.succeed(f"{read} {sockets['own']}") == "mine\n"
    for user, own in (("mallory", ""), ("runner", ""), ("root", "mine\n")):
        assert machine.execute(f"runuser -u {user} -- {read} {sockets['own']}")[1] == own, user
        assert machine.execute(f"runuser -u {user} -- {read} {sockets['open']}")[1] == "all\n", user
    inside = read.replace("'", "'\\''")
    assert machine.succeed(f"shipote run -w flows -- sh -c '{inside} /run/flows/own'") == "mine\n"
    machine.fail("shipote run -- test -e /run/flows")
    machine.succeed("shipote workspace stop flows --grace 0")

with subtest("what an overlay changes is the workspace's own, and is kept if that is asked for"):
    machine.succeed(
        "mkdir -p /srv/source && echo host > /srv/source/file && chown -R shipote-workspaces: /srv/source",
        "printf '%s\\n' 'on_exit = \"snapshot\"' '[[paths]]' 'path = \"/srv/source\"' 'access = \"overlay\"' > /tmp/overlay.toml",
        "shipote workspace create layered -f /tmp/overlay.toml",
        "shipote run -w layered -- sh -c 'echo changed > /srv/source/file; echo x > /srv/source/new'",
        "shipote workspace stop layered",
        "shipote workspace create layered -f /tmp/overlay.toml",
    )
    assert machine.succeed("shipote run -w layered -- cat /srv/source/file /srv/source/new") == "changed\nx\n"
    assert machine.succeed("cat /srv/source/file") == "host\n"
    machine.fail("test -e /srv/source/new")
    machine.succeed("shipote workspace stop layered")

with subtest("what a workspace keeps on the disk is bounded, and a disk filler is ended"):
    machine.succeed(
        "printf '%s\\n' 'on_exit = \"snapshot\"' 'scratch_bytes = 2097152' > /tmp/full.toml",
        "shipote workspace create full -f /tmp/full.toml",
        "shipote run -w full -- sh -c 'head -c 1000000 /dev/urandom > fits'",
    )
    filler = "mkdir -p a/b; while :; do head -c 1000000 /dev/urandom >> a/b/more; sleep 0.2; done"
    _, text = machine.execute(f"shipote run -w full --json -- sh -c '{filler}' 2>/dev/null", timeout=120)
    result = json.loads(text)
    assert result["reason"] == "quota" and "more than 2097152 bytes" in result["message"], result
    machine.succeed("shipote workspace stop full")
    refused = machine.fail("shipote workspace create full -f /tmp/full.toml 2>&1")
    assert "remove some of /" in refused and "scratch_bytes" in refused, refused

with subtest("who is neither an administrator nor of the group shipote may not run anything"):
    machine.fail("runuser -u mallory -- shipote run -- true")
    machine.fail("runuser -u mallory -- shipote workspace create taken")

with subtest("a member of the group shipote may run commands, not manage workspaces"):
    assert machine.succeed("runuser -u runner -- shipote run -- echo ran").strip() == "ran"
    machine.fail("runuser -u runner -- shipote workspace create taken")

with subtest("every change is a journal record with its author, also a refused one"):
    uid = machine.succeed("id -u runner").strip()
    query = f"journalctl -q -b -o json SHIPOTE_ACTION=command.run SHIPOTE_UID={uid}"
    earlier = len(machine.succeed(query).splitlines())
    assert earlier >= 1, "the command of the subtest before"
    machine.succeed("runuser -u runner -- shipote run -- true")
    records = machine.succeed(query).splitlines()
    assert len(records) == earlier + 1, records
    record = json.loads(records[-1])
    assert record["SHIPOTE_RESULT"] == "ok" and record["_SYSTEMD_UNIT"] == UNIT, record
    created = machine.succeed("journalctl -q -b -o json SHIPOTE_ACTION=workspace.create SHIPOTE_OBJECT=left").splitlines()
    assert [json.loads(line)["SHIPOTE_RESULT"] == "ok" for line in created] == [True, False], created
    assert "command.run" in machine.succeed("shipote audit --limit 5 --action command.run")

with subtest("after many commands, one by one and at once, nothing is left"):
    machine.succeed("shipote run -- true")
    before = leftovers()
    machine.succeed("for i in $(seq 10); do shipote run -- true; done")
    machine.succeed("pids=; for i in $(seq 10); do shipote run -- sh -c 'echo x' & pids+=\" $!\"; done; for p in $pids; do wait $p; done")
    machine.wait_until_succeeds(f"test $({PROCESSES}) -le {before[0]}", timeout=60)
    after = leftovers()
    assert all(now <= then for now, then in zip(after, before)), (before, after)
