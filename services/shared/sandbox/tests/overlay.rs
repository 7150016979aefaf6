//! Directories that are written to through an overlay: the host's files stay as they are, and what lies in a layer that
//! was kept is harmless, whatever it is.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::{Workspace, shell};
use shipote_sandbox::{Access, Enforcement, PathGrant, SandboxError, SandboxSpec};

/// A folder of an ordinary user's that a workspace may reach; on the disk, where layers can be kept.
fn folder() -> tempfile::TempDir {
    let place = ["/var/tmp", "/opt", "/srv"].iter().find(|p| tempfile::tempdir_in(p).is_ok()).unwrap();
    let folder = tempfile::tempdir_in(place).unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Of whom the files are: root's are nobody's in a workspace.
fn give(path: &Path) {
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(4242), Some(4242)).unwrap();
    }
}

/// A source with a few files, all of one ordinary user.
fn source(folder: &Path) -> PathBuf {
    let source = folder.join("source");
    fs::create_dir(&source).unwrap();
    for (name, text) in [("kept", "host"), ("changed", "host"), ("removed", "host")] {
        fs::write(source.join(name), text).unwrap();
        give(&source.join(name));
    }
    fs::create_dir(source.join("sub")).unwrap();
    fs::write(source.join("sub/deep"), "host").unwrap();
    give(&source.join("sub/deep"));
    give(&source.join("sub"));
    give(&source);
    source
}

fn overlay(source: &Path) -> PathGrant {
    PathGrant { path: source.to_owned(), target: Some("/source".into()), access: Access::Overlay }
}

fn spec(grants: Vec<PathGrant>) -> SandboxSpec {
    SandboxSpec { paths: grants, ..SandboxSpec::default() }
}

const CHANGE: &str =
    "cd /source && echo new > changed && rm removed && rm -r sub && mkdir sub && echo mine > sub/own && echo x > made";
const LOOK: &str = "cd /source && cat kept changed sub/own made && ls -A . sub | tr '\\n' ' '";

#[tokio::test]
async fn changes_stay_in_the_layer_and_go_with_the_workspace() {
    let host = folder();
    let source = source(host.path());
    let mut workspace = Workspace::with(&spec(vec![overlay(&source)])).await;
    let reported = workspace.keeper.mechanisms().iter().find(|m| m.name == "overlay").unwrap();
    assert_eq!(reported.state, Enforcement::Enforced, "{reported}");
    workspace.output(CHANGE).await;
    let seen = workspace.output(LOOK).await;
    assert!(seen.starts_with("hostnew\nmine\nx\n"), "{seen}");
    assert!(seen.contains("own") && !seen.contains("deep") && !seen.contains("removed"), "{seen}");
    // not a byte of the host's
    for name in ["kept", "changed", "removed", "sub/deep"] {
        assert_eq!(fs::read_to_string(source.join(name)).unwrap(), "host", "{name}");
    }
    assert!(!source.join("made").exists() && !source.join("sub/own").exists());
    // the layers are nowhere to be found
    assert_eq!(workspace.output("find / -xdev -name upper -o -xdev -name layers 2>/dev/null; true").await, "");
    drop(workspace);
    let mut again = Workspace::with(&spec(vec![overlay(&source)])).await;
    assert_eq!(again.output("cat /source/changed; ls /source | tr '\\n' ' '").await, "hostchanged kept removed sub");
}

#[tokio::test]
async fn a_layer_in_the_scratch_is_no_larger_than_that() {
    let host = folder();
    let source = source(host.path());
    let spec = SandboxSpec { scratch_bytes: 4 << 20, ..spec(vec![overlay(&source)]) };
    let mut workspace = Workspace::with(&spec).await;
    let full = workspace.run(&shell("head -c 16M /dev/zero > /source/big; stat -c %s /source/big")).await;
    assert!(full.stderr.contains("No space left"), "{full:?}");
    assert!(full.stdout.trim().parse::<u64>().unwrap() < 5 << 20);
    // /tmp is the same space
    let shared = workspace.run(&shell("head -c 2M /dev/zero > /tmp/more")).await;
    assert!(shared.stderr.contains("No space left"), "{shared:?}");
}

