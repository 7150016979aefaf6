# Evaluates the module with good and with broken configurations; nothing is built. Any problem fails the evaluation.
{
  nixpkgs,
  pkgs,
  self,
}:
let
  inherit (nixpkgs) lib;

  evaluate = module: (evaluated module).config;
  evaluated =
    module:
    lib.nixosSystem {
      modules = [
        self.nixosModules.default
        {
          nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system;
          boot.loader.grub.enable = false;
          fileSystems."/" = {
            device = "none";
            fsType = "tmpfs";
          };
          documentation.enable = false;
          system.stateVersion = lib.trivial.release;
        }
        module
      ];
    };
  on = settings: {
    services.shipote = {
      enable = true;
    }
    // settings;
  };
  refusals = config: map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);

  page = import ./page.nix { inherit lib; };
  good = import ./good.nix { inherit lib on; };
  broken = import ./broken.nix { inherit on; };

  # A good configuration is refused by nothing, and what it is said to lead to holds.
  problemsOfGood =
    name: case:
    let
      config = evaluate case.config;
      wrong = lib.attrNames (lib.filterAttrs (_: holds: !holds) (case.holds config));
    in
    map (message: "${name}: refused: ${message}") (refusals config)
    ++ map (what: "${name}: it does not hold that ${what}") wrong
    # Down to the last unit; one that does not evaluate ends the check with its own message.
    ++ lib.optional (config.system.build.toplevel.drvPath == "") "${name}: no system";

  # A broken one is refused with a message that has these words; by its type where there are none.
  problemsOfBroken =
    name: case:
    let
      config = evaluate case.config;
      settings = builtins.tryEval (
        builtins.deepSeq (removeAttrs config.services.shipote [ "package" ]) true
      );
      told = lib.concatStringsSep "\n" (refusals config);
    in
    if !(case ? says) then
      lib.optional settings.success "${name}: its type was accepted"
    else
      lib.optional (
        !lib.hasInfix case.says told
      ) "${name}: refused with `${told}`, which does not say `${case.says}`";

  problems =
    lib.concatLists (lib.mapAttrsToList problemsOfGood good)
    ++ lib.concatLists (lib.mapAttrsToList problemsOfBroken broken)
    ++ page (evaluated { }).options.services.shipote;
in
if problems != [ ] then
  throw "the NixOS module:\n${lib.concatStringsSep "\n" problems}"
else
  pkgs.runCommand "shipote-module" { } "touch $out"
