# A root that nobody can write to, as the appliance's images have it: state lies in /var, in memory here, and everything works.
# machine: fresh

SERVICES = ("plugins", "workspaces", "machines", "proxy")
# By it systemd-remount-fs(8) leaves the root as the kernel mounted it, or makes it so.
FSTAB = ["/dev/nvme0n1 / ext4 ro 0 0", "tmpfs /var tmpfs mode=0755,nosuid,nodev 0 0"]


def up():
    machine.wait_for_unit("multi-user.target")
    for service in SERVICES:
        machine.succeed(f"systemctl start shipote-{service}.service", timeout=240)


start_all()
up()
for line in FSTAB:
    machine.succeed(f"echo '{line}' >> /etc/fstab")
machine.reboot()

with subtest("every service starts"):
    up()
    assert "ro," in machine.succeed("findmnt -n -o OPTIONS /"), machine.succeed("findmnt")
    machine.fail("touch /etc/written", "touch /usr/written")
    assert machine.succeed("systemctl --failed --no-legend --plain").strip() == ""

with subtest("and does its work"):
    assert machine.succeed("echo hello | shipote run -- tr a-z A-Z").strip() == "HELLO"
    machine.succeed(
        "shipote workspace create w",
        "shipote run -w w -- sh -c 'echo kept > /work/file'",
        "shipote run -w w -- grep kept /work/file",
        "shipote machine create m",
        "shipote plugin add /usr/share/shipote/examples/redact.wat",
        "shipote proxy reload",
        "shipote audit --action machine.create | grep -w m",
    )
    machine.succeed("systemctl restart shipote-plugins shipote-machines")
    machine.wait_until_succeeds("shipote plugin list | grep -w redact && shipote machine ls | grep -w m", timeout=120)

machine.succeed("mount -o remount,rw /", "sed -i -e '\\|^/dev/nvme0n1 / |d' -e '\\|^tmpfs /var |d' /etc/fstab")
machine.reboot()
