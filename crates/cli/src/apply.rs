use anyhow::{Context, Result, bail};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::Scope;

/// An object that was applied: kind, namespace ("" when it has none), name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

/// Applies every document of a manifest, in its order, by server-side apply, as `kubectl apply --server-side` does.
///
/// # Errors
/// At the first document that is no object, of a kind that the server does not know, or refused by it: with the
/// document's place in the file and the server's words.
pub async fn apply(client: &kube::Client, manifest: &str, manager: &str) -> Result<Vec<Applied>> {
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(manifest).context("read the manifest")?;
    let mut applied = Vec::new();
    for (at, document) in documents.into_iter().filter(|it| !it.is_null()).enumerate() {
        let place = || format!("document {} of the manifest", at + 1);
        let object: DynamicObject = serde_json::from_value(document).with_context(place)?;
        let Some(types) = &object.types else { bail!("{} has no apiVersion and kind", place()) };
        let kind = GroupVersionKind::try_from(types).with_context(place)?;
        let Some(name) = object.metadata.name.clone() else { bail!("{} has no metadata.name", place()) };
        let (resource, capabilities) =
            kube::discovery::pinned_kind(client, &kind).await.with_context(|| format!("look up {}", kind.kind))?;
        let api: Api<DynamicObject> = match (&capabilities.scope, &object.metadata.namespace) {
            (Scope::Cluster, _) => Api::all_with(client.clone(), &resource),
            (Scope::Namespaced, Some(ns)) => Api::namespaced_with(client.clone(), ns, &resource),
            (Scope::Namespaced, None) => Api::default_namespaced_with(client.clone(), &resource),
        };
        let made = api
            .patch(&name, &PatchParams::apply(manager), &Patch::Apply(&object))
            .await
            .with_context(|| format!("apply {} {name}", kind.kind))?;
        applied.push(Applied { kind: kind.kind, namespace: made.metadata.namespace.unwrap_or_default(), name });
    }
    Ok(applied)
}
