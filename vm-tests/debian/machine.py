# A machine in the machine: shipote-machines under systemd with QEMU and the package of its guest, and what the others make of
# it. The processor is emulated twice or, where the outer QEMU has SVM, by the inner kernel's KVM.
# minutes: 5

import json
import time

UNIT = "shipote-machines.service"
RULE = {
    "name": "inner",
    "listen": ["127.0.0.1:8123"],
    "terminate": {"type": "http_proxy", "upstream": "machine:inner:8080"},
}
PIPELINE = """label = "mixed"
[[nodes]]
label = "say"
command = ["printf", "b\\na\\n"]
[[nodes]]
label = "sort"
machine = "inner"
command = ["sort"]
[[edges]]
from = "say"
to = "sort"
"""
SERVER = "echo from the inner machine > /tmp/index.html; exec busybox httpd -f -p 8080 -h /tmp"
SLICE = f"/sys/fs/cgroup/system.slice/{UNIT}"
# Generous: an emulated processor emulates another.
LONG = 1200


def shown(name):
    machines = json.loads(machine.succeed("shipote machine ls --json"))["machines"]
    return next(m for m in machines if m["name"] == name)


def stats(name):
    return json.loads(machine.succeed(f"shipote machine stats {name} --json"))


def main_pid():
    return machine.succeed(f"systemctl show -P MainPID {UNIT}").strip()


start_all()
machine.wait_for_unit("multi-user.target")
machine.execute("modprobe kvm_amd || modprobe kvm_intel")
machine.succeed(
    "mkdir -p /run/systemd/system/shipote-machines.service.d /etc/shipote/shipote.toml.d /etc/shipote/proxy/rules /srv/volume",
    "chown shipote-machines /srv/volume",
    "printf '[Service]\\nSupplementaryGroups=kvm\\nReadWritePaths=/srv/volume\\n' "
    "> /run/systemd/system/shipote-machines.service.d/kvm.conf",
    f"cat > /etc/shipote/proxy/rules/inner.json <<'EOF'\n{json.dumps({'rules': [RULE]})}\nEOF",
    f"cat > /tmp/mixed.toml <<'EOF'\n{PIPELINE}\nEOF",
    f"printf '[machines]\\nstart_s = {LONG}\\nvolumes = [\"/srv/volume\"]\\n' > /etc/shipote/shipote.toml.d/machine.toml",
    "systemctl daemon-reload",
    f"systemctl restart {UNIT}",
)
machine.wait_for_unit(UNIT, timeout=120)

with subtest("a machine boots under systemd, with a disk, a volume and limits of its own"):
    machine.succeed(
        "shipote machine create inner --memory 128 --disk 64 --volume /srv/volume:/data --publish 8080 --idle 60 "
        f"-- sh -c '{SERVER}'"
    )
    begun = time.time()
    machine.succeed("shipote machine start inner", timeout=LONG)
    print(f"machine: {time.time() - begun:.0f} s from start to the agent's answer")
    details = stats("inner")
    print("machine:", json.dumps(details["confinement"]))
    confinement = {name: (state, reason) for name, state, reason in details["confinement"]}
    assert confinement["landlock"][0] == "enforced", confinement
    assert confinement["seccomp"][0] == "enforced", confinement
    assert confinement["cgroup"][0] == "enforced", confinement
    groups = machine.succeed(f"find {SLICE} -path '*/inner/machine' -type d").split()
    assert len(groups) == 1, groups
    inside = {int(pid) for pid in machine.succeed(f"cat {groups[0]}/cgroup.procs").split()}
    assert inside == set(details["pids"]), (inside, details)
    # 128 for the guest, 128 for the monitor, 128 for translated code, 32 for the volume's server.
    assert int(machine.succeed(f"cat {groups[0]}/memory.max")) == 416 << 20
    assert machine.succeed(f"cat {groups[0]}/cpu.max").split() == ["100000", "100000"]
    for pid in details["pids"]:
        status = machine.succeed(f"cat /proc/{pid}/status")
        assert "CapEff:\t0000000000000000" in status and "Seccomp:\t2" in status, status

