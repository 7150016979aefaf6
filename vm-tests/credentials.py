# A certificate's key that root alone may read: systemd hands it to the proxy, and to nobody else.

import json

# For site.test, signed by itself, valid for a hundred years; of use for nothing else.
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBlDCCATugAwIBAgIUdG/PwUMaZ6mT6GF1yfmOwx5uUWIwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJc2l0ZS50ZXN0MCAXDTI2MTEyOTEwMDExMVoYDzIxMjYxMTA1
MTAwMTExWjAUMRIwEAYDVQQDDAlzaXRlLnRlc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASirTH44c51A2NHmDleJmF6ci5yI/izIq474VaSOR4C5xQskfXYdsCO
YnKH8PHRJ18LclppTdCkEZ0jyMJ8AVnJo2kwZzAdBgNVHQ4EFgQUdEdY8NlVfLQp
J/oUJ3nwozWfXKEwHwYDVR0jBBgwFoAUdEdY8NlVfLQpJ/oUJ3nwozWfXKEwDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglzaXRlLnRlc3QwCgYIKoZIzj0EAwID
RwAwRAIgNj1DFhS5DUpwcWV9R49YqbYO1PT4Y6Ru2O4Aif8wGSwCIDgCX7bpd+g3
lNNC1JaVtXntCCJJObnZvpWidc6D+nvs
-----END CERTIFICATE-----
"""
KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg63VuT6GS5W4AS+BG
9IaonOaFSIK/3J1m7Jh78NrOOTWhRANCAASirTH44c51A2NHmDleJmF6ci5yI/iz
Iq474VaSOR4C5xQskfXYdsCOYnKH8PHRJ18LclppTdCkEZ0jyMJ8AVnJ
-----END PRIVATE KEY-----
"""
UNIT = "shipote-proxy.service"
STORED = "/etc/credstore/shipote-proxy.site.key"
HANDED = f"/run/credentials/{UNIT}/shipote-proxy.site.key"
CURL = "curl -sS --fail --max-time 60 --cacert /tmp/site.pem --resolve site.test:8443:127.0.0.1 https://site.test:8443/"


def serve_with(key):
    rules = {
        "rules": [
            {
                "name": "site",
                "listen": ["127.0.0.1:8443"],
                "tls": {"cert_file": "/etc/shipote/proxy/site.pem", "key_file": key},
                "terminate": {"type": "static", "status": 200, "text": "sealed"},
            }
        ]
    }
    machine.succeed(f"cat > /etc/shipote/proxy/rules/site.json <<'EOF'\n{json.dumps(rules)}\nEOF")


start_all()
machine.wait_for_unit("multi-user.target")
machine.wait_for_unit(UNIT, timeout=120)
machine.succeed("getent passwd mallory || useradd --create-home mallory")
machine.succeed(
    "mkdir -p /etc/shipote/proxy/rules && install -d -m 0700 /etc/credstore",
    f"cat > /tmp/site.pem <<'EOF'\n{CERTIFICATE}EOF",
    f"(umask 077 && cat > {STORED} <<'EOF'\n{KEY}EOF\n)",
    "install -m 0644 /tmp/site.pem /etc/shipote/proxy/site.pem",
)

with subtest("where it lies the service cannot read it, and says so"):
    serve_with(STORED)
    refusal = machine.fail("shipote proxy reload 2>&1")
    assert STORED in refusal and "ermission denied" in refusal, refusal

with subtest("as the unit hands it over it can"):
    serve_with(HANDED)
    machine.succeed(f"systemctl restart {UNIT}")
    machine.wait_until_succeeds(f"{CURL} | grep -x sealed", timeout=60)

with subtest("nobody else can"):
    machine.succeed(f"test -s {HANDED}")
    for user in ("mallory", "nobody", "shipote-workspaces"):
        machine.fail(f"runuser -u {user} -- cat {HANDED}")
    machine.fail(f"shipote run -- cat {HANDED}")

machine.succeed(f"rm /etc/shipote/proxy/rules/site.json {STORED}", "shipote proxy reload", f"systemctl restart {UNIT}")
