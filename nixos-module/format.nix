# Every Nix file is as nixfmt writes it.
{
  lib,
  nixfmt,
  runCommand,
}:
runCommand "shipote-nix-format"
  {
    nativeBuildInputs = [ nixfmt ];
    src = lib.fileset.toSource {
      root = ../.;
      fileset = lib.fileset.unions [
        ../flake.nix
        (lib.fileset.fileFilter (file: file.hasExt "nix") ../nixos-module)
        (lib.fileset.fileFilter (file: file.hasExt "nix") ../services)
        (lib.fileset.fileFilter (file: file.hasExt "nix") ../vm-tests)
      ];
    };
  }
  ''
    find "$src" -name '*.nix' -exec nixfmt --check {} +
    touch "$out"
  ''
