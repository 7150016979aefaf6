# Listeners by a socket unit: the port is open before the proxy runs, the first connection starts it, and none is refused
# while it is killed or restarted.

import json

PORT = 8300
SOCKET = f"""[Socket]
ListenStream=127.0.0.1:{PORT}

[Install]
WantedBy=sockets.target
"""
RULES = {
    "rules": [{"name": "unit", "listen": [f"127.0.0.1:{PORT}"], "terminate": {"type": "static", "status": 200, "text": "hi"}}]
}
CURL = f"curl -sS --fail --max-time 60 http://127.0.0.1:{PORT}/"


def main_pid():
    return int(machine.succeed("systemctl show -P MainPID shipote-proxy.service"))


start_all()
machine.wait_for_unit("multi-user.target")
machine.wait_for_unit("shipote-proxy.service", timeout=120)
machine.succeed(
    f"mkdir -p /etc/shipote/proxy/rules && cat > /etc/shipote/proxy/rules/unit.json <<'EOF'\n{json.dumps(RULES)}\nEOF",
    f"cat > /run/systemd/system/shipote-proxy.socket <<'EOF'\n{SOCKET}EOF",
    # a socket unit is started before its service
    "systemctl stop shipote-proxy.service && systemctl daemon-reload && systemctl start shipote-proxy.socket",
)

with subtest("the port is open, and the first connection starts the proxy"):
    assert main_pid() == 0
    assert machine.succeed(CURL) == "hi"
    assert main_pid() != 0
    # the unit's socket and no other
    assert machine.succeed(f"ss -Hltn 'sport = :{PORT}' | wc -l").strip() == "1"

with subtest("no connection is refused while it is killed and comes again"):
    for _ in range(3):
        former = main_pid()
        machine.succeed(f"kill -KILL {former}; for i in $(seq 5); do {CURL} > /dev/null; done")
        assert main_pid() not in (0, former)

with subtest("nor while it is restarted, or stopped: the next one starts it"):
    machine.succeed(f"systemctl restart shipote-proxy.service & for i in $(seq 10); do {CURL} > /dev/null; done; wait")
    machine.succeed("systemctl stop shipote-proxy.service")
    assert machine.succeed(CURL) == "hi"

machine.succeed(
    "systemctl stop shipote-proxy.socket shipote-proxy.service",
    "rm /run/systemd/system/shipote-proxy.socket /etc/shipote/proxy/rules/unit.json",
    "systemctl daemon-reload && systemctl start shipote-proxy.service",
)
