# The sandbox's own tests on a kernel with cgroup v2 and a service manager that delegates a subtree of it, which the
# machines that compile rarely have: as root, and as an ordinary user.
# tests of: shipote-sandbox
# minutes: 8

start_all()
machine.wait_for_unit("multi-user.target")
machine.succeed("getent passwd mallory || useradd --create-home mallory")

for user in ("root", "mallory"):
    for test in machine.succeed("ls /mnt/host/tests").split():
        with subtest(f"{test} as {user}"):
            unit = f"-p User={user} -p Delegate=yes -p WorkingDirectory=/tmp -p TasksMax=infinity -p RuntimeMaxSec=600"
            report = machine.succeed(f"systemd-run --quiet --pipe --wait {unit} /mnt/host/tests/{test} --nocapture 2>&1")
            assert "not tested" not in report, report
            print("     " + [line for line in report.splitlines() if line.startswith("test result")][-1])
