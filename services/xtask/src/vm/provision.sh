#!/bin/sh
# Installs the project in the test machine, as a package's scripts would.
set -eu
# the steps below ask running daemons: let the boot finish first ("degraded" is for a scenario to notice)
systemctl is-system-running --wait >/dev/null || true
cp -r --no-preserve=ownership /mnt/host/root/. /
systemd-sysusers
systemd-tmpfiles --create shipote.conf
journalctl --update-catalog
systemctl daemon-reload
busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus ReloadConfig >/dev/null
cd /usr/lib/systemd/system
systemctl enable --quiet shipote-*.service
# a service that does not start is for a scenario to notice
systemctl start --no-block shipote-*.service