#[tokio::test]
async fn a_kept_layer_is_there_again_and_bears_whatever_was_put_into_it() {
    let host = folder();
    let source = source(host.path());
    let layers = host.path().join("layers");
    fs::create_dir(&layers).unwrap();
    fs::set_permissions(&layers, PermissionsExt::from_mode(0o700)).unwrap();
    let kept = || PathGrant { path: layers.clone(), target: None, access: Access::Layers };
    let mut workspace = Workspace::with(&spec(vec![overlay(&source), kept()])).await;
    workspace.output(CHANGE).await;
    drop(workspace);

    let mut again = Workspace::with(&spec(vec![overlay(&source), kept()])).await;
    let seen = again.output(LOOK).await;
    assert!(seen.starts_with("hostnew\nmine\nx\n") && !seen.contains("deep"), "{seen}");
    // what leads out, what claims to be a mark of the overlay's, what would be a device
    let hostile = "cd /source; ln -s /etc/shadow secret; ln -s / out; mknod zero c 1 5 2>/dev/null && echo device; \
                   mknod gone c 0 0 2>/dev/null && echo whiteout; \
                   setfattr -n user.overlay.opaque -v y kept 2>/dev/null; \
                   perl -e 'print \"marked\\n\" if syscall(188, \"kept\", \"user.overlay.redirect\", \"/etc\", 4, 0) == 0' ; \
                   cp /bin/true tool; chmod 4755 tool; ls -A . | wc -l";
    again.output(hostile).await;
    drop(again);

    let upper = layers.join("source/upper");
    assert!(upper.join("made").exists(), "{:?}", fs::read_dir(&layers).unwrap().collect::<Vec<_>>());
    // as root on the host could: a device, and the layer's own directory exchanged for a link
    if rustix::process::geteuid().is_root() {
        let made = std::process::Command::new("mknod").arg(upper.join("null")).args(["c", "1", "3"]).status().unwrap();
        assert!(made.success());
        fs::set_permissions(upper.join("null"), PermissionsExt::from_mode(0o666)).unwrap();
    }
    let mut third = Workspace::with(&spec(vec![overlay(&source), kept()])).await;
    let look = "cd /source; head -c 1 null 2>&1 >/dev/null | grep -c denied; cat secret out/etc/shadow 2>/dev/null; \
                cat kept; ./tool && echo ran; grep -c . /proc/self/status >/dev/null; grep CapEff /proc/self/status";
    let seen = third.output(look).await;
    let device = if rustix::process::geteuid().is_root() { "1\n" } else { "0\n" };
    assert_eq!(seen, format!("{device}hostran\nCapEff:\t0000000000000000"));
    drop(third);
    // nothing of it reached the source
    for name in ["kept", "changed", "removed", "sub/deep"] {
        assert_eq!(fs::read_to_string(source.join(name)).unwrap(), "host", "{name}");
    }
    assert_eq!(fs::read_dir(&source).unwrap().count(), 4);

    // a layer that is a link by now is not followed
    let elsewhere = host.path().join("elsewhere");
    fs::rename(layers.join("source"), &elsewhere).unwrap();
    symlink(&elsewhere, layers.join("source")).unwrap();
    let spawner = common::spawner();
    let refused = spawner.workspace(&spec(vec![overlay(&source), kept()])).await.unwrap_err();
    assert!(
        matches!(refused, SandboxError::Step { .. }) && refused.to_string().contains("overlay of /source"),
        "{refused}"
    );
}

#[tokio::test]
async fn what_belongs_to_root_is_no_more_readable_than_it_was() {
    let host = folder();
    let source = host.path().join("roots");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("secret"), "secret").unwrap();
    fs::set_permissions(source.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(source.join("open"), "open").unwrap();
    let root = fs::metadata(&source).unwrap().uid() == 0;
    let mut workspace = Workspace::with(&spec(vec![overlay(&source)])).await;
    let reported = workspace.keeper.mechanisms().iter().find(|m| m.name == "overlay").unwrap();
    // an ordinary user's is that user's own, whoever looks
    let (state, seen) = if root { (Enforcement::Degraded, "openx") } else { (Enforcement::Enforced, "secretopenx") };
    assert_eq!(reported.state, state, "{reported}");
    assert_eq!(workspace.output("cd /source; cat secret 2>/dev/null; cat open; echo x > new; cat new").await, seen);
    assert!(!source.join("new").exists());
}

#[tokio::test]
async fn only_a_directory_can_be_covered() {
    let host = folder();
    let file = host.path().join("file");
    fs::write(&file, "x").unwrap();
    let refused = common::spawner().workspace(&spec(vec![overlay(&file)])).await.unwrap_err();
    assert!(refused.to_string().contains(file.to_str().unwrap()), "{refused}");
}
