# What machines are started with: QEMU, and the folder with a guest's kernel, initramfs and vsock device.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.shipote;
  own = cfg.services.machines;
in
{
  options.services.shipote.services.machines = {
    qemu = lib.mkPackageOption pkgs "qemu_kvm" { };

    image = lib.mkOption {
      type = lib.types.nullOr lib.types.path;
      default = null;
      example = "/var/lib/shipote/machine-image";
      description = ''
        The folder that `cargo xtask image --out` fills: the guest's kernel, its first root with the agent, and the
        vsock device. Without it the service runs, and refuses to start a machine. A path in quotes stays where it is;
        one without is copied to the store.
      '';
    };
  };

  config = lib.mkIf (cfg.enable && own.enable) {
    systemd.services.shipote-machines = {
      path = [ own.qemu ];
      environment = lib.mkIf (own.image != null) { SHIPOTE_MACHINE_IMAGE = "${own.image}"; };
    };
  };
}
