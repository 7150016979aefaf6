# Limits that the kernel holds: each is reached once, the command's result names it, the figures show it, and no control
# group is left behind. Under the unit's own hardening, with control groups delegated by systemd.
# machine: fresh
# minutes: 4

import json

UNIT = "shipote-workspaces.service"
CGROUP = f"/sys/fs/cgroup/system.slice/{UNIT}"
TREE = f"{CGROUP}/shipote:run-shipote-workspaces"


def run(words, *arguments):
    """A command line of `run --json` to its end: exit status and result."""
    status, text = machine.execute(f"shipote run --json {' '.join(arguments)} -- {words} 2>/tmp/stderr")
    lines = [line for line in text.splitlines() if line.startswith("{")]
    assert lines, (status, text, machine.succeed("cat /tmp/stderr"))
    return status, json.loads(lines[-1])


def read(path):
    return machine.succeed(f"cat '{path}'").strip()


def workspace_id(name):
    listed = json.loads(machine.succeed("shipote workspace list --json"))["workspaces"]
    return next(workspace["id"] for workspace in listed if workspace["name"] == name)


start_all()
machine.wait_for_unit("multi-user.target")
machine.succeed(f"systemctl start {UNIT}", timeout=120)

with subtest("control groups are delegated with every controller"):
    capabilities = json.loads(machine.succeed("shipote capabilities --json"))["mechanisms"]
    found = next(mechanism for mechanism in capabilities if mechanism["name"] == "cgroup")
    assert found["state"] == "enforced", found
    assert {"cpu", "io", "memory", "pids"} <= set(read(f"{TREE}/cgroup.subtree_control").split())

with subtest("a workspace has a group, its first process a leaf, each command another"):
    machine.succeed(
        "printf '%s\\n' '[soma.cgroup]' 'memory_max = 134217728' 'pids_max = 20' 'cpu_weight = 50' > /tmp/w.toml",
        "shipote workspace create limited -f /tmp/w.toml",
    )
    # of root, who made it
    group = f"{TREE}/u0/{workspace_id('limited')}"
    command = json.loads(machine.succeed("shipote run -w limited --detach --json -- sleep 300"))["id"]
    assert machine.succeed(f"wc -l < '{group}/keeper/cgroup.procs'").strip() == "1"
    assert machine.succeed(f"wc -l < '{group}/{command}/cgroup.procs'").strip() == "1"
    limits = {"memory.max": "134217728", "memory.swap.max": "0", "pids.max": "21", "cpu.weight": "50"}
    for name, value in limits.items():
        assert read(f"{group}/{name}") == value, name
    assert read(f"{group}/{command}/memory.oom.group") == "1"
    isolation = json.loads(machine.succeed("shipote workspace show limited --json"))["isolation"]
    assert next(m for m in isolation if m["name"] == "cgroup")["state"] == "enforced", isolation

with subtest("every other limit is the kernel's too"):
    machine.succeed(
        "printf '%s\\n' '[soma]' 'cpu_affinity = [0]' '[soma.cgroup]' 'memory_high = 67108864' 'cpu_max = 50' "
        "'[[soma.cgroup.io_max]]' \"device = \\\"$(lsblk -dno MAJ:MIN /dev/nvme0n1 | tr -d ' ')\\\"\" 'wbps = 1048576' > /tmp/o.toml",
        "shipote workspace create other -f /tmp/o.toml",
    )
    other = f"{TREE}/u0/{workspace_id('other')}"
    for name, value in {"memory.high": "67108864", "cpu.max": "50000 100000", "cpuset.cpus": "0"}.items():
        assert read(f"{other}/{name}") == value, name
    assert "wbps=1048576" in read(f"{other}/io.max")
    assert machine.succeed("shipote run -w other -- grep Cpus_allowed_list /proc/self/status").split()[-1] == "0"
    # what is wider than the workspace is refused, or held by the group above
    assert "cpu_affinity" in machine.fail("shipote run -w other --cpu-affinity 1 -- true 2>&1")
    machine.succeed("shipote workspace stop other")

