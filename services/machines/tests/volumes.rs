//! Folders of the host that a machine may not have.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::os::unix::fs::symlink;
use std::time::Duration;

use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use support::{image, machines};

#[tokio::test]
async fn a_folder_that_may_not_be_had_fails_the_start_with_the_reason() {
    let Some(image) = image() else { return };
    let mut machines = machines(image);
    let folder = machines.path().canonicalize().unwrap().join("folder");
    std::fs::create_dir(&folder).unwrap();
    symlink(&folder, folder.with_file_name("link")).unwrap();
    let root = folder.parent().unwrap().display();
    for (n, (volume, what)) in [
        ("/etc:/x".to_owned(), "no machine may have it"),
        (format!("{root}/none:/x"), "No such file"),
        (format!("{root}/link:/x"), "a link is on the way"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("refused-{n}");
        let spec = Spec { memory_mib: 128, volumes: vec![volume], ..Spec::default() };
        machines.handle.create(&name, spec).await.unwrap();
        machines.handle.start_machine(&name).await.unwrap();
        let shown = machines.until_again(State::Failed).await;
        assert!(shown.reason.contains(what), "{}", shown.reason);
        assert!(!machines.path().join("run").join(name).exists(), "it left its folder behind");
    }
    machines.handle.stop("refused-0", Duration::ZERO).await.unwrap_err();
}
