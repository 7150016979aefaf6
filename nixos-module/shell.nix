# What it takes to work on the project: the toolchain, a bus, and what `cargo xtask vm` asks of the host.
{
  mkShell,
  cargo,
  cargo-deny,
  clippy,
  dbus,
  e2fsprogs,
  nixfmt,
  python3,
  qemu_kvm,
  rust-analyzer,
  rustc,
  rustfmt,
}:
mkShell {
  packages = [
    cargo
    cargo-deny
    clippy
    dbus
    e2fsprogs
    nixfmt
    python3
    qemu_kvm
    rust-analyzer
    rustc
    rustfmt
  ];
}
