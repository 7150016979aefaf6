# Each service is killed under load, and restarted, and nobody who was not talking to it at that moment notices: commands go
# on, connections wait instead of being refused, every service knows what it knew.

import json

SERVICES = ("plugins", "workspaces", "machines", "proxy")
# Requests, one after the other, each a line of the log: its status, or curl's error.
REQUESTS = r"""
while :; do curl -sS --max-time 60 -o /dev/null -w '%{http_code}\n' http://127.0.0.1:8100/ 2>&1; done > /run/requests.log
"""
# The port outlives the proxy: who connects while there is none waits.
SOCKET = """[Socket]
ListenStream=127.0.0.1:8100
"""
RULES = {
    "rules": [{"name": "killed", "listen": ["127.0.0.1:8100"], "terminate": {"type": "static", "status": 200, "text": "hi"}}]
}


def main_pid(service):
    return machine.succeed(f"systemctl show -P MainPID shipote-{service}.service").strip()


def kill(service):
    """Ends the service's main process as the kernel would for want of memory; waits until it serves again."""
    former = main_pid(service)
    machine.succeed(f"kill -KILL {former}")
    machine.wait_until_succeeds(
        f'p=$(systemctl show -P MainPID shipote-{service}.service); test "$p" -gt 0 -a "$p" != {former}'
        f" && systemctl is-active -q shipote-{service}.service",
        timeout=120,
    )


def requests():
    return machine.succeed("cat /run/requests.log").split("\n")[:-1]


def more_requests():
    so_far = len(requests())
    machine.wait_until_succeeds(f"test $(wc -l < /run/requests.log) -gt {so_far + 5}", timeout=120)


start_all()
machine.wait_for_unit("multi-user.target")
for service in SERVICES:
    machine.succeed(f"systemctl start shipote-{service}.service", timeout=240)
machine.succeed(
    f"mkdir -p /etc/shipote/proxy/rules && cat > /etc/shipote/proxy/rules/killed.json <<'EOF'\n{json.dumps(RULES)}\nEOF",
    f"cat > /run/systemd/system/shipote-proxy.socket <<'EOF'\n{SOCKET}EOF",
    "systemctl stop shipote-proxy.service && systemctl daemon-reload && systemctl start shipote-proxy.socket shipote-proxy.service",
    "shipote machine create killed-m",
    "shipote workspace create killed-w",
    f"cat > /run/requests.sh <<'EOF'\n{REQUESTS}\nEOF",
    "systemd-run --quiet --unit killed-requests -E PATH=$PATH $(command -v bash) /run/requests.sh",
)
# it counts for as long as it lives: a number that is missing in its log is a line that was lost
counting = machine.succeed("shipote run -w killed-w --detach -- sh -c 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done'").strip()
machine.wait_until_succeeds("test $(wc -l < /run/requests.log) -gt 5", timeout=120)

for service in SERVICES:
    with subtest(f"shipote-{service} is killed"):
        more_requests()
        begun = len(requests())
        kill(service)
        more_requests()
        said = requests()[begun:]
        # curl says why, and writes 000 in the place of a status
        errors = [line for line in said if line not in ("200", "000")]
        print(f"     {len(said) - len(errors)} requests, {said.count('000')} failed: {sorted(set(errors))}")
        # of the proxy the one that it was answering; none that came after it
        assert said.count("000") <= (1 if service == "proxy" else 0), errors
        assert not any(line.startswith("curl: (7)") for line in errors), errors

with subtest("restarted in order, as an upgrade does it, none fails"):
    more_requests()
    begun = len(requests())
    machine.succeed(f"systemctl restart {' '.join(f'shipote-{service}' for service in SERVICES)}")
    more_requests()
    assert set(requests()[begun:]) == {"200"}, requests()[begun:]

with subtest("every service knows what it knew"):
    machine.succeed("shipote machine ls | grep -w killed-m", "shipote workspace list | grep -w killed-w")
    machine.wait_until_succeeds("shipote proxy rules | grep 127.0.0.1:8100", timeout=60)

with subtest("the command goes on, and its log has every line"):
    state = {c["id"]: c["state"] for c in json.loads(machine.succeed("shipote ps --all --json"))["commands"]}
    assert state[counting] == "running", state
    machine.succeed(f"shipote kill -s KILL {counting}")
    machine.wait_until_succeeds(f"shipote ps --all --json | grep -q '\"id\":\"{counting}\"[^}}]*\"state\":\"ended\"'", timeout=60)
    lines = [int(line) for line in machine.succeed(f"shipote logs {counting}").split()]
    assert len(lines) > 20 and lines == list(range(lines[0], lines[0] + len(lines))), lines[:50]

with subtest("each end is on record, and none is left failed"):
    for service in SERVICES:
        assert "status=9/KILL" in machine.succeed(f"journalctl -q -b --no-pager -u shipote-{service}"), service
    assert machine.succeed("systemctl --failed --no-legend --plain").strip() == ""

machine.succeed(
    "systemctl stop killed-requests",
    "systemctl reset-failed || true",
    "shipote workspace stop killed-w",
    "shipote machine rm killed-m",
    "systemctl stop shipote-proxy.socket shipote-proxy.service",
    "rm /etc/shipote/proxy/rules/killed.json /run/systemd/system/shipote-proxy.socket",
    "systemctl daemon-reload && systemctl start shipote-proxy.service",
)
