# Services with nothing to do: what they hold of the memory, and how seldom they wake.
# machine: fresh

SERVICES = ("plugins", "workspaces", "machines", "proxy")
SLICE = "/sys/fs/cgroup/system.slice"
# Mebibytes, of all services together.
MEMORY = 50
# Seconds for which they are watched; at most one of them in a second may wake, once.
SECONDS = 60


def threads():
    """Times that each thread went to sleep, by service, process and thread."""
    found = {}
    for service in SERVICES:
        text = machine.succeed(
            f"for p in $(find {SLICE}/shipote-{service}.service -name cgroup.procs -exec cat {{}} +); do"
            " for t in /proc/$p/task/*; do echo $t $(cat $t/comm | tr ' ' _)"
            " $(awk '$1 == \"voluntary_ctxt_switches:\" { print $2 }' $t/status); done; done"
        )
        for line in text.splitlines():
            task, name, count = line.split()
            found[service, task, name] = int(count)
    return found


def memory(service, field):
    """Mebibytes of a service's processes, pages that several map counted in parts."""
    text = machine.succeed(
        f"for p in $(find {SLICE}/shipote-{service}.service -name cgroup.procs -exec cat {{}} +); do cat /proc/$p/smaps_rollup; done"
    )
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(field + ":")) / 1024


start_all()
machine.wait_for_unit("multi-user.target")
for service in SERVICES:
    machine.succeed(f"systemctl start shipote-{service}.service", timeout=240)
# each has done something, so that what it makes at the first use is made
machine.succeed("shipote run -- true", "shipote machine ls", "shipote plugin list", "shipote proxy rules")
machine.wait_until_succeeds("test $(systemctl list-jobs --no-legend | wc -l) -eq 0")
machine.sleep(20)

with subtest("they wake less than once a second, all together"):
    before = threads()
    machine.sleep(SECONDS)
    after = threads()
    woken = {key: count - before.get(key, 0) for key, count in after.items() if count > before.get(key, 0)}
    for (service, task, name), count in sorted(woken.items(), key=lambda item: -item[1]):
        print(f"     {count:4} {service} {name} ({task})")
    print(f"     {sum(woken.values())} in {SECONDS} s")
    assert sum(woken.values()) < SECONDS, woken

with subtest(f"they hold {MEMORY} MiB at most"):
    # the program text of a debug build is several times larger: of it counts what is the service's own
    debug = machine.execute("test -e /mnt/host/debug")[0] == 0
    total = 0
    for service in SERVICES:
        whole = memory(service, "Pss")
        own = memory(service, "Pss_Anon") + memory(service, "Pss_Shmem")
        total += own if debug else whole
        print(f"     {service}: {whole:.1f} MiB, of these {own:.1f} MiB its own")
    print(f"     {total:.1f} MiB together{' without the files they map (debug build)' if debug else ''}")
    assert total <= MEMORY, total
