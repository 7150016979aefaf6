#!/usr/bin/env python3
"""The same session by the command line's --json: no module beside Python's own.

    python3 session_cli.py NAME
"""

import json
import subprocess
import sys


def shipote(*words):
    """Runs a command line; its answer as JSON. A refusal is one line on standard error and exit status 1."""
    done = subprocess.run(["shipote", *words, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def run(session, *argv, stdin=b""):
    done = subprocess.run(["shipote", "session", "exec", session, "--", *argv], input=stdin, capture_output=True)
    return done.returncode, done.stdout


def main(name):
    shipote("session", "create", name, "--ttl", "10m", "--env", "GREETING=hello")
    try:
        program = b"import os, sys; print(os.environ['GREETING'], sum(map(int, sys.argv[1:])))\n"
        run(name, "sh", "-c", "cat > /work/add.py", stdin=program)
        status, output = run(name, "python3", "/work/add.py", "1", "2", "3")
        print(status, output.decode().strip())
        print(run(name, "false")[0])
    finally:
        shipote("session", "rm", name)


if __name__ == "__main__":
    main(sys.argv[1])
