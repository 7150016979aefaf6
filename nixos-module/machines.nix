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
      default =
        if pkgs.stdenv.hostPlatform.isx86_64 then
          pkgs.callPackage ../services/agent/package.nix { }
        else
          null;
      defaultText = lib.literalMD "the guest image of this flake on x86-64, built with the system's `pkgs`; elsewhere `null`";
      example = "/var/lib/shipote/machine-image";
      description = ''
        The folder with what machines are started with: the guest's kernel, its first root with the agent, the vsock
        device and what serves volumes. `cargo xtask image --out` fills one, too. Without it (`null`) the service runs,
        and refuses to start a machine. A path in quotes stays where it is; one without is copied to the store.
      '';
    };

    volumes = lib.mkOption {
      type = lib.types.listOf lib.types.path;
      default = [ ];
      example = [ "/srv/machines" ];
      description = ''
        Folders beneath which those lie that machines may have as volumes (`shipote machine create --volume`). The user
        `shipote-machines` must be able to reach them; what guests write belongs to that user. Folders in `/home` cannot
        be shared.
      '';
    };
  };

  config = lib.mkIf (cfg.enable && own.enable) {
    systemd.services.shipote-machines = {
      # mke2fs makes the machines' disks.
      path = [ own.qemu pkgs.e2fsprogs ];
      environment = lib.mkIf (own.image != null) { SHIPOTE_MACHINE_IMAGE = "${own.image}"; };
      serviceConfig = lib.mkIf (own.volumes != [ ]) { ReadWritePaths = map (folder: "-${toString folder}") own.volumes; };
    };

    services.shipote.settings = lib.mkIf (own.volumes != [ ]) { machines.volumes = map toString own.volumes; };
  };
}
