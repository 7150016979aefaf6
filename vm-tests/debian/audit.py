# The audit trail in the journal: each record explained by the catalog, found by who, what and when, whole across a
# rotation; and where records are required, no change without one.

import json

UNIT = "shipote-workspaces.service"
JOURNALD = "systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket systemd-journald.service"
CONFIGURATION = "/etc/shipote/shipote.toml"


def audit(arguments):
    return [json.loads(line) for line in machine.succeed(f"shipote audit --json {arguments}").splitlines()]


start_all()
machine.wait_for_unit("multi-user.target")
machine.succeed(f"systemctl start {UNIT}", timeout=120)

with subtest("journalctl -x explains a record"):
    machine.succeed("shipote workspace create explained", "shipote workspace stop explained")
    text = machine.succeed("journalctl -q -b -x SHIPOTE_ACTION=workspace.create SHIPOTE_OBJECT=explained")
    assert "Written when a workspace was created" in text and "By the user with the id: 0" in text, text

with subtest("records are found by action, object, user and time"):
    machine.succeed("getent passwd runner || useradd --create-home --groups shipote runner")
    uid = int(machine.succeed("id -u runner"))
    machine.succeed("runuser -u runner -- shipote run -- true")
    assert {record["action"] for record in audit("--object explained")} == {"workspace.create", "workspace.stop"}
    assert [record["action"] for record in audit(f"--user {uid} --action command.run")] != []
    assert all(record["uid"] == uid for record in audit(f"--user {uid}"))
    assert audit("--action 'workspace.*' --since 1h") != []
    machine.succeed("sleep 2")
    assert audit("--object explained --since 1s") == []

with subtest("nothing is lost when the journal is rotated in the middle"):
    machine.succeed(
        "for i in $(seq 12); do shipote workspace create rotated-$i > /dev/null; "
        "test $((i % 4)) -ne 0 || journalctl --rotate; done"
    )
    found = {record["object"] for record in audit("--action workspace.create")}
    assert {f"rotated-{i}" for i in range(1, 13)} <= found, sorted(found)
    machine.succeed("for i in $(seq 12); do shipote workspace stop rotated-$i > /dev/null; done")

with subtest("where a record is required, nothing changes without one"):
    machine.succeed(f"test ! -e {CONFIGURATION}", f"printf '[audit]\\nmode = \"required\"\\n' > {CONFIGURATION}")
    machine.succeed(f"systemctl restart {UNIT}")
    machine.succeed("shipote workspace create before")
    machine.succeed(f"systemctl stop {JOURNALD}")
    refusal = machine.fail("shipote workspace create unrecorded 2>&1")
    refused_run = machine.fail("shipote run -- true 2>&1")
    listed = machine.succeed("shipote workspace list")
    machine.succeed(f"systemctl start {JOURNALD}")
    assert "audit" in refusal or "record" in refusal, refusal
    assert "audit" in refused_run or "record" in refused_run, refused_run
    assert "before" in listed and "unrecorded" not in listed, listed
    machine.wait_until_succeeds("shipote workspace create after", timeout=60)
    assert [record["object"] for record in audit("--action workspace.create --limit 1")] == ["after"]
    machine.succeed("shipote workspace stop before", "shipote workspace stop after")
    machine.succeed(f"rm {CONFIGURATION}", f"systemctl restart {UNIT}")
