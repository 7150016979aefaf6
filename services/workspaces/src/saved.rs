//! Pipelines that are kept under a name, in one file.
//!
//! The file is replaced as a whole and never written in place: a new one is written beside it and forced to the
//! disk, the present one becomes the previous one, the new one takes its name, and the folder is forced to the disk.
//! Whatever cuts that short, a whole file is left; a file that is torn all the same (a disk that lied) is recovered
//! from the previous one, with a warning.
//!
//! Each is its user's: others may run it, and neither replace nor drop it, or they would choose what that user runs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use shipote_bus::spec::check_label;
use shipote_state::{Format, Refused};
use shipote_workspace_protocol::spec::PipelineSpec;
use tokio::sync::Mutex;

use crate::error::Error;
use crate::state::manages;

/// Versions of the file.
const FORMAT: Format = Format { key: "version", first: 1, steps: &[owned] };
const NAME: &str = "pipelines.json";
/// Most bytes of the file: so many small pipelines or a few large ones.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// From version 1: pipelines that are nobody's were saved by whoever the service was for.
fn owned(fields: &mut Map<String, Value>) -> Result<(), String> {
    let uid = rustix::process::geteuid().as_raw();
    let Some(Value::Object(pipelines)) = fields.get_mut("pipelines") else { return Ok(()) };
    for pipeline in pipelines.values_mut() {
        *pipeline = json!({"uid": uid, "what": {"spec": pipeline.take()}});
    }
    Ok(())
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    pipelines: BTreeMap<String, Pipeline>,
}

/// A kept pipeline.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pipeline {
    uid: u32,
    what: Kept,
}

/// A pipeline in the form in which it came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kept {
    /// By the socket.
    Spec(PipelineSpec),
    /// By the bus: TOML.
    Text(String),
}

/// The kept pipelines. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    path: PathBuf,
    pipelines: Arc<Mutex<BTreeMap<String, Pipeline>>>,
}

impl Saved {
    /// Reads what is kept in the folder `state`.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let path = state.join(NAME);
        let document = match read(&path) {
            Ok(document) => document,
            Err(error) if !error.is_damage() => {
                return Err(io::Error::other(format!("read {}: {error}", path.display())));
            }
            Err(error) => {
                let previous = previous(&path);
                let document = read(&previous).map_err(|_| {
                    io::Error::other(format!("read {}: {error}; move it away to begin anew", path.display()))
                })?;
                tracing::warn!("{}: {error}; recovered from {}", path.display(), previous.display());
                document
            }
        };
        Ok(Saved { path, pipelines: Arc::new(Mutex::new(document.pipelines)) })
    }

    /// Sorted.
    pub(crate) async fn names(&self) -> Vec<String> {
        self.pipelines.lock().await.keys().cloned().collect()
    }

    pub(crate) async fn get(&self, name: &str) -> Result<Kept, Error> {
        let found = self.pipelines.lock().await.get(name).map(|pipeline| pipeline.what.clone());
        found.ok_or_else(|| Error::NoSuchSavedPipeline(name.to_owned()))
    }

    /// Whose a pipeline is.
    pub(crate) async fn owner(&self, name: &str) -> Option<u32> {
        self.pipelines.lock().await.get(name).map(|pipeline| pipeline.uid)
    }

    /// Refuses what is another user's, but for that one's which `uid` was found to have the right to.
    fn check(pipelines: &BTreeMap<String, Pipeline>, name: &str, uid: u32, granted: Option<u32>) -> Result<(), Error> {
        match pipelines.get(name) {
            Some(pipeline) if pipeline.uid != uid && Some(pipeline.uid) != granted && !manages(uid) => {
                Err(Error::NotAuthorized(format!(
                    "the saved pipeline {name:?} is another user's (uid {}); choose another name",
                    pipeline.uid
                )))
            }
            _ => Ok(()),
        }
    }

    /// Keeps a pipeline; it is on the disk when this returns.
    pub(crate) async fn save(&self, name: &str, uid: u32, granted: Option<u32>, what: Kept) -> Result<(), Error> {
        check_label("name", name).map_err(|e| Error::InvalidArgument(format!("save pipeline: {e}")))?;
        let pipeline = Pipeline { uid, what };
        let insert = |pipelines: &mut BTreeMap<String, Pipeline>| {
            Self::check(pipelines, name, uid, granted)?;
            pipelines.insert(name.to_owned(), pipeline);
            Ok(())
        };
        self.change(insert).await
    }

    /// Forgets a pipeline; says whether there was one.
    pub(crate) async fn remove(&self, name: &str, uid: u32, granted: Option<u32>) -> Result<bool, Error> {
        if !self.pipelines.lock().await.contains_key(name) {
            return Ok(false);
        }
        let remove = |pipelines: &mut BTreeMap<String, Pipeline>| {
            Self::check(pipelines, name, uid, granted)?;
            Ok(pipelines.remove(name).is_some())
        };
        self.change(remove).await
    }

    /// Changes a copy, writes that, and only then takes it for the truth.
    async fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Pipeline>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let failed = |error: io::Error| Error::Failed(format!("write {}: {error}", self.path.display()));
        let mut pipelines = self.pipelines.lock().await;
        let mut changed = pipelines.clone();
        let result = change(&mut changed)?;
        let document = Document { pipelines: changed };
        let bytes = FORMAT.write(&document).map_err(|e| failed(e.into()))?.to_string().into_bytes();
        if bytes.len() > BYTES_MAX {
            return Err(Error::LimitReached(format!(
                "save pipeline: all of them would have {} bytes; at most {BYTES_MAX} are kept, drop one first",
                bytes.len()
            )));
        }
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || write(&path, &bytes)).await;
        written.map_err(io::Error::other).and_then(|result| result).map_err(failed)?;
        *pipelines = document.pipelines;
        Ok(result)
    }
}

