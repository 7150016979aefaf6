//! What workspaces have in common, because it is made once or made ahead, and that it joins none of them to another.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Workspace, perl, shell, spawner};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::UnshareFlags;
use shipote_sandbox::{Keeper, Network, SandboxSpec, Spawner, Stdio};

/// What a script says in a workspace of that spec, made by this spawner, which lives on.
async fn said(spawner: &Spawner, spec: &SandboxSpec, script: &str) -> (Keeper, String) {
    let (keeper, mut events) = spawner.workspace(spec).await.unwrap();
    let (read, write) = common::pipe();
    keeper.spawn(1, &shell(script), Stdio { stdout: Some(write), ..Stdio::default() }).await.unwrap();
    while !matches!(events.next().await.unwrap(), shipote_sandbox::Event::Exited { .. }) {}
    (keeper, std::io::read_to_string(read).unwrap().trim_end().to_owned())
}

fn named(hostname: &str) -> SandboxSpec {
    SandboxSpec { hostname: hostname.to_owned(), ..SandboxSpec::default() }
}

#[tokio::test]
async fn plain_workspaces_share_a_root_that_none_can_write_to() {
    let spawner = spawner();
    let root = "stat -c %d / /etc/passwd; stat -c %d /tmp /work /proc | sort -u | wc -l";
    let (one, first) = said(&spawner, &named("one"), root).await;
    let (_two, second) = said(&spawner, &named("two"), root).await;
    assert_eq!(first, second, "each has built a root of its own");
    let try_all = "for f in /x /etc/x /etc/passwd /etc/hosts /etc/hostname /dev/x /usr/x; do \
                   (echo x > $f) 2>/dev/null && echo wrote $f; done; rm -f /etc/hosts /etc/passwd 2>/dev/null; \
                   mkdir /y 2>/dev/null && echo made; chmod 777 / /etc 2>/dev/null && echo changed; true";
    let mut writer = Workspace::with(&named("three")).await;
    assert_eq!(writer.output(try_all).await, "");
    drop(one);
    assert_eq!(said(&spawner, &named("four"), root).await.1, second);
}

#[tokio::test]
async fn workspaces_that_share_a_root_have_their_own_names_and_scratch() {
    let spawner = spawner();
    let script = "cat /etc/hostname; hostname; grep -c \"localhost $(hostname)$\" /etc/hosts; ls -A /tmp /work /dev/shm; \
                  echo secret | tee /tmp/s /work/s > /dev/shm/s";
    let mut living = Vec::new();
    for name in ["one", "two", "one"] {
        let (keeper, said) = said(&spawner, &named(name), script).await;
        assert_eq!(said, format!("{name}\n{name}\n2\n/dev/shm:\n\n/tmp:\n\n/work:"));
        living.push(keeper);
    }
}

#[tokio::test]
async fn what_lies_beneath_proc_tells_of_no_process() {
    // The root that is shared has a /proc of its own, which each workspace covers and which is of no process at all.
    let mut workspace = Workspace::new().await;
    let mounts = workspace.output("grep -c ' /proc proc ' /proc/self/mounts; grep -c ' / ' /proc/self/mounts").await;
    assert_eq!(mounts, "2\n1");
    for uncover in ["umount /proc", "umount -l /proc", "unshare -rm umount /proc", "unshare -m umount -l /proc"] {
        assert_ne!(workspace.run(&shell(&format!("{uncover} 2>/dev/null"))).await.code, Some(0), "{uncover}");
    }
    assert_eq!(workspace.output("test -d /proc/self && test -d /proc/1 && echo own").await, "own");
}

#[tokio::test]
async fn no_two_workspaces_have_had_the_same_network() {
    let spawner = spawner();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    let mut seen = vec![own];
    let kinds = [Network::None, Network::None, Network::Loopback, Network::Loopback, Network::None, Network::Outbound];
    let mut living = Vec::new();
    for network in kinds.into_iter().chain(kinds) {
        let spec = SandboxSpec { network, ..SandboxSpec::default() };
        let (keeper, said) =
            said(&spawner, &spec, "readlink /proc/self/ns/net; tail -n +3 /proc/net/dev | wc -l").await;
        let (net, _) = said.split_once('\n').unwrap();
        assert!(!seen.iter().any(|known| known == net), "{network:?} is in {net} as one before it");
        seen.push(net.to_owned());
        // The number of one that has ended may come again.
        living.push(keeper);
    }
}

#[tokio::test]
async fn a_network_made_ahead_is_what_its_spec_wants() {
    let spawner = spawner();
    let connect = "use Socket; socket(L,PF_INET,SOCK_STREAM,0); bind(L,sockaddr_in(0,INADDR_LOOPBACK)) or die 'down'; \
                   listen(L,1); socket(S,PF_INET,SOCK_STREAM,0); connect(S,getsockname(L)) or die 'down'; print 'up'";
    for network in [Network::None, Network::Loopback, Network::Loopback, Network::None, Network::Loopback] {
        let spec = SandboxSpec { network, ..SandboxSpec::default() };
        let (keeper, mut events) = spawner.workspace(&spec).await.unwrap();
        let (read, write) = common::pipe();
        keeper.spawn(1, &perl(connect), Stdio { stdout: Some(write), ..Stdio::default() }).await.unwrap();
        while !matches!(events.next().await.unwrap(), shipote_sandbox::Event::Exited { .. }) {}
        let up = std::io::read_to_string(read).unwrap() == "up";
        assert_eq!(up, network == Network::Loopback, "{network:?}");
    }
}

/// The calling thread gets a mount namespace of its own, in which a test may mount.
fn own_mounts() {
    // SAFETY: concerns this thread alone, on which the whole test runs.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
}

#[tokio::test]
async fn a_mount_of_the_host_shows_in_the_next_workspace() {
    if !rustix::process::geteuid().is_root() {
        // Nothing can be mounted where such a spawner would see it.
        return;
    }
    own_mounts();
    let spawner = spawner();
    let place = Path::new("/usr/share");
    let look = "test -e /usr/share/new && echo new || echo old";
    assert_eq!(said(&spawner, &named("before"), look).await.1, "old");
    mount(c"tmpfs", place, c"tmpfs", MountFlags::empty(), None).unwrap();
    std::fs::write(place.join("new"), "").unwrap();
    assert_eq!(said(&spawner, &named("mounted"), look).await.1, "new");
    unmount(place, UnmountFlags::DETACH).unwrap();
    assert_eq!(said(&spawner, &named("unmounted"), look).await.1, "old");
}

#[tokio::test]
async fn a_file_that_was_replaced_shows_in_the_next_workspace() {
    if !rustix::process::geteuid().is_root() {
        // As above, of files of the system.
        return;
    }
    own_mounts();
    // The host's /etc, with another cache of libraries than it has.
    let etc = tempfile::tempdir().unwrap();
    std::fs::write(etc.path().join("ld.so.cache"), "one").unwrap();
    rustix::mount::mount_bind(etc.path(), "/etc").unwrap();
    let spawner = spawner();
    let look = "cat /etc/ld.so.cache";
    assert_eq!(said(&spawner, &named("before"), look).await.1, "one");
    std::fs::write("/etc/next", "two").unwrap();
    std::fs::rename("/etc/next", "/etc/ld.so.cache").unwrap();
    assert_eq!(said(&spawner, &named("after"), look).await.1, "two");
    std::fs::remove_file("/etc/ld.so.cache").unwrap();
    assert_eq!(said(&spawner, &named("gone"), "ls /etc/ld.so.cache 2>/dev/null").await.1, "");
}