with subtest("a killed command takes with it what has left its process group"):
    other = machine.succeed("shipote run -w limited --detach -- sh -c 'setsid sleep 7777 & sleep 300'").strip()
    machine.wait_until_succeeds("pgrep -f 'sleep 7777'", timeout=30)
    machine.succeed(f"shipote kill -s KILL {other}")
    machine.wait_until_fails("pgrep -f 'sleep 7777'", timeout=30)
    machine.wait_until_fails(f"test -e '{group}/{other}'", timeout=30)

with subtest("a command that needs too much memory is ended, and its result says why"):
    status, result = run("sh -c 'x=$(head -c 200M /dev/zero | tr \"\\\\0\" a); echo ${#x}'", "--memory", "32M")
    assert status == 137 and result["reason"] == "out-of-memory", result
    assert "33554432" in result["message"], result

with subtest("the workspace's own limit holds for all its commands together"):
    status, result = run("sh -c 'x=$(head -c 300M /dev/zero | tr \"\\\\0\" a); echo ${#x}'", "-w", "limited")
    assert status == 137 and result["reason"] == "out-of-memory", result
    assert "134217728" in result["message"], result
    machine.succeed("shipote run -w limited -- true")

with subtest("a fork bomb is held, and its result says why"):
    bomb = "sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 30 & done; wait'"
    status, result = run(bomb, "--pids", "6")
    assert status != 0 and result["reason"] == "process-limit", result
    assert "limit of 6" in result["message"], result
    # all others go on meanwhile
    machine.succeed("shipote run --detach -w limited -- sh -c 'b() { b | b & }; b'")
    assert machine.succeed("shipote run -- echo works").strip() == "works"
    count = int(machine.succeed(f"cat '{group}/pids.current'"))
    assert count <= 21, count
    machine.succeed("shipote workspace stop limited --grace 0")
    machine.wait_until_fails(f"test -e '{group}'", timeout=60)

with subtest("processor time is held"):
    spin = "sh -c 'end=$(($(date +%s) + 4)); while [ $(date +%s) -lt $end ]; do :; done'"
    machine.succeed("shipote workspace create slow")
    slow = f"{TREE}/u0/{workspace_id('slow')}"
    status, result = run(spin, "-w", "slow", "--cpus", "0.1")
    assert status == 0, result
    usage = dict(line.split() for line in read(f"{slow}/cpu.stat").splitlines())
    assert int(usage["usage_usec"]) < 1_500_000, usage
    machine.succeed("shipote workspace stop slow")

with subtest("a quota that kills ends the commands and leaves the workspace"):
    machine.succeed(
        "printf '%s\\n' '[quota_enforce]' 'nproc = \"kill\"' '[soma.cgroup]' 'pids_max = 8' > /tmp/q.toml",
        "shipote workspace create strict -f /tmp/q.toml",
    )
    bystander = machine.succeed("shipote run -w strict --detach -- sleep 4321").strip()
    status, result = run("sh -c 'while :; do sleep 60 & done'", "-w", "strict")
    listed = json.loads(machine.succeed("shipote ps --all -w strict --json"))["commands"]
    ended = next(command for command in listed if command["id"] == bystander)
    assert ended["state"] == "ended" and ended["reason"] == "quota", listed
    machine.wait_until_fails("pgrep -f 'sleep 4321'", timeout=30)
    machine.wait_until_succeeds("shipote run -w strict -- true", timeout=30)
    machine.succeed("shipote workspace stop strict")

