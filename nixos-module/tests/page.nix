# The table of options in docs/nixos.md has every option of the module, and none besides.
{ lib }:
options:
let
  prefix = "services.shipote.";
  # One row stands for all services, one for each name of a set.
  services = lib.concatStringsSep "," (import ../names.nix);
  row =
    name:
    let
      own = lib.removePrefix prefix (lib.replaceStrings [ "<name>" ] [ "NAME" ] name);
      each = builtins.match "services\\.[a-z]+\\.(enable|atBoot)" own;
      landlock = builtins.match "policies\\.landlock\\.[a-z]+" own;
    in
    if each != null then
      "services.{${services}}.${lib.head each}"
    else if landlock != null then
      "policies.landlock.SERVICE"
    else
      own;

  shown = lib.filter (option: option.visible && !option.internal) (
    lib.optionAttrSetToDocList options
  );
  # A set whose values are free has a row with a name for its keys; one whose values have options
  # has these.
  rowsOf = lib.unique (map (option: row option.name) shown);
  hasOptions = name: lib.any (lib.hasPrefix "${name}.NAME.") rowsOf;
  wanted = lib.filter (name: !hasOptions name) rowsOf;

  page = lib.splitString "\n" (builtins.readFile ../../docs/nixos.md);
  cells = builtins.match "\\| `([^`]+)` \\| .* \\| .* \\| .* \\|";
  names = lib.concatLists (lib.filter (found: found != null) (map cells page));
  # `proxy.rules` is there as `proxy.rules.FILE`.
  stands =
    name: written: written == name || builtins.match "${lib.escapeRegex name}\\.[A-Z]+" written != null;
in
map (name: "docs/nixos.md has no row for the option `${name}`") (
  lib.filter (name: !lib.any (stands name) names) wanted
)
++ map (name: "docs/nixos.md has a row for `${name}`, which is no option") (
  lib.filter (name: !lib.any (option: stands option name) wanted) names
)
