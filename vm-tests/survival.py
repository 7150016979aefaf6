# Commands and pipelines outlive their service under systemd: killed and restarted, it takes them over from the descriptor
# store; stopped, nothing is left.
# minutes: 5

import json

UNIT = "shipote-workspaces.service"
CGROUP = f"/sys/fs/cgroup/system.slice/{UNIT}"
USER = "shipote-workspaces"
# With a mark in their arguments that no other process has.
COMMANDS = 50
# They wait for a file: started one by one on an emulated processor, the first would else end before the last begins.
SCRIPT = "echo begun $0; until test -e /work/go; do sleep 3; done; i=0; while [ $i -lt 500 ]; do echo line $i of $0; i=$((i+1)); done; exit $(($0 % 7))"


def main_pid():
    return machine.succeed(f"systemctl show -P MainPID {UNIT}").strip()


def stored():
    return int(machine.succeed(f"systemctl show -P NFileDescriptorStore {UNIT}"))


def commands():
    return {c["id"]: c for c in json.loads(machine.succeed("shipote ps --all --json"))["commands"]}


start_all()
machine.wait_for_unit("multi-user.target")
machine.succeed(f"systemctl start {UNIT}", timeout=120)

with subtest("commands and pipelines go on while their service is killed, and the next one has all of them"):
    machine.succeed("shipote workspace create many")
    ids = [
        machine.succeed(f"shipote run -w many --detach -- sh -c '{SCRIPT}' {n}").strip() for n in range(COMMANDS)
    ]
    machine.succeed(
        """cat > /tmp/survival.toml <<'EOF'
label = "p"
[[nodes]]
label = "make"
command = ["sh", "-c", "sleep 60; seq 50000"]
[[nodes]]
label = "sum"
command = ["sha256sum"]
[[edges]]
from = "make"
to = "sum"
EOF"""
    )
    for n in range(5):
        machine.succeed(
            f"(shipote pipeline run --tap /tmp/survival.toml > /tmp/sum{n} 2> /tmp/table{n}; echo $? > /tmp/status{n}) >&2 &"
        )
    machine.wait_until_succeeds("test $(shipote ps --json | grep -o '\"state\":\"running\"' | wc -l) -eq 60", timeout=120)
    before = commands()
    assert stored() >= 6, stored()
    first = main_pid()
    machine.succeed(f"kill -KILL {first}")
    machine.wait_until_succeeds(f"test $(systemctl show -P MainPID {UNIT}) -ne {first} && shipote ps", timeout=60)
    after = commands()
    assert {i: c["pid"] for i, c in before.items()} == {i: c["pid"] for i, c in after.items()}
    machine.succeed(f"systemctl kill --signal=KILL --kill-whom=main {UNIT}")
    machine.wait_until_succeeds("shipote ps", timeout=60)

with subtest("exit statuses and logs are whole"):
    machine.succeed("shipote run -w many -- touch /work/go")
    machine.wait_until_succeeds("seen=$(shipote ps --json); ! grep -q '\"state\":\"running\"' <<< \"$seen\"", timeout=240)
    ended = commands()
    for n, id in enumerate(ids):
        assert (ended[id]["exit_status"], ended[id]["reason"]) == (n % 7, "exited"), ended[id]
    logs = "".join(f"begun {n}\n" + "".join(f"line {i} of {n}\n" for i in range(500)) for n in range(COMMANDS))
    assert machine.succeed(f"for id in {' '.join(ids)}; do shipote logs $id; done") == logs
    want = machine.succeed("seq 50000 | sha256sum")
    for n in range(5):
        machine.wait_until_succeeds(f"test -s /tmp/status{n}", timeout=120)
        assert machine.succeed(f"cat /tmp/status{n}").strip() == "0", machine.succeed(f"cat /tmp/table{n}")
        assert machine.succeed(f"cat /tmp/sum{n}") == want

with subtest("a restart in order keeps what runs"):
    id = machine.succeed("shipote run -w many --detach -- sleep 54321").strip()
    machine.succeed(f"systemctl restart {UNIT}")
    machine.wait_until_succeeds("shipote ps", timeout=60)
    assert commands()[id]["state"] == "running"
    machine.succeed(f"pgrep -u {USER} -f 'sleep 54321'")

with subtest("a stop leaves nothing"):
    machine.succeed(f"systemctl stop {UNIT}")
    machine.wait_until_fails(f"pgrep -u {USER}", timeout=30)
    machine.wait_until_succeeds(f"test -z \"$(cat {CGROUP}/cgroup.procs {CGROUP}/*/cgroup.procs 2>/dev/null)\"", timeout=30)
    assert stored() == 0
    machine.succeed(f"systemctl start {UNIT}")
    machine.wait_until_succeeds("shipote run -- true", timeout=60)
    ended = commands()[id]
    assert (ended["state"], ended["reason"]) == ("ended", "lost"), ended