with subtest("a command that meets its own limit is not its workspace's breach, and no neighbour's reason"):
    machine.succeed(
        "printf '%s\\n' '[quota_enforce]' 'mem = \"kill\"' 'nproc = \"kill\"' '[soma.cgroup]' 'memory_max = 134217728' 'pids_max = 60' > /tmp/n.toml",
        "shipote workspace create shared -f /tmp/n.toml",
    )
    bystander = machine.succeed("shipote run -w shared --detach -- sh -c 'while ! test -e /work/go; do sleep 1; done; exit 3'").strip()
    status, result = run("sh -c 'x=$(head -c 100M /dev/zero | tr \"\\0\" a)'", "-w", "shared", "--memory", "16M")
    assert result["reason"] == "out-of-memory" and "its limit of 16777216" in result["message"], result
    status, result = run("sh -c 'for i in $(seq 30); do sleep 5 & done; wait'", "-w", "shared", "--pids", "5")
    assert result["reason"] == "process-limit" and "its limit of 5" in result["message"], result
    machine.succeed("shipote run -w shared -- touch /work/go")
    machine.wait_until_fails(f"shipote ps -w shared --json | grep -q {bystander}", timeout=60)
    listed = json.loads(machine.succeed("shipote ps --all -w shared --json"))["commands"]
    ended = next(command for command in listed if command["id"] == bystander)
    assert ended["exit_status"] == 3 and ended["reason"] not in ("quota", "out-of-memory", "process-limit"), ended
    machine.succeed("shipote workspace stop shared --grace 0")

with subtest("whoever may only run is given a limit of memory, and none beyond it"):
    machine.succeed("getent passwd runner || useradd --create-home --groups shipote runner")
    total = int(machine.succeed("awk '/MemTotal/ {print $2}' /proc/meminfo")) * 1024
    as_runner = "runuser -u runner -- sh -c"
    machine.succeed(f"{as_runner} 'shipote run --detach -- sleep 300'")
    own = json.loads(machine.succeed(f"{as_runner} 'shipote workspace stats --json'"))["stats"]
    assert len(own) == 1 and total // 4 - (1 << 20) < own[0]["memory_limit_bytes"] <= total // 4 + (1 << 20), (own, total)
    refused = machine.fail(f"{as_runner} 'shipote run --memory 64G -- true 2>&1'")
    assert "soma.cgroup.memory_max" in refused, refused
    machine.succeed(f"shipote workspace stop {own[0]['name']} --grace 0")

with subtest("all workspaces of one user are bounded together, and no other user is"):
    machine.succeed(
        "mkdir -p /etc/shipote/shipote.toml.d",
        "printf '%s\\n' '[workspaces]' 'user_memory_max = 100663296' > /etc/shipote/shipote.toml.d/50-limits.toml",
        f"systemctl restart {UNIT}",
    )
    machine.wait_until_succeeds("shipote run -- true", timeout=60)
    runner = machine.succeed("id -u runner").strip()
    # grown in place: a string that is assigned would be there twice for a moment
    hog = "perl -e '\\''vec($x, 60 << 20, 8) = 1; sleep 90'\\''"
    for name in ("one", "two"):
        machine.succeed(f"{as_runner} 'shipote run --json --memory 90M -- {hog} > /tmp/{name}.json 2>/dev/null & true'")
    machine.wait_until_succeeds("grep -lh out-of-memory /tmp/one.json /tmp/two.json", timeout=60)
    text = machine.succeed("cat /tmp/one.json /tmp/two.json")
    assert f"all workspaces of user {runner} reached their limit of 100663296" in text, text
    stats = json.loads(machine.succeed(f"{as_runner} 'shipote workspace stats --json'"))["stats"]
    assert len(stats) == 1 and stats[0]["user_memory_limit_bytes"] == 100663296, stats
    assert 60 << 20 <= stats[0]["user_memory_bytes"] <= 100663296, stats
    quota = json.loads(machine.succeed(f"shipote workspace quota {stats[0]['name']} --json"))
    assert any(f"all workspaces of user {runner}" in breach for breach in quota["breaches"]), quota
    # root needs as much again, and has it
    assert machine.succeed("shipote run -- perl -e '$x = \"a\" x (110 << 20); print length $x'") == str(110 << 20)
    machine.succeed(f"shipote workspace stop {stats[0]['name']} --grace 0")
    machine.succeed("rm /etc/shipote/shipote.toml.d/50-limits.toml", f"systemctl restart {UNIT}")
    machine.wait_until_succeeds("shipote run -- true", timeout=60)
    machine.wait_until_fails(f"test -e '{TREE}/u{runner}'", timeout=30)

