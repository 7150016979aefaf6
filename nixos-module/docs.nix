# The documentation as it lies in the repository, and the page of the NixOS module's options.
{
  lib,
  options,
  runCommand,
}:
runCommand "shipote-docs" { } ''
  mkdir -p "$out/share/doc/shipote"
  cp -r ${
    lib.fileset.toSource {
      root = ../.;
      fileset = lib.fileset.unions [
        ../docs
        ../README.md
      ];
    }
  }/. "$out/share/doc/shipote"
  cp ${options} "$out/share/doc/shipote/docs/nixos-options.md"
''
