//! `org.shipote.Workspaces1.Saved`, at the root object: pipelines that are kept under a name.

use std::collections::{BTreeMap, HashMap};

use shipote_audit::{Door, Event};
use shipote_bus::spec::PipelineSpec;
use shipote_bus::workspaces::WorkspacesError;
use shipote_workspace_protocol::convert;
use zbus::OwnedVariant;
use zbus::message::Header;

use super::doors::{ACTION_RUN, Doors};
use super::parse::{check_size, known};
use crate::audited::{By, audited};
use crate::error::Error;
use crate::saved::{Kept, Saved};

type Options = HashMap<String, OwnedVariant>;

/// The root object.
pub(crate) struct SavedPipelines {
    pub(crate) doors: Doors,
    pub(crate) saved: Saved,
}

#[zbus::interface(name = "org.shipote.Workspaces1.Saved")]
impl SavedPipelines {
    /// Keeps a pipeline (TOML) under a name, in place of one that is called so; another user's takes the right to manage.
    /// `${KEY}` stays as it is until it is run. No options yet.
    async fn save(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        spec: &str,
        options: Options,
    ) -> Result<(), WorkspacesError> {
        let (by, owner) = self.may_change(&header, name).await?;
        known(&options, &[])?;
        check_size(spec)?;
        let invalid = |e: &dyn std::fmt::Display| Error::InvalidSpec(format!("save pipeline: {e}"));
        // whether it can be run is only known with its variables
        let _: PipelineSpec = shipote_config::parse(spec, "pipeline").map_err(|e| invalid(&e))?;
        let saving = self.saved.save(name, by.uid, owner, Kept::Text(spec.to_owned()));
        Ok(audited(&self.doors.audit, Event::PipelineSave, name, by, saving).await?)
    }

    /// Names of the saved pipelines, sorted; those of all users and of both doors. No options yet.
    #[zbus(out_args("names"))]
    async fn list(&self, options: Options) -> Result<Vec<String>, WorkspacesError> {
        known(&options, &[])?;
        Ok(self.saved.names().await)
    }

    /// A saved pipeline as TOML, for `RunPipeline`. No options yet.
    #[zbus(out_args("spec"))]
    async fn get(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        options: Options,
    ) -> Result<String, WorkspacesError> {
        self.doors.authority.check(&header, ACTION_RUN).await.map_err(Error::from)?;
        known(&options, &[])?;
        let spec = match self.saved.get(name).await? {
            Kept::Text(text) => return Ok(text),
            Kept::Spec(spec) => spec,
        };
        let mut made = convert::pipeline_spec(&spec, &BTreeMap::new())
            .map_err(|e| Error::InvalidSpec(format!("saved pipeline {name:?}: {e}")))?;
        made.workspace = Some(spec.workspace.0.to_string());
        let text = toml::to_string(&made);
        Ok(text.map_err(|e| Error::Failed(format!("write saved pipeline {name:?} as TOML: {e}")))?)
    }

    /// Forgets a saved pipeline; another user's takes the right to manage. Whether there was one. No options yet.
    #[zbus(out_args("existed"))]
    async fn drop(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        options: Options,
    ) -> Result<bool, WorkspacesError> {
        let (by, owner) = self.may_change(&header, name).await?;
        known(&options, &[])?;
        let removing = self.saved.remove(name, by.uid, owner);
        Ok(audited(&self.doors.audit, Event::PipelineDrop, name, by, removing).await?)
    }
}

impl SavedPipelines {
    /// Who changes the pipeline of this name, if they may, and whose it is.
    async fn may_change(&self, header: &Header<'_>, name: &str) -> Result<(By, Option<u32>), Error> {
        let owner = self.saved.owner(name).await;
        let caller = self.doors.may_use(header, owner).await?;
        Ok((By { uid: caller.uid, door: Door::Bus }, owner))
    }
}