with subtest("the figures come from the control group"):
    machine.succeed(
        "printf '%s\\n' '[soma.cgroup]' 'memory_max = 134217728' 'pids_max = 50' > /tmp/f.toml",
        "shipote workspace create seen -f /tmp/f.toml",
        "shipote run -w seen --detach -- sh -c 'x=$(head -c 8M /dev/zero | tr \"\\\\0\" a); while :; do :; done'",
    )
    for figure in ("cpu_percent\":[1-9]", "memory_bytes\":([89][0-9]{6}|[0-9]{8})"):
        machine.wait_until_succeeds(f"shipote workspace stats seen --json | grep -Eq '\"{figure}'", timeout=120)
    stats = json.loads(machine.succeed("shipote workspace stats seen --json"))["stats"][0]
    assert stats["source"] == "cgroup" and stats["memory_bytes"] > 8 << 20, stats
    assert stats["memory_peak_bytes"] >= stats["memory_bytes"] and stats["memory_limit_bytes"] == 134217728, stats
    assert stats["pids"] >= 1 and stats["pids_limit"] == 50 and stats["commands_alive"] == 1, stats
    for name in ("cpu_pressure", "memory_pressure", "io_pressure", "io_read_bytes", "oom_kills"):
        assert name in stats, (name, stats)
    assert json.loads(machine.succeed("shipote workspace stats seen --history --json"))["samples"]
    top = json.loads(machine.succeed("shipote top --json"))
    assert "seen" in [workspace["name"] for workspace in top["workspaces"]], top
    print(machine.succeed("shipote top --once"))
    # the peer's view of the same, for a scraper
    request = "'GET /metrics HTTP/1.1\\r\\n\\r\\n'"
    page = machine.succeed(
        f"printf {request} | perl -MIO::Socket::UNIX -e "
        "'$s = IO::Socket::UNIX->new(\"/run/shipote/workspaces/admin.sock\") or die $!; print $s <STDIN>; print while <$s>'"
    )
    assert 'shipote_workspace_memory_bytes{workspace="seen"}' in page and page.rstrip().endswith("# EOF"), page
    assert 'shipote_workspace_cpu_seconds_total{workspace="seen"}' in page, page
    assert 'shipote_user_memory_bytes{uid="0"}' in page, page
    machine.succeed("shipote run -w seen --memory 16M -- sh -c 'x=$(head -c 100M /dev/zero | tr \"\\\\0\" a)' || true")
    quota = json.loads(machine.succeed("shipote workspace quota seen --json"))
    assert any(breach.startswith("memory:") for breach in quota["breaches"]), quota
    machine.succeed("shipote workspace stop seen --grace 0")

with subtest("a limit that makes no sense is refused by its name"):
    assert "soma.cgroup.pids_max" in machine.fail("shipote run --pids 0 -- true 2>&1")
    machine.succeed("printf '%s\\n' '[soma.cgroup]' 'io_weight = 20000' > /tmp/bad.toml")
    assert "soma.cgroup.io_weight" in machine.fail("shipote workspace create bad -f /tmp/bad.toml 2>&1")

with subtest("no group is left behind, also by a killed service"):
    machine.wait_until_succeeds(f"test -z \"$(find '{TREE}' -mindepth 1 -maxdepth 1 -type d)\"", timeout=60)
    machine.succeed("shipote run --detach -- sleep 5432")
    pid = machine.succeed(f"systemctl show -P MainPID {UNIT}").strip()
    machine.succeed(f"kill -KILL {pid}")
    machine.wait_until_succeeds("shipote run -- true", timeout=60)
    machine.succeed("for w in $(shipote workspace list --json | tr , '\\n' | sed -n 's/.*\"name\":\"\\([^\"]*\\)\".*/\\1/p'); do shipote workspace stop $w; done")
    machine.wait_until_succeeds(f"test -z \"$(find '{TREE}' -mindepth 1 -maxdepth 1 -type d)\"", timeout=60)
