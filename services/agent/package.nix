# What machines are started with: the folder that `cargo xtask image` makes, of the kernel and the programs of nixpkgs.
{
  lib,
  rustPlatform,
  glibc,
  linkFarm,
  linux,
  pkgsStatic,
  vhost-device-vsock,
  virtiofsd,
  xz,
  zstd,
}:
let
  ingredients = linkFarm "shipote-machine-ingredients" {
    vmlinuz = "${linux}/bzImage";
    modules = "${lib.getOutput "modules" linux}/lib/modules/${linux.modDirVersion}";
    busybox = "${pkgsStatic.busybox}/bin/busybox";
    vhost-device-vsock = "${vhost-device-vsock}/bin/vhost-device-vsock";
    virtiofsd = "${virtiofsd}/bin/virtiofsd";
  };
in
rustPlatform.buildRustPackage {
  pname = "shipote-machine";
  inherit ((lib.importTOML ../../Cargo.toml).workspace.package) version;

  src = import ../source.nix { inherit lib; };
  cargoLock.lockFile = ../../Cargo.lock;

  # The kernel and its modules are compressed.
  nativeBuildInputs = [
    xz
    zstd
  ];
  # The agent is the guest's first process, with no library beside it.
  buildInputs = [ (lib.getStatic glibc) ];

  buildPhase = ''
    runHook preBuild
    export CARGO_BUILD_JOBS=$NIX_BUILD_CORES
    cargo xtask image --from ${ingredients} --out "$out"
    runHook postBuild
  '';

  dontInstall = true;
  # A kernel, an archive and programs that are finished already.
  dontFixup = true;

  doCheck = false;
  doInstallCheck = true;
  installCheckPhase = ''
    runHook preInstallCheck
    for file in vmlinux initramfs.cpio vhost-device-vsock virtiofsd image.json; do
      test -s "$out/$file" || { echo "no $file" >&2; exit 1; }
    done
    runHook postInstallCheck
  '';

  meta = {
    description = "Guest kernel, first root and devices of Shipote's machines";
    license = with lib.licenses; [
      asl20
      mit
      gpl2Only
    ];
    platforms = [ "x86_64-linux" ];
  };
}
