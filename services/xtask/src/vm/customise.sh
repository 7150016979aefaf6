#!/bin/sh
# Finishes the root file system of the test machine. $1 is the root; runs on the host, at the end of mmdebstrap.
set -eu
root=$1

echo shipote-vm > "$root/etc/hostname"
printf '127.0.0.1 localhost shipote-vm\n::1 localhost\n' > "$root/etc/hosts"
printf '/dev/vda /mnt/host ext4 ro,nofail,x-systemd.device-timeout=600s 0 0\n' > "$root/etc/fstab"
mkdir -p "$root/mnt/host"

# A fixed machine id would be shared by all machines; an empty file has systemd make one at boot.
: > "$root/etc/machine-id"

# No password is ever asked for on the serial console of a machine that lives for minutes.
chroot "$root" passwd -d root >/dev/null

# The journal is what tests read: keep it in memory, complete, and never rate-limited.
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' > "$root/etc/systemd/journald.conf.d/vm.conf"

# Emulated processors are slow: what stock units do in 90 s may take longer.
mkdir -p "$root/etc/systemd/system.conf.d"
printf '[Manager]\nDefaultTimeoutStartSec=240s\nDefaultDeviceTimeoutSec=240s\n' > "$root/etc/systemd/system.conf.d/vm.conf"

# The control agent: the host's own xtask binary, from the second disk. Up as early as its disk is.
cat > "$root/etc/systemd/system/vm-agent.service" <<'UNIT'
[Unit]
Description=Control agent of the test machine
DefaultDependencies=no
RequiresMountsFor=/mnt/host
Before=shutdown.target
Conflicts=shutdown.target

[Service]
Type=exec
ExecStart=/mnt/host/xtask vm agent
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LANG=C.UTF-8
WorkingDirectory=/root
Restart=always
RestartSec=1s
KillMode=process
TasksMax=infinity
LimitNOFILE=524288
OOMScoreAdjust=-900

[Install]
WantedBy=sysinit.target
UNIT
ln -sf ../vm-agent.service "$root/etc/systemd/system/sysinit.target.wants/vm-agent.service"

# Nothing here should run on a timer, wait for a network or a login on a screen.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer \
    systemd-pstore.service systemd-firstboot.service getty@tty1.service systemd-timesyncd.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

# Nor is any of this asked for: with what qemu.rs leaves out, some ten seconds of an emulated boot.
for unit in modprobe@configfs.service modprobe@drm.service modprobe@fuse.service sys-kernel-config.mount \
    sys-fs-fuse-connections.mount sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount \
    e2scrub_reap.service systemd-udev-load-credentials.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

# The initramfs is not used.
rm -f "$root"/boot/initrd.img-* "$root/initrd.img" "$root/initrd.img.old"
