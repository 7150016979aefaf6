"""Breaks what a scenario is about, in the machine, and wants the scenario to fail there: a test that passes whatever
happens proves nothing.

What is broken, and where that has to be noticed, stands in vm-tests/broken.toml.
"""

import contextlib
import io
import json
import time

from machine import Failed
from suite import Suite, install_once, new_machines, wants


def broken(description, breaks):
    """Tries each break on a machine of its own; gives the exit status."""
    with open(breaks) as file:
        entries = json.load(file)
    judged = Suite()
    if len(entries) > 1:
        install_once(description)
    for entry in entries:
        judged.scenario = entry["name"]
        begin = time.monotonic()
        with open(entry["path"]) as file:
            text = file.read()
        said, trial = io.StringIO(), Suite()
        with new_machines(description, wants(text)[0]) as machines:
            for machine in machines:
                machine.launch()
            try:
                for machine in machines:
                    machine.execute("systemctl is-system-running --wait")
                    machine.succeed(entry["script"])
            except Failed as error:
                judged.report("FAIL", "it could not be broken", begin, str(error))
                continue
            with contextlib.redirect_stdout(said):
                passed = trial.run(machines, entry["path"], text)
        lines = said.getvalue()
        if passed:
            judged.report("FAIL", f"{trial.scenario} does not notice it", begin, lines)
        elif entry["noticed"] not in trial.within:
            judged.report("FAIL", f"{trial.scenario} fails, but not in \"{entry['noticed']}\"", begin, lines)
        else:
            title, reason = _failure(lines)
            judged.report("ok", title, begin, reason)
    print(f"{judged.passed} noticed, {judged.failed} not")
    return 1 if judged.failed else 0


def _failure(lines):
    """The title and the first line of the failure that a suite has reported."""
    lines = lines.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("FAIL"))
    return lines[at].removeprefix("FAIL").strip().rsplit(" (", 1)[0], lines[at + 1].strip()[:300]
