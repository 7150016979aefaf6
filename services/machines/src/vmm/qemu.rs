//! QEMU's command line for a machine.
//!
//! The board `microvm` has no PCI, no firmware and devices on virtio-mmio only: a start takes 2.1 s where one on `q35`
//! takes 2.4 (emulated; medians of six in turns, 29 November 2026). ACPI stays on: it is how the distribution's kernel
//! finds those devices. On `q35` the same devices are on PCI. The memory is a shared memfd because the vsock device is
//! another process.
//!
//! Everything that it works on is opened for it and named by a descriptor: the user that it runs as need not be able to
//! reach any of it by a path.

use super::host::{Accelerator, Host};
use crate::groups::TRANSLATED_MIB;
use crate::spec::{Board, Spec};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// The descriptor of a connection to the vsock device. QEMU is given its connections, so that it needs no right to make
/// any; the numbers are out of the way of those that a program opens by itself.
pub const VSOCK_DESCRIPTOR: i32 = 100;
/// The descriptor of the control connection.
pub const QMP_DESCRIPTOR: i32 = 101;
/// The first descriptor of the connections to what serves volumes.
pub const VOLUME_DESCRIPTORS: i32 = 110;
/// The descriptors of the kernel,
pub const KERNEL_DESCRIPTOR: i32 = 102;
/// the machine's own initramfs,
pub const INITRAMFS_DESCRIPTOR: i32 = 103;
/// and its disk, to read and write, and to read only: QEMU looks at it before it wants to write.
pub const DISK_DESCRIPTORS: [i32; 2] = [104, 105];
/// Folder of the vsock device's sockets, in the machine's.
pub const VSOCK_FOLDER: &str = "vsock";
/// The vsock device's own socket there; those that guests dial stand beside it, named `v_PORT`.
pub const VSOCK_SOCKET: &str = "v";

/// The arguments. Console and messages come on standard output and error.
#[must_use]
pub fn arguments(host: &Host, spec: &Spec) -> Vec<String> {
    let size = spec.memory_mib;
    // How the names of devices end that are on the board's bus.
    let (board, bus) = match spec.board {
        Board::Microvm => ("microvm", "device"),
        Board::Q35 => ("q35", "pci"),
    };
    let (accel, cpu) = match host.accelerator {
        Accelerator::Kvm => ("kvm".to_owned(), "host"),
        // QEMU 7.2 emulates CMPXCHG16B with a fault, and string instructions by the step: a kernel that is told they are fast
        // copies and clears its pages by single bytes (a boot takes an eighth longer). What it may take for translated
        // code is part of the machine's limit.
        Accelerator::Tcg(_) => (format!("tcg,tb-size={TRANSLATED_MIB}"), "max,-cx16,-erms,-fsrm"),
    };
    let mut append = "console=ttyS0 quiet panic=-1 reboot=t".to_owned();
    if let Accelerator::Tcg(_) = host.accelerator {
        // A kernel under load gives up calibrating its clock against an emulated timer and hangs.
        append += &format!(" tsc_early_khz={}", host.tsc_khz);
    }
    [
        ("-M", format!("{board},memory-backend=mem0")),
        ("-accel", accel),
        ("-cpu", cpu.to_owned()),
        ("-smp", spec.cpus.to_string()),
        ("-m", format!("{size}M")),
        ("-object", format!("memory-backend-memfd,id=mem0,size={size}M,share=on")),
        ("-display", "none".to_owned()),
        ("-chardev", "stdio,id=console,signal=off".to_owned()),
        ("-serial", "chardev:console".to_owned()),
        ("-kernel", format!("/proc/self/fd/{KERNEL_DESCRIPTOR}")),
        ("-initrd", format!("/proc/self/fd/{INITRAMFS_DESCRIPTOR}")),
        ("-append", append),
        ("-chardev", format!("socket,id=vsock,fd={VSOCK_DESCRIPTOR}")),
        ("-device", format!("vhost-user-vsock-{bus},chardev=vsock")),
        // What the guest has freed goes back to the host by itself; nothing is ever taken from it.
        ("-device", format!("virtio-balloon-{bus},free-page-reporting=on")),
        ("-chardev", format!("socket,id=qmp,fd={QMP_DESCRIPTOR}")),
        ("-mon", "chardev=qmp,mode=control".to_owned()),
        ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned()),
    ]
    .into_iter()
    .chain((0..spec.volumes.len()).zip(VOLUME_DESCRIPTORS..).flat_map(|(n, descriptor)| {
        let tag = crate::volumes::tag(n);
        [
            ("-chardev", format!("socket,id={tag},fd={descriptor}")),
            ("-device", format!("vhost-user-fs-{bus},chardev={tag},tag={tag},queue-size=1024")),
        ]
    }))
    .chain((spec.disk_mib > 0).then_some(()).into_iter().flat_map(|()| {
        // What QEMU opens is a copy of one of the set.
        let [write, read] = DISK_DESCRIPTORS;
        [
            ("-add-fd", format!("fd={write},set=1")),
            ("-add-fd", format!("fd={read},set=1")),
            ("-drive", "file=/dev/fdset/1,if=none,id=disk,format=raw,cache=writeback,discard=unmap".to_owned()),
            ("-device", format!("virtio-blk-{bus},drive=disk")),
        ]
    }))
    .flat_map(|(option, value)| [option.to_owned(), value])
    .chain(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(accelerator: Accelerator) -> String {
        on(Board::Microvm, accelerator)
    }

    fn on(board: Board, accelerator: Accelerator) -> String {
        let host = Host { accelerator, tsc_khz: 2_000_000 };
        let volumes = vec!["/srv/data:/data".to_owned()];
        let spec = Spec { memory_mib: 128, cpus: 2, disk_mib: 64, volumes, board, ..Spec::default() };
        arguments(&host, &spec).join(" ")
    }

    #[test]
    fn each_board_has_its_devices_on_its_own_bus() {
        for (board, has, has_not) in [(Board::Microvm, "-device,", "-pci,"), (Board::Q35, "-pci,", "-device,")] {
            let line = on(board, Accelerator::Kvm);
            assert_eq!(line.matches(has).count(), 4, "vsock, balloon, volume and disk: {line}");
            assert!(!line.contains(has_not), "{line}");
        }
    }

    #[test]
    fn the_command_line_says_what_the_spec_says() {
        let tcg = joined(Accelerator::Tcg("no kvm".to_owned()));
        for part in [
            "-accel tcg,",
            "-smp 2",
            "-m 128M",
            "size=128M",
            "tsc_early_khz=2000000",
            "file=/dev/fdset/1",
            "-no-reboot",
        ] {
            assert!(tcg.contains(part), "{part} in {tcg}");
        }
        let kvm = joined(Accelerator::Kvm);
        assert!(kvm.contains("-accel kvm") && kvm.contains("-cpu host") && !kvm.contains("tsc_early"), "{kvm}");
    }
}
