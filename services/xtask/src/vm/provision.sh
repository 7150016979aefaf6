#!/bin/sh
# Installs the project's packages in the test machine.
set -eu
# its scripts ask running daemons: let the boot finish first ("degraded" is for a scenario to notice)
systemctl is-system-running --wait >/dev/null || true
# the disk goes away with the machine, so nothing has to be forced onto it; a service that does not start is for a scenario to notice
exec dpkg --force-unsafe-io --install /mnt/host/shipote.deb /mnt/host/shipote-machine.deb
