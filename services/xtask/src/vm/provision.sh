#!/bin/sh
# Installs the project in the test machine, as a package's scripts would.
set -eu
# the steps below ask running daemons: let the boot finish first ("degraded" is for a scenario to notice)
systemctl is-system-running --wait >/dev/null || true
# users first: the bus reads its files again as soon as they change, and they name these users
install -D -m 0644 -t /usr/lib/sysusers.d /mnt/host/root/usr/lib/sysusers.d/*.conf
systemd-sysusers
cp -r --no-preserve=ownership /mnt/host/root/. /
systemd-tmpfiles --create shipote.conf
journalctl --update-catalog
systemctl daemon-reload
busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig >/dev/null
cd /usr/lib/systemd/system
systemctl enable --quiet shipote-*.service
# a service that does not start is for a scenario to notice
systemctl start --no-block shipote-*.service
