# A system that is nothing but the appliance, whatever it is started from (`disk.nix`: a disk).
# Its root is in memory and the store is read-only; what has to stay lies in /var.
{ lib, modulesPath, ... }:
{
  imports = [ (modulesPath + "/profiles/minimal.nix") ];

  nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";
  system.stateVersion = lib.trivial.release;
  system.image = {
    id = "shipote";
    inherit ((lib.importTOML ../../Cargo.toml).workspace.package) version;
  };

  services.shipote.enable = true;
  # A change that cannot be recorded is refused; the journal outlasts a reboot by default.
  services.shipote.settings.audit.mode = "required";

  networking.hostName = "shipote";
  networking.useNetworkd = true;

  # An update is a new image: nothing is built or installed here.
  nix.enable = false;
  system.switch.enable = false;

  # Users are those of the configuration: nobody can log in until it names somebody.
  users.mutableUsers = false;
  users.allowNoPasswordLogin = true;
}
