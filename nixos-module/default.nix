# The appliance as a NixOS module: `services.shipote.enable = true`.
#
# The units are the ones that every distribution installs (`systemd.packages`); the module adds only what its options
# say. Options lie apart from assertions, one file per concept; nothing changes on a system that does not enable it.
{
  imports = [
    ./assertions.nix
    ./journal.nix
    ./machines.nix
    ./package.nix
    ./pipelines.nix
    ./plugins.nix
    ./policies.nix
    ./proxy.nix
    ./services.nix
    ./settings.nix
    ./users.nix
    ./workspaces.nix
  ];
}
