//! Doing what a plan says.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use kube::{Resource, ResourceExt};
use serde_json::{Map, Value, json};

use super::plan::{Child, Note, Said, Seed, settle};
use super::{Error, Keeper, ObjectName, Office, Plan, Subject};

impl<P: Keeper> Office<P> {
    /// Puts our finalizer on the object, where it is not.
    pub(super) async fn hold(&self, it: &P::Kind) -> Result<(), Error> {
        match P::FINALIZER {
            Some(finalizer)
                if it.meta().deletion_timestamp.is_none() && !it.finalizers().iter().any(|held| held == finalizer) =>
            {
                self.write_finalizer(it, Some(finalizer)).await
            }
            _ => Ok(()),
        }
    }

    /// Does it, in this order, on an object that is held: children, effects, pruning, status, events, release of the finalizer.
    ///
    /// Every step is idempotent, so that a turn that ended in the middle is simply taken again.
    pub(super) async fn act(
        &self,
        it: &P::Kind,
        plan: Plan<P::Effect>,
        now: Timestamp,
    ) -> Result<Option<Duration>, Error> {
        let deleting = it.meta().deletion_timestamp.is_some();
        for child in &plan.seed {
            self.seed(child).await?;
        }
        for effect in &plan.effects {
            self.keeper.effect(effect).await?;
        }
        for child in &plan.prune {
            self.prune(child).await?;
        }
        let releases = deleting && plan.release_finalizer && P::FINALIZER.is_some();
        if let Some(status) = plan.status.filter(|_| !releases) {
            let told = self.write_status(it, status, &plan.conditions, now);
            let (wrote, ()) = futures::join!(told, self.tell(it, &plan.notes, now));
            wrote?;
        } else {
            self.tell(it, &plan.notes, now).await;
        }
        if releases {
            self.write_finalizer(it, None).await?;
            return Ok(None);
        }
        Ok(plan.wake_in)
    }