fn previous(path: &Path) -> PathBuf {
    path.with_extension("json.previous")
}

/// The document; an empty one where there is no file.
fn read(path: &Path) -> Result<Document, Refused> {
    match std::fs::read(path) {
        Ok(bytes) => FORMAT.parse(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Document::default()),
        Err(error) => Err(error.into()),
    }
}

/// The present file becomes the previous one, then takes the new content.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let previous = previous(path);
    for result in [std::fs::remove_file(&previous), std::fs::hard_link(path, &previous)] {
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    shipote_state::replace(path, bytes)
}

#[cfg(test)]
mod tests {
    use shipote_workspace_protocol::spec::WorkspaceId;

    use super::*;

    fn spec(label: &str) -> Kept {
        Kept::Spec(seed(label))
    }

    fn seed(label: &str) -> PipelineSpec {
        PipelineSpec {
            label: label.to_owned(),
            workspace: WorkspaceId(ulid::Ulid::default()),
            nodes: vec![],
            edges: vec![],
            discern: Default::default(),
            restart_on_failure: false,
            restart_backoff_ms: 200,
            restart_max_backoff_ms: 30_000,
            restart_max: 0,
        }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn what_is_saved_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        run(async {
            let saved = Saved::open(folder.path()).unwrap();
            saved.save("b", 7, None, spec("1")).await.unwrap();
            saved.save("a", 7, None, spec("2")).await.unwrap();
            saved.save("b", 7, None, spec("3")).await.unwrap();
            assert!(saved.save("a/b", 7, None, spec("4")).await.is_err());
            let saved = Saved::open(folder.path()).unwrap();
            assert_eq!(saved.names().await, ["a", "b"]);
            assert_eq!(saved.get("b").await.unwrap(), spec("3"));
            assert!(saved.get("c").await.is_err());
            assert!(saved.remove("a", 7, None).await.unwrap() && !saved.remove("a", 7, None).await.unwrap());
            assert_eq!(Saved::open(folder.path()).unwrap().names().await, ["b"]);
        });
    }

    #[test]
    fn what_another_user_saved_is_neither_replaced_nor_dropped() {
        let folder = tempfile::tempdir().unwrap();
        run(async {
            let (one, other) = (rustix::process::geteuid().as_raw() + 71, rustix::process::geteuid().as_raw() + 72);
            let saved = Saved::open(folder.path()).unwrap();
            let text = Kept::Text("label = \"p\"".to_owned());
            saved.save("a", one, None, text.clone()).await.unwrap();
            let refused = saved.save("a", other, None, spec("2")).await.unwrap_err();
            assert!(matches!(refused, Error::NotAuthorized(_)), "{refused}");
            assert!(saved.remove("a", other, None).await.is_err());
            assert_eq!(Saved::open(folder.path()).unwrap().get("a").await.unwrap(), text);
            saved.save("a", other, Some(one), text.clone()).await.unwrap();
            saved.save("a", 0, None, spec("3")).await.unwrap();
            saved.save("a", one, None, spec("4")).await.unwrap_err();
        });
    }

    #[test]
    fn the_first_versions_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        run(async {
            let old = json!({"version": 1, "pipelines": {"a": seed("1")}});
            std::fs::write(folder.path().join(NAME), old.to_string()).unwrap();
            let saved = Saved::open(folder.path()).unwrap();
            assert_eq!(saved.get("a").await.unwrap(), spec("1"));
            assert!(saved.remove("a", rustix::process::geteuid().as_raw(), None).await.unwrap());
        });
    }

    #[test]
    fn a_torn_file_is_recovered_from_the_previous_one() {
        let folder = tempfile::tempdir().unwrap();
        run(async {
            let saved = Saved::open(folder.path()).unwrap();
            saved.save("a", 7, None, spec("1")).await.unwrap();
            saved.save("b", 7, None, spec("2")).await.unwrap();
            let file = folder.path().join(NAME);
            let bytes = std::fs::read(&file).unwrap();
            std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
            let saved = Saved::open(folder.path()).unwrap();
            assert_eq!(saved.names().await, ["a"]);
            // and with nothing to recover from it is said, not hidden
            std::fs::write(previous(&file), b"{").unwrap();
            assert!(Saved::open(folder.path()).is_err());
        });
    }
    #[test]
    fn a_later_releases_file_is_refused_whatever_lies_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        run(async {
            let saved = Saved::open(folder.path()).unwrap();
            saved.save("a", 7, None, spec("1")).await.unwrap();
            saved.save("b", 7, None, spec("2")).await.unwrap();
            let file = folder.path().join(NAME);
            assert!(previous(&file).exists());
            std::fs::write(&file, r#"{"version": 3, "pipelines": {}}"#).unwrap();
            let error = Saved::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains("version 3") && error.contains("install the release that wrote it"), "{error}");
        });
    }
}
