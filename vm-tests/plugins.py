# The registry and the proxy as units on the system bus, each under its own user: code goes from the one to the other by
# what polkit lets the proxy's user have (org.shipote.plugins.open), and under both units' hardening.

import json
import shlex

ADDRESS = "127.0.0.1:8010"
URL = f"http://{ADDRESS}/"
RULES = {
    "rules": [
        {
            "name": "plugins",
            "listen": [ADDRESS],
            "middleware_chain": [{"use": "teapot:l7-request"}],
            "terminate": {"type": "static", "status": 200, "text": "through"},
        }
    ]
}
# An emulated processor is slower by an order of magnitude than the one that 10 ms a call, the default, is for. The share
# of failures and the latency by which a canary is judged stay as they are.
POLICY = "[plugins.teapot]\ndeadline_ms = 1000\n[plugins.redact]\ndeadline_ms = 10000\n"


# A program, a component, and a filter on the edge behind it.
MIXED = """
label = "mixed"
[[nodes]]
label = "records"
command = ["sh", "-c", "printf 'call 555-1234 now\\n'"]
[[nodes]]
label = "upper"
wasm = "upper@^1"
[[nodes]]
label = "out"
command = ["cat"]
[[edges]]
from = "records"
to = "upper"
[[edges]]
from = "upper"
to = "out"
filter = "redact"
"""


def status():
    return machine.succeed(f"curl -sS --max-time 60 -o /dev/null -w '%{{http_code}}' {URL}")


def until(wanted):
    machine.wait_until_succeeds(f"test $(curl -sS --max-time 60 -o /dev/null -w '%{{http_code}}' {URL}) = {wanted}", timeout=120)


def put(path, text):
    machine.succeed(f"cat > {path} <<'EOF'\n{text}\nEOF")


def plugin(version, status, trap=False):
    """A version of the example that comes with the package, as text; one that traps in its handler if so wished."""
    text = example.replace("teapot1.0.0", f"teapot{version}").replace("i32.const 418", f"i32.const {status}")
    if trap:
        text = text.replace("i32.const 68\n", "unreachable\n      i32.const 68\n", 1)
    put(f"/tmp/teapot-{version}.wat", text)
    return f"/tmp/teapot-{version}.wat"


def ask(name, seconds=600):
    """Requests one after the other, in the background; their statuses go to a file."""
    loop = f"while :; do curl -sS --max-time 60 -o /dev/null -w '%{{http_code}}\\n' {URL} >> /tmp/{name} 2>&1; done"
    machine.succeed(f": > /tmp/{name}", f"systemd-run --unit {name} --setenv=PATH=$PATH --property=RuntimeMaxSec={seconds} bash -c {shlex.quote(loop)}")


def answered(name):
    machine.succeed(f"systemctl stop {name}")
    return machine.succeed(f"uniq -c /tmp/{name}").split("\n")[:-1]


def versions():
    plugins = json.loads(machine.succeed("shipote plugin ls --json"))["plugins"]
    return {one["version"]: (one["active"], one["share"]) for one in plugins if one["name"] == "teapot"}


start_all()
machine.wait_for_unit("multi-user.target")
machine.wait_for_unit("shipote-proxy.service", timeout=120)
machine.succeed("systemctl start shipote-plugins.service", timeout=120)
machine.succeed("getent passwd mallory || useradd --create-home mallory")
# beside the programs, wherever these are installed
example = machine.succeed("cat $(dirname $(readlink -f $(command -v shipote)))/../share/shipote/examples/teapot.wat")
machine.succeed("mkdir -p /etc/shipote/plugins /etc/shipote/proxy/rules")
put("/etc/shipote/plugins/policy.toml", POLICY)
machine.succeed("systemctl reload shipote-plugins")

with subtest("a plugin is added, and a rule that uses it answers by it"):
    said = machine.succeed(f"shipote plugin add {plugin('1.0.0', 418)}", timeout=600)
    assert "added teapot 1.0.0" in said and "at work" in said, said
    put("/etc/shipote/proxy/rules/plugins.json", json.dumps(RULES))
    machine.succeed("shipote proxy reload")
    assert status() == "418", status()
    pools = machine.succeed("shipote proxy pools")
    assert "teapot" in pools, pools

with subtest("another version takes over under requests, of which none fails"):
    machine.succeed(f"shipote plugin add --no-activate {plugin('1.1.0', 451)}", timeout=600)
    assert status() == "418", status()
    ask("upgrade")
    machine.wait_until_succeeds("test $(wc -l < /tmp/upgrade) -ge 3", timeout=120)
    machine.succeed("shipote plugin activate teapot@1.1.0")
    machine.wait_until_succeeds("test $(grep -c 451 /tmp/upgrade) -ge 3", timeout=120)
    runs = answered("upgrade")
    assert [run.split()[1] for run in runs] == ["418", "451"], runs

