# The scenarios of this folder as NixOS VM tests: the same files that `cargo xtask vm test` runs on Debian.
{
  pkgs,
  lib,
  module,
}:
let
  isScenario = name: kind: kind == "regular" && lib.hasSuffix ".py" name;
  scenarios = lib.attrNames (lib.filterAttrs isScenario (builtins.readDir ./.));

  node = {
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
  # What one host of several offers to the others.
  onNetwork = {
    imports = [ node ];
    networking.firewall.allowedTCPPorts = [ 8000 ];
  };

  # The names after `# machines: `, where a scenario wants several.
  namesIn =
    text:
    let
      lines = map (builtins.match "# machines: (.*)") (lib.splitString "\n" text);
      found = lib.concatLists (lib.filter (line: line != null) lines);
    in
    lib.concatMap (lib.splitString " ") found;

  test =
    file:
    let
      name = lib.removeSuffix ".py" file;
      text = builtins.readFile (./. + "/${file}");
      several = namesIn text;
    in
    lib.nameValuePair name (
      pkgs.testers.runNixOSTest {
        name = "shipote-${name}";
        nodes = if several == [ ] then { machine = node; } else lib.genAttrs several (_: onNetwork);
        testScript = text;
      }
    );
in
lib.listToAttrs (map test scenarios)
