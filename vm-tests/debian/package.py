# The Debian packages: what they install, what an upgrade leaves alone, what removing and purging leave behind.
# machine: fresh
# machine: used up
# minutes: 6

import json

SERVICES = ("workspaces", "machines", "proxy", "plugins")
PACKAGE = "/mnt/host/shipote.deb"
# Those that are running when the upgrade comes.
RUNNING = ("workspaces", "plugins")
# Those that an installation has start at boot; the others start with the first call to their name.
AT_BOOT = ("workspaces.socket", "proxy.service")
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"
PIPELINE = """label = "p"
[[nodes]]
label = "make"
command = ["sh", "-c", "sleep 30; seq 20000"]
[[nodes]]
label = "sum"
command = ["sha256sum"]
[[edges]]
from = "make"
to = "sum\""""


def commands():
    """The process of each command that runs."""
    return {c["id"]: c["pid"] for c in json.loads(machine.succeed("shipote ps --json"))["commands"]}


start_all()
machine.wait_for_unit("multi-user.target")
for unit in AT_BOOT:
    machine.wait_for_unit(f"shipote-{unit}", timeout=120)

with subtest("manual pages, completions and the libraries it names are there"):
    files = machine.succeed("dpkg -L shipote").splitlines()
    for name in (
        "/usr/share/man/man1/shipote.1",
        "/usr/share/man/man1/shipote-run.1",
        "/usr/share/bash-completion/completions/shipote",
        "/usr/share/zsh/vendor-completions/_shipote",
        "/usr/share/fish/vendor_completions.d/shipote.fish",
        "/usr/share/doc/shipote/copyright",
    ):
        assert name in files, name
    depends = machine.succeed("dpkg-query -W -f '${Depends}' shipote")
    assert "libc6 (>=" in depends and "polkitd" in depends, depends
    assert "shipote" in machine.succeed("bash -c '. /usr/share/bash-completion/completions/shipote; complete -p shipote'")

with subtest("what machines are started with is a package of its own, and where the service looks for it"):
    machine.succeed("cd /usr/lib/shipote/machine && test -s vmlinux -a -s initramfs.cpio -a -s image.json")
    machine.succeed("runuser -u shipote-machines -- /usr/lib/shipote/machine/vhost-device-vsock --version")
    assert machine.succeed("dpkg -S /usr/lib/shipote/machine/vmlinux").startswith("shipote-machine:")
    assert "/usr/share/doc/shipote-machine/copyright" in machine.succeed("dpkg -L shipote-machine").splitlines()

with subtest("the units are sound, and those that have something to do then start at boot"):
    machine.succeed("systemd-analyze verify --man=no /usr/lib/systemd/system/shipote-*.{service,socket,timer}")
    for unit in [f"{service}.service" for service in SERVICES] + ["workspaces.socket", "acme.timer"]:
        found = machine.execute(f"systemctl is-enabled shipote-{unit}")[1].strip()
        assert found == ("enabled" if unit in AT_BOOT else "disabled"), f"{unit}: {found}"

with subtest("an upgrade leaves work that runs, state and an administrator's choice alone"):
    machine.succeed(
        "shipote workspace create kept",
        "shipote run -w kept -- sh -c 'echo kept > /work/file'",
        "shipote plugin add /usr/share/shipote/examples/redact.wat",
        f"cat > /tmp/pipeline.toml <<'EOF'\n{PIPELINE}\nEOF",
        "systemd-run --quiet --unit piped -p StandardOutput=file:/tmp/sum -p StandardError=journal $(command -v shipote)"
        " pipeline run --tap /tmp/pipeline.toml",
    )
    id = machine.succeed(f"shipote run -w kept --detach -- sh -c '{COUNT}'").strip()
    machine.succeed("systemctl disable --now shipote-proxy.service", "systemctl enable shipote-machines.service")
    before = {service: machine.succeed(f"systemctl show -P MainPID shipote-{service}.service") for service in RUNNING}
    command = commands()[id]
    machine.succeed(f"dpkg --force-unsafe-io -i {PACKAGE}")
    for service in RUNNING:
        machine.wait_for_unit(f"shipote-{service}.service", timeout=120)
        after = machine.succeed(f"systemctl show -P MainPID shipote-{service}.service")
        assert after != before[service], f"the new {service} was not started"
    machine.fail("systemctl is-enabled shipote-proxy.service")
    machine.succeed("systemctl is-enabled shipote-machines.service")
    # not enabled and not running: an upgrade starts it no more than a boot does
    machine.require_unit_state("shipote-proxy.service", "inactive")
    machine.wait_until_succeeds("shipote run -w kept -- grep -x kept /work/file", timeout=60)
    machine.succeed("shipote plugin list | grep -w redact")
    assert commands()[id] == command, "another process"
    machine.succeed(f"shipote kill -s KILL {id}")
    machine.wait_until_fails(f"shipote ps --json | grep -q {id}", timeout=60)
    lines = [int(line) for line in machine.succeed(f"shipote logs {id}").split()]
    assert len(lines) > 10 and lines == list(range(1, len(lines) + 1)), lines
    machine.wait_until_succeeds("test -s /tmp/sum", timeout=240)
    assert machine.succeed("cat /tmp/sum") == machine.succeed("seq 20000 | sha256sum")
    machine.succeed("systemctl enable shipote-proxy.service", "systemctl disable shipote-machines.service")

with subtest("after a removal nothing runs, and configuration and state are kept"):
    machine.succeed("echo '# mine' > /etc/shipote/shipote.toml")
    machine.succeed("shipote run --detach -- sleep 54321")
    machine.succeed("dpkg -r shipote")
    machine.fail("pgrep -f 'sleep 54321'")
    machine.fail("pgrep -f /usr/bin/shipote")
    machine.fail("test -e /usr/bin/shipote")
    assert machine.succeed("systemctl list-unit-files --no-legend 'shipote-*' | grep -v masked || true").strip() == ""
    machine.succeed("test -e /etc/shipote/shipote.toml", "test -d /var/lib/shipote/workspaces")
    assert machine.succeed("systemctl --failed --no-legend --plain").strip() == ""

with subtest("it can be installed again, and works"):
    machine.succeed(f"dpkg --force-unsafe-io -i {PACKAGE}")
    machine.wait_for_unit("shipote-workspaces.socket", timeout=120)
    assert machine.succeed("echo hello | shipote run -- tr a-z A-Z").strip() == "HELLO"

with subtest("a purge leaves nothing"):
    machine.succeed("dpkg -P shipote shipote-machine")
    machine.fail("test -e /etc/shipote")
    machine.fail("test -e /var/lib/shipote")
    machine.fail("find /etc/systemd /usr/lib /usr/share -name '*shipote*' ! -path '*/doc/*' | grep .")
