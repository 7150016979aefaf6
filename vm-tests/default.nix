# The scenarios of this folder as NixOS VM tests: the same files that `cargo xtask vm test` runs on Debian.
{
  pkgs,
  lib,
  module,
}:
let
  isScenario = name: kind: kind == "regular" && lib.hasSuffix ".py" name;
  scenarios = lib.attrNames (lib.filterAttrs isScenario (builtins.readDir ./.));

  test =
    file:
    let
      name = lib.removeSuffix ".py" file;
    in
    lib.nameValuePair name (
      pkgs.testers.runNixOSTest {
        name = "shipote-${name}";
        nodes.machine = {
          imports = [ module ];
          services.shipote.enable = true;
          # Users that scenarios let try things.
          users.users.mallory.isNormalUser = true;
          users.users.runner = {
            isNormalUser = true;
            extraGroups = [ "shipote" ];
          };
          virtualisation.memorySize = 2048;
          virtualisation.cores = 2;
        };
        testScript = builtins.readFile (./. + "/${file}");
      }
    );
in
lib.listToAttrs (map test scenarios)