    /// Our finalizer and no other field of the object itself. With the uid in it, the API server refuses to make the
    /// object anew when it has gone meanwhile.
    async fn write_finalizer(&self, it: &P::Kind, finalizer: Option<&str>) -> Result<(), Error> {
        let mut body = self.head(it);
        if let (Some(finalizer), Some(Value::Object(metadata))) = (finalizer, body.get_mut("metadata")) {
            metadata.insert("finalizers".into(), json!([finalizer]));
        }
        let name = ObjectName::of(it);
        let what = if finalizer.is_some() { "hold" } else { "release" };
        let written = self.apply(it, None, &body, || format!("{what} {} {name}", P::Kind::kind(&()))).await;
        match written {
            Ok(written) if finalizer.is_some() => {
                self.kept.observe(written);
                Ok(())
            }
            Ok(_) => Ok(()),
            // Gone already: as it shall be.
            Err(error) if finalizer.is_none() && error.class() == kit::Class::Gone => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn write_status(&self, it: &P::Kind, status: Value, said: &[Said], now: Timestamp) -> Result<(), Error> {
        let what = || format!("{} {}", P::Kind::kind(&()), ObjectName::of(it));
        // The finalizer's write may have come back since the look.
        let newer = self.kept.get(&ObjectName::of(it)).filter(|newer| newer.uid() == it.uid());
        let live = serde_json::to_value(newer.as_deref().unwrap_or(it))
            .map_err(|source| Error::Json { what: what(), source })?;
        let live = live.get("status").cloned().unwrap_or(Value::Null);
        let before: Vec<Condition> = live
            .get("conditions")
            .and_then(|conditions| serde_json::from_value(conditions.clone()).ok())
            .unwrap_or_default();
        let mut status = match status {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        let conditions = settle(&before, said, it.meta().generation, now);
        status.insert("conditions".into(), json!(conditions));
        if unchanged(&live, &status, it, &self.manager) {
            return Ok(());
        }
        let mut body = self.head(it);
        body.insert("status".into(), status.into());
        let written = self.apply(it, Some("status"), &body, || format!("write the status of {}", what())).await;
        match written {
            Ok(written) => {
                self.kept.observe(written);
                Ok(())
            }
            // Nobody is left to read it.
            Err(error) if error.class() == kit::Class::Gone => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn head(&self, it: &P::Kind) -> Map<String, Value> {
        let mut metadata = Map::new();
        metadata.insert("name".into(), it.name_any().into());
        if let Some(namespace) = it.namespace() {
            metadata.insert("namespace".into(), namespace.into());
        }
        if let Some(uid) = it.uid() {
            metadata.insert("uid".into(), uid.into());
        }
        let mut head = Map::new();
        head.insert("apiVersion".into(), P::Kind::api_version(&()).into());
        head.insert("kind".into(), P::Kind::kind(&()).into());
        head.insert("metadata".into(), metadata.into());
        head
    }

    async fn apply(
        &self,
        it: &P::Kind,
        subresource: Option<&str>,
        body: &Map<String, Value>,
        doing: impl Fn() -> String,
    ) -> Result<P::Kind, Error> {
        let request = Request::new(P::Kind::url_path(&(), it.namespace().as_deref()));
        let params = PatchParams::apply(&self.manager).force();
        let (name, patch) = (it.name_any(), Patch::Apply(body));
        let request = match subresource {
            Some(subresource) => request.patch_subresource(subresource, &name, &params, &patch),
            None => request.patch(&name, &params, &patch),
        };
        let request = request.map_err(|error| Error::api(doing(), kube::Error::BuildRequest(error)))?;
        self.client.request(request).await.map_err(|error| Error::api(doing(), error))
    }

    /// Makes a child where nothing of that name is; what is there stays as it is.
    async fn seed(&self, child: &Seed) -> Result<(), Error> {
        let doing = || format!("make {} {}/{}", child.plural, child.namespace, child.name);
        let path = collection(child.api_version, child.plural, &child.namespace);
        let params = PostParams { field_manager: Some(self.manager.clone()), ..PostParams::default() };
        let body = serde_json::to_vec(&child.object).map_err(|source| Error::Json { what: doing(), source })?;
        let request = Request::new(path).create(&params, body);
        let request = request.map_err(|error| Error::api(doing(), kube::Error::BuildRequest(error)))?;
        match self.client.request::<Value>(request).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(Error::api(doing(), error)),
        }
    }

    /// Deletes a child if it is still the one that was seen.
    async fn prune(&self, child: &Child) -> Result<(), Error> {
        let doing = || format!("delete {} {}/{}", child.plural, child.namespace, child.name);
        let path = collection(child.api_version, child.plural, &child.namespace);
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(child.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let request = Request::new(path).delete(&child.name, &params);
        let request = request.map_err(|error| Error::api(doing(), kube::Error::BuildRequest(error)))?;
        match self.client.request::<Value>(request).await {
            Ok(_) => Ok(()),
            // Gone, or another one by now.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(error) => Err(Error::api(doing(), error)),
        }
    }

    /// Events are for people: one that cannot be written is logged and stops nothing.
    async fn tell(&self, it: &P::Kind, notes: &[Note], now: Timestamp) {
        let subject = Subject::of::<P::Kind>(it.meta());
        for note in notes {
            if let Err(error) = self.recorder.tell(&subject, note, now).await {
                tracing::debug!(name = %subject.name, error = %kit::chain(&error), "an event is lost");
            }
        }
    }
}

/// Whether applying `status` would change nothing: every field of it is there, and no field that we own is there
/// without being in it. What others wrote beside is theirs.
fn unchanged<K: Resource>(live: &Value, status: &Map<String, Value>, it: &K, manager: &str) -> bool {
    let Value::Object(live) = live else { return status.is_empty() };
    let entry = it.managed_fields().iter().find(|entry| {
        entry.manager.as_deref() == Some(manager)
            && entry.subresource.as_deref() == Some("status")
            && entry.operation.as_deref() == Some("Apply")
    });
    let ours = entry.and_then(|entry| entry.fields_v1.as_ref()).and_then(|fields| fields.0.get("f:status"));
    let is_ours = |field: &String| ours.is_none_or(|ours| ours.get(format!("f:{field}")).is_some());
    status.iter().all(|(field, value)| live.get(field) == Some(value))
        && live.keys().all(|field| status.contains_key(field) || !is_ours(field))
}

fn collection(api_version: &str, plural: &str, namespace: &str) -> String {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    if namespace.is_empty() {
        format!("/{root}/{api_version}/{plural}")
    } else {
        format!("/{root}/{api_version}/namespaces/{namespace}/{plural}")
    }
}
