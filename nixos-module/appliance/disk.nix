# The appliance on a disk: `config.system.build.image`.
#
# Two slots for the store, of one size, of which a new disk has filled the first. What is started is one file in the EFI
# system partition (kernel, initramfs, command line) that names its slot by version; an update writes the slot that is
# not in use, then adds its file, and goes back by starting the older one. The root is in memory: a machine that was
# started is the image, /var, and nothing else.
{
  config,
  lib,
  modulesPath,
  pkgs,
  ...
}:
let
  arch = pkgs.stdenv.hostPlatform.efiArch;
  inherit (config.system.boot.loader) ukiFile;

  slot = {
    Type = "linux-generic";
    SizeMinBytes = "3G";
    SizeMaxBytes = "3G";
  };
  # Of a partition's 36 characters.
  store = "store_${config.system.image.version}";
in
{
  imports = [
    ./.
    (modulesPath + "/image/repart.nix")
  ];

  boot.loader.grub.enable = false;
  boot.initrd.systemd.enable = true;
  # Neither keymap nor font: nobody sits at it.
  console.enable = false;
  # A root in memory has no id of its own; the journal's folder is named after it. The firmware's stays.
  boot.kernelParams = [ "systemd.machine_id=firmware" ];

  fileSystems = {
    "/" = {
      device = "none";
      fsType = "tmpfs";
      options = [
        "mode=0755"
        "size=25%"
      ];
    };
    "/nix/store" = {
      device = "/dev/disk/by-partlabel/${store}";
      fsType = "erofs";
      options = [ "ro" ];
      neededForBoot = true;
    };
    "/var" = {
      device = "/dev/disk/by-partlabel/var";
      fsType = "ext4";
      options = [
        "nodev"
        "nosuid"
        "x-systemd.growfs"
      ];
      neededForBoot = true;
    };
    "/boot" = {
      device = "/dev/disk/by-partlabel/esp";
      fsType = "vfat";
      options = [ "umask=0077" ];
    };
  };

  image.repart = {
    name = "shipote";
    sectorSize = 512;
    partitions = {
      "10-esp" = {
        contents = {
          "/EFI/BOOT/BOOT${lib.toUpper arch}.EFI".source =
            "${pkgs.systemd}/lib/systemd/boot/efi/systemd-boot${arch}.efi";
          "/EFI/Linux/${ukiFile}".source = "${config.system.build.uki}/${ukiFile}";
        };
        repartConfig = {
          Type = "esp";
          Format = "vfat";
          Label = "esp";
          # two versions at least
          SizeMinBytes = "512M";
        };
      };
      "20-store-a" = {
        storePaths = [ config.system.build.toplevel ];
        stripNixStorePrefix = true;
        repartConfig = slot // {
          Format = "erofs";
          Label = store;
          ReadOnly = true;
        };
      };
      # `_empty` is what systemd-sysupdate(8) takes for a slot that is free.
      "21-store-b".repartConfig = slot // {
        Label = "_empty";
      };
      "30-var".repartConfig = {
        Type = "var";
        Format = "ext4";
        Label = "var";
        SizeMinBytes = "2G";
      };
    };
  };

  assertions = [
    {
      assertion = lib.stringLength store <= 36;
      message = "system.image.version `${config.system.image.version}` is too long: `${store}` has to be a partition's label, of 36 characters at most.";
    }
  ];
}
