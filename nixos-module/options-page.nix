# The options of this module alone, as CommonMark.
{ pkgs, lib }:
let
  evaluated = lib.evalModules {
    # Of the system's own options only the module's are asked for, so the rest need not exist.
    modules = [
      ./.
      {
        _module.check = false;
        _module.args = { inherit pkgs; };
      }
    ];
  };
in
(pkgs.nixosOptionsDoc {
  options.services.shipote = evaluated.options.services.shipote;
  warningsAreErrors = true;
  transformOptions =
    option:
    option
    // {
      declarations = map (file: lib.removePrefix "${toString ../.}/" (toString file)) option.declarations;
    };
}).optionsCommonMark
