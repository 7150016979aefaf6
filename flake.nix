{
  description = "Shipote: sandboxed workspaces, microVMs, a proxy and its plugins, as small services on D-Bus";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forEachSystem = make: lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      ours = pkgs: self.packages.${pkgs.stdenv.hostPlatform.system};
    in
    {
      packages = forEachSystem (
        pkgs:
        {
          default = (ours pkgs).shipote;
          # The four services, the command line, and their units, policies and catalogue.
          shipote = pkgs.callPackage ./services/package.nix { };
          # What `nix run .#demo` starts.
          demo = pkgs.callPackage ./nixos-module/demo.nix { inherit (ours pkgs) shipote; };
          # The options of the NixOS module as one page of CommonMark.
          options = import ./nixos-module/options-page.nix { inherit pkgs lib; };
          # The pages of docs/, with the options.
          docs = pkgs.callPackage ./nixos-module/docs.nix { inherit (ours pkgs) options; };
        }
        // lib.optionalAttrs pkgs.stdenv.hostPlatform.isx86_64 {
          # What machines are started with: kernel, first root with the agent, devices.
          machine-image = pkgs.callPackage ./services/agent/package.nix { };
          # The appliance, to be written to a disk.
          disk = self.nixosConfigurations.appliance.config.system.build.image;
          # The appliance, to be started from a stick or a virtual drive.
          iso = self.nixosConfigurations.appliance-iso.config.system.build.isoImage;
        }
      );

      overlays.default = final: _: {
        shipote = final.callPackage ./services/package.nix { };
        shipote-machine-image = final.callPackage ./services/agent/package.nix { };
      };

      nixosModules.default = ./nixos-module;

      # The appliance itself, on a disk.
      nixosConfigurations.appliance = lib.nixosSystem {
        modules = [
          self.nixosModules.default
          ./nixos-module/appliance/disk.nix
        ];
      };

      nixosConfigurations.appliance-iso = lib.nixosSystem {
        modules = [
          self.nixosModules.default
          ./nixos-module/appliance/iso.nix
        ];
      };

      devShells = forEachSystem (pkgs: {
        default = pkgs.callPackage ./nixos-module/shell.nix { };
      });

      formatter = forEachSystem (pkgs: pkgs.nixfmt-tree);

      checks = forEachSystem (
        pkgs:
        {
          inherit (ours pkgs)
            shipote
            demo
            docs
            options
            ;
          clippy = pkgs.callPackage ./services/clippy.nix { };
          tests = pkgs.callPackage ./services/tests.nix { };
          format = pkgs.callPackage ./nixos-module/format.nix { };
          module = import ./nixos-module/tests { inherit nixpkgs pkgs self; };
        }
        // lib.mapAttrs' (name: lib.nameValuePair "vm-${name}") (
          import ./vm-tests {
            inherit pkgs lib;
            module = self.nixosModules.default;
          }
        )
        // lib.optionalAttrs pkgs.stdenv.hostPlatform.isx86_64 {
          inherit (ours pkgs) machine-image disk iso;
        }
      );

      apps = forEachSystem (pkgs: rec {
        default = shipote;
        shipote = {
          type = "app";
          program = lib.getExe (ours pkgs).shipote;
          meta.description = "The command line; `up` starts the services as the calling user";
        };
        demo = {
          type = "app";
          program = lib.getExe (ours pkgs).demo;
          meta.description = "Start the services, run a tapped pipeline over real input, stop";
        };
      });
    };
}
