# A small system that is nothing but the appliance. To try it in QEMU:
# `nix run .#nixosConfigurations.appliance.config.system.build.vm`.
{ lib, modulesPath, ... }:
{
  imports = [ (modulesPath + "/profiles/minimal.nix") ];

  nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";
  system.stateVersion = lib.trivial.release;

  services.shipote.enable = true;
  # A change that cannot be recorded is refused; the journal outlasts a reboot by default.
  services.shipote.settings.audit.mode = "required";

  networking.hostName = "shipote";
  networking.useNetworkd = true;

  boot.loader.grub = {
    device = "nodev";
    efiSupport = true;
    efiInstallAsRemovable = true;
  };
  fileSystems = {
    "/" = {
      device = "/dev/disk/by-partlabel/root";
      fsType = "ext4";
    };
    "/boot" = {
      device = "/dev/disk/by-partlabel/boot";
      fsType = "vfat";
      options = [ "umask=0077" ];
    };
  };

  # Users are those of the configuration: nobody can log in until it names somebody.
  users.mutableUsers = false;
  users.allowNoPasswordLogin = true;
}