with subtest("commands run in it, and its volume is the host's folder"):
    assert machine.succeed("shipote machine exec inner -- hostname", timeout=LONG).strip() == "inner"
    machine.succeed("shipote machine exec inner -- sh -c 'echo guest > /data/file; mknod /data/device b 8 0 || true'", timeout=LONG)
    assert machine.succeed("cat /srv/volume/file").strip() == "guest"
    assert machine.succeed("stat -c %U /srv/volume/file").strip() == "shipote-machines"
    machine.fail("test -e /srv/volume/device")
    status, _ = machine.execute("shipote machine exec inner -- sh -c 'exit 7'", timeout=LONG)
    assert status == 7, status

with subtest("a node of a pipeline runs in it"):
    assert machine.succeed("shipote pipeline run /tmp/mixed.toml", timeout=LONG).splitlines()[:2] == ["a", "b"]

with subtest("the proxy reaches what it publishes by its name, and a request wakes it when it sleeps"):
    machine.succeed("shipote proxy reload")
    ask = "curl -sS --max-time 300 http://127.0.0.1:8123/"
    machine.wait_until_succeeds(f"{ask} | grep -q 'from the inner machine'", timeout=LONG)
    machine.wait_until_succeeds("shipote machine ls --json | grep -q '\"state\":\"sleeping\"'", timeout=LONG)
    assert machine.succeed(ask, timeout=LONG).strip() == "from the inner machine"
    assert shown("inner")["state"] == "running", shown("inner")

with subtest("a kill and a restart of the service leave the machine as it is"):
    pids = stats("inner")["pids"]
    for how in (f"kill -9 {main_pid()}", f"systemctl restart {UNIT}"):
        former = main_pid()
        machine.succeed(how)
        machine.wait_until_succeeds(f'p=$(systemctl show -P MainPID {UNIT}); test "$p" -gt 0 -a "$p" != {former}', timeout=120)
        machine.wait_for_unit(UNIT, timeout=120)
        # asked of the kernel first: for the answer of a machine that is gone one would wait in vain, and long
        for pid in pids:
            machine.succeed(f"test -e /proc/{pid}")
        machine.wait_until_succeeds("shipote machine stats inner --json", timeout=LONG)
        assert stats("inner")["pids"] == pids, (pids, stats("inner"))
        assert machine.succeed("shipote machine exec inner -- hostname", timeout=LONG).strip() == "inner"

with subtest("a snapshot is taken of it while it runs"):
    taken = json.loads(machine.succeed("shipote machine snapshot inner warm --json", timeout=LONG))
    assert taken["consistency"] == "synced" and taken["machine"] == "inner", taken

with subtest("the end of the unit is the end of the machine, whole"):
    pids = stats("inner")["pids"]
    machine.succeed(f"systemctl stop {UNIT}", timeout=LONG)
    machine.wait_until_fails("pgrep -u shipote-machines", timeout=120)
    for pid in pids:
        machine.fail(f"test -e /proc/{pid}")
    machine.fail(f"test -e {SLICE}")
    machine.succeed(f"systemctl start {UNIT}")
    machine.wait_for_unit(UNIT, timeout=120)
    assert shown("inner")["state"] == "stopped", shown("inner")
    assert json.loads(machine.succeed("shipote machine snapshot ls --json"))["snapshots"][0]["name"] == "warm"
    machine.succeed("shipote machine rm inner", "shipote machine snapshot rm warm")
    machine.succeed("rm /etc/shipote/proxy/rules/inner.json", "shipote proxy reload")
    machine.succeed("rm -r /run/systemd/system/shipote-machines.service.d /etc/shipote/shipote.toml.d/machine.toml /srv/volume")
    machine.succeed("systemctl daemon-reload", f"systemctl restart {UNIT}")
    machine.wait_for_unit(UNIT, timeout=120)
