# The power goes while everything is being written to. What a service had answered for is there afterwards, nothing that
# is there is torn, every service starts, and the audit trail goes on.
# machine: fresh
# minutes: 5

import json
import re

SERVICES = ("plugins", "workspaces", "machines", "proxy")
# Names that a command has answered for, in memory: a file on the disk, or a sync of it, would bring onto the disk what
# the services themselves have not.
ANSWERED = "/run/answered"
EXAMPLES = "$(dirname $(readlink -f $(command -v shipote)))/../share/shipote/examples"
LOADS = {
    "machines": "shipote machine create m-$i && echo m-$i",
    # each time another component: one number in it differs
    "plugins": f'sed "s/i32.const 262144/i32.const $((262144 - i))/" {EXAMPLES}/redact.wat > {ANSWERED}/p.wat'
    f" && shipote plugin add {ANSWERED}/p.wat --name p-$i && echo p-$i",
    "workspaces": "shipote workspace create w-$i && shipote run -w w-$i -- sh -c 'echo x > /work/file'"
    " && shipote run -w w-$i --detach -- sh -c 'while :; do echo line; done' && echo w-$i"
    " && { test $i -le 2 || shipote workspace stop w-$((i-2)) --grace 0; }",
}


def begin():
    machine.succeed(f"mkdir -p {ANSWERED}")
    for name, load in LOADS.items():
        loop = f'i=$1; while :; do i=$((i+1)); {{ {load}; }} >> {ANSWERED}/{name} 2>> {ANSWERED}/{name}.errors; done'
        machine.succeed(f"cat > {ANSWERED}/{name}.sh <<'EOF'\n{loop}\nEOF")


def load(round):
    for name in LOADS:
        unit = f"systemd-run --quiet --unit load-{name} -E PATH=$PATH"
        machine.succeed(f"{unit} $(command -v bash) {ANSWERED}/{name}.sh {round * 1000}")
    for name in LOADS:
        machine.wait_until_succeeds(f"test $(grep -c -- -{round} {ANSWERED}/{name}) -ge 3", timeout=240)


def answered(name):
    said = machine.succeed(f"cat {ANSWERED}/{name} 2>/dev/null || true").splitlines()
    # what the commands themselves print is there, too
    return {line for line in said if re.fullmatch(r"[mpw]-\d+", line)}


def names(command, key):
    found = json.loads(machine.succeed(f"{command} --json"))[key]
    return {entry["name"] for entry in found}


# Left alone, a kernel writes by itself within seconds what a service forgot to force onto the disk, and the slower the machine
# the surer before the cut. So it is told to wait: what is there afterwards somebody has forced.
LAZY = (
    "mount -o remount,commit=600 /",
    "sysctl -qw vm.dirty_writeback_centisecs=0 vm.dirty_expire_centisecs=60000 vm.dirty_ratio=90 vm.dirty_background_ratio=80",
)


def up():
    machine.wait_for_unit("multi-user.target")
    machine.succeed(*LAZY)
    for service in SERVICES:
        machine.succeed(f"systemctl start shipote-{service}.service", timeout=240)


start_all()
up()
# the journal of a machine that nobody tests is on its disk
machine.succeed(
    "f=/etc/systemd/journald.conf.d/vm.conf; test ! -e $f || { sed -i s/volatile/persistent/ $f"
    " && systemctl restart systemd-journald && journalctl --flush; }",
    "sync",
)
machine.succeed("shipote machine create before", "journalctl --sync")

promised = {"machines": {"before"}, "plugins": set()}
for round in (1, 2):
    with subtest(f"cut {round}: the power goes in the middle of it"):
        begin()
        load(round)
        for name in promised:
            promised[name] |= answered(name)
        workspaces = answered("workspaces")
        machine.crash()
        print("     answered for: " + ", ".join(f"{len(promised[name])} {name}" for name in promised) + f", {len(workspaces)} workspaces")

    with subtest(f"cut {round}: every service starts, on a file system that was recovered"):
        machine.start()
        up()
        boot = machine.succeed("journalctl -q -b --no-pager")
        assert "EXT4-fs error" not in boot and re.search("recover(ing journal|y complete|y required)", boot), boot
        assert machine.succeed("systemctl --failed --no-legend --plain").strip() == ""

    with subtest(f"cut {round}: what was answered for is there, and whole"):
        defined, added = names("shipote machine ls", "machines"), names("shipote plugin list", "plugins")
        assert promised["machines"] <= defined, promised["machines"] - defined
        assert promised["plugins"] <= added, promised["plugins"] - added
        for name in sorted(defined):
            machine.succeed(f"busctl call org.shipote.Machines1 /org/shipote/Machines1 org.shipote.Machines1.Manager Inspect 'sa{{sv}}' {name} 0")
        for name in sorted(added):
            # the compiled code, read to its end and compared with its digest by the registry
            machine.succeed(f"busctl call org.shipote.Plugins1 /org/shipote/Plugins1 org.shipote.Plugins1.Manager Open 'sa{{sv}}' {name} 0")

    with subtest(f"cut {round}: what ran is told as lost, and its names are free"):
        assert names("shipote workspace list", "workspaces") == set()
        running = [c for c in json.loads(machine.succeed("shipote ps --all --json"))["commands"] if c["state"] != "ended"]
        assert running == [], running
        newest = sorted(workspaces)[-1]
        machine.succeed(f"shipote workspace create {newest}", f"shipote run -w {newest} -- true", f"shipote workspace stop {newest}")

    with subtest(f"cut {round}: the audit trail goes on where it was"):
        earlier = machine.succeed("shipote audit --json --action machine.create --object before")
        assert json.loads(earlier.splitlines()[0])["object"] == "before", earlier
        machine.succeed(f"shipote machine create after-{round}")
        promised["machines"].add(f"after-{round}")
        record = machine.succeed(f"shipote audit --json --action machine.create --object after-{round}")
        assert json.loads(record.splitlines()[0])["result"] == "ok", record