with subtest("a canary that traps goes back by itself and costs no request"):
    machine.succeed(f"shipote plugin add --no-activate {plugin('1.2.0', 500, trap=True)}", timeout=600)
    ask("trial")
    machine.wait_until_succeeds("test -s /tmp/trial", timeout=120)
    machine.succeed("shipote plugin canary teapot@1.2.0 --share 50%")
    machine.wait_until_succeeds("shipote audit --action plugin.canary-end --object teapot@1.2.0 | grep -q teapot", timeout=300)
    runs = answered("trial")
    assert [run.split()[1] for run in runs] == ["451"], runs
    assert versions()["1.2.0"] == (False, 0), versions()
    # of this version: what other scenarios asked for in this machine is on record, too
    ended = "SHIPOTE_ACTION=plugin.canary-end SHIPOTE_OBJECT=teapot@1.2.0"
    why = machine.succeed(f"journalctl -q -b -o cat --output-fields=SHIPOTE_REASON {ended}")
    assert "trapped" in why, why
    uid = machine.succeed(f"journalctl -q -b -o cat --output-fields=SHIPOTE_UID {ended}").strip()
    assert uid == machine.succeed("id -u shipote-proxy").strip(), "the proxy told the registry"

with subtest("an ordinary user changes nothing, and gets no code"):
    for words in ("add /tmp/teapot-1.0.0.wat", "activate teapot@1.0.0", "rm --force teapot", "canary teapot@1.0.0 --share 5%"):
        code, said = machine.execute(f"runuser -u mallory -- shipote plugin {words} 2>&1", timeout=600)
        assert code == 1 and "org.shipote.plugins.manage" in said, (words, said)
    call = "busctl call org.shipote.Plugins1 /org/shipote/Plugins1 org.shipote.Plugins1.Manager"
    code, said = machine.execute(f"runuser -u mallory -- {call} Open 'sa{{sv}}' teapot 0 2>&1")
    assert code != 0 and "org.shipote.plugins.open" in said, said
    # what is listed is no secret
    assert "teapot" in machine.succeed("runuser -u mallory -- shipote plugin ls")
    assert versions()["1.1.0"] == (True, 0), versions()

with subtest("the proxy's user takes code, and changes nothing either"):
    code, said = machine.execute("runuser -u shipote-proxy -- shipote plugin rm --force teapot 2>&1")
    assert code == 1 and "org.shipote.plugins.manage" in said, said

with subtest("a component that breaks rules is refused with the reason, and what is at work goes on"):
    put("/tmp/old.wat", example.replace("teapot1.0.00.1.0", "teapot1.3.07.1.0"))
    code, said = machine.execute("shipote plugin add /tmp/old.wat 2>&1", timeout=600)
    assert code == 1 and "abi-version" in said, said
    assert status() == "451", status()

with subtest("the registry is killed under requests: the proxy goes on, and hears of changes afterwards"):
    ask("killed")
    machine.wait_until_succeeds("test -s /tmp/killed", timeout=120)
    machine.succeed("systemctl kill --kill-whom=main -s KILL shipote-plugins")
    assert status() == "451", status()
    machine.wait_until_succeeds("systemctl is-active shipote-plugins && shipote plugin ls", timeout=120)
    assert versions()["1.1.0"] == (True, 0), versions()
    machine.succeed("shipote plugin rollback teapot")
    until(418)
    runs = answered("killed")
    assert [run.split()[1] for run in runs] in (["451", "418"], ["451"]), runs

with subtest("the proxy is killed: the next one has the plugin again"):
    machine.succeed("systemctl kill --kill-whom=main -s KILL shipote-proxy")
    machine.wait_until_succeeds("systemctl is-active shipote-proxy", timeout=120)
    until(418)

with subtest("components and filters are nodes of a pipeline, under the units' hardening, every edge tapped"):
    examples = "$(dirname $(readlink -f $(command -v shipote)))/../share/shipote/examples"
    for name in ("upper", "redact"):
        machine.succeed(f"shipote plugin add {examples}/{name}.wat", timeout=600)
    put("/tmp/mixed.toml", MIXED)
    said = machine.succeed("shipote pipeline run /tmp/mixed.toml", timeout=600)
    assert said == "CALL ###-#### NOW\n", said
    ended = json.loads(machine.succeed("shipote pipeline run --tap --json /tmp/mixed.toml", timeout=600).splitlines()[-1])
    assert len(ended["edges"]) == 3 and all(edge["bytes_total"] == 18 for edge in ended["edges"]), ended
    # the registry's death is nothing to what is installed: code is handed over again
    machine.succeed("systemctl kill --kill-whom=main -s KILL shipote-plugins")
    machine.wait_until_succeeds("systemctl is-active shipote-plugins && shipote plugin ls", timeout=120)
    assert machine.succeed("echo quiet | shipote run --wasm upper", timeout=600) == "QUIET\n"
    machine.succeed("shipote plugin rm --force upper", "shipote plugin rm --force redact")

with subtest("what is removed is gone, and so is its code"):
    code, said = machine.execute("shipote plugin rm teapot 2>&1")
    assert code == 1 and "active" in said, said
    machine.succeed("rm /etc/shipote/proxy/rules/plugins.json", "shipote proxy reload")
    machine.succeed("shipote plugin rm --force teapot", "shipote plugin rm teapot@1.1.0", "shipote plugin rm teapot@1.2.0")
    assert versions() == {}, versions()
    left = machine.succeed("find /var/lib/shipote/plugins/store/components /var/lib/shipote/plugins/store/compiled -type f")
    assert left == "", left

machine.succeed("rm /etc/shipote/plugins/policy.toml", "systemctl reload shipote-plugins")
