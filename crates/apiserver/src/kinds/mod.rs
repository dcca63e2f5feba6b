//! Kubernetes' own kinds: one table, and what is particular about each of them in the modules beside it.

mod addresses;
mod certificates;
pub(crate) mod components;
pub(crate) mod convert;
pub(crate) mod defaults;
mod difference;
mod ephemeral;
mod eviction;
pub(crate) mod fields;
mod hooks;
mod limits;
mod policies;
pub(crate) mod roles;
mod runtime_class;
pub(crate) mod schedule;
mod service_account;
pub(crate) mod strategy;
pub(crate) mod subresources;
pub(crate) mod types;
mod validate;

use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, authentication::v1 as authentication,
    authorization::v1 as authorization, autoscaling::v1 as autoscaling1, autoscaling::v2 as autoscaling2,
    batch::v1 as batch, certificates::v1 as signing, coordination::v1 as coordination, core::v1 as core,
    discovery::v1 as discovery, events::v1 as events, flowcontrol::v1 as flowcontrol, networking::v1 as networking,
    node::v1 as node, policy::v1 as policy, rbac::v1 as rbac, scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;
use schemars::{JsonSchema, SchemaGenerator};

/// One row of the table: what discovery says about a built-in kind, and where its type is described.
pub(crate) struct Kind {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) short_names: &'static [&'static str],
    pub(crate) categories: &'static [&'static str],
    pub(crate) namespaced: bool,
    pub(crate) status: bool,
    /// Whether `/scale` reads `spec.replicas` of this kind.
    pub(crate) scale: bool,
    /// The group whose storage (under the same plural) this kind shares, its own unless it is a second face.
    pub(crate) stored_group: &'static str,
    /// The version of `stored_group` in which objects are kept.
    pub(crate) stored_version: &'static str,
    /// Answered and not stored: a question, or what is no more than a request.
    pub(crate) review: bool,
    /// What can be done with it.
    pub(crate) verbs: &'static [&'static str],
    /// The type's name in Kubernetes' OpenAPI.
    pub(crate) name: fn() -> String,
    /// Adds the type and all it refers to to a generator, and returns its name there.
    pub(crate) describe: fn(&mut SchemaGenerator) -> String,
}

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

fn describe<T: JsonSchema>(to: &mut SchemaGenerator) -> String {
    let _ = to.subschema_for::<T>();
    T::schema_name().into_owned()
}

fn name<T: JsonSchema>() -> String {
    T::schema_name().into_owned()
}

const fn row<T: k8s_openapi::Resource + JsonSchema>(namespaced: bool) -> Kind {
    Kind {
        group: T::GROUP,
        version: T::VERSION,
        plural: T::URL_PATH_SEGMENT,
        kind: T::KIND,
        short_names: &[],
        categories: &[],
        namespaced,
        status: false,
        scale: false,
        stored_group: T::GROUP,
        stored_version: T::VERSION,
        review: false,
        verbs: &VERBS,
        name: name::<T>,
        describe: describe::<T>,
    }
}

const fn namespaced<T: k8s_openapi::Resource + JsonSchema>() -> Kind {
    row::<T>(true)
}

const fn cluster<T: k8s_openapi::Resource + JsonSchema>() -> Kind {
    row::<T>(false)
}

impl Kind {
    const fn short(self, short_names: &'static [&'static str]) -> Self {
        Self { short_names, ..self }
    }

    const fn all(self) -> Self {
        Self { categories: &["all"], ..self }
    }

    const fn extension(self) -> Self {
        Self { categories: &["api-extensions"], ..self }
    }

    const fn status(self) -> Self {
        Self { status: true, ..self }
    }

    const fn scale(self) -> Self {
        Self { scale: true, ..self }
    }

    const fn stored_as(self, stored_group: &'static str, stored_version: &'static str) -> Self {
        Self { stored_group, stored_version, ..self }
    }

    const fn review(self) -> Self {
        Self { review: true, verbs: &["create"], ..self }
    }

    const fn made_up(self) -> Self {
        Self { review: true, verbs: &["get", "list"], ..self }
    }

    pub(crate) fn stored_api_version(&self) -> String {
        crate::registry::api_version(self.stored_group, self.stored_version)
    }
}

/// What `serviceaccounts/token` takes and gives: no URL names it by itself.
pub(crate) static TOKEN_REQUEST: Kind = namespaced::<authentication::TokenRequest>();

/// Every built-in kind that is served. Within a group the first version is the preferred one.
pub(crate) static KINDS: &[Kind] = &[
    namespaced::<core::Binding>().review(),
    cluster::<core::ComponentStatus>().short(&["cs"]).made_up(),
    namespaced::<core::ConfigMap>().short(&["cm"]),
    namespaced::<core::Endpoints>().short(&["ep"]),
    namespaced::<core::Event>().short(&["ev"]),
    namespaced::<core::LimitRange>().short(&["limits"]),
    cluster::<core::Namespace>().short(&["ns"]).status(),
    cluster::<core::Node>().short(&["no"]).status(),
    namespaced::<core::PersistentVolumeClaim>().short(&["pvc"]).status(),
    cluster::<core::PersistentVolume>().short(&["pv"]).status(),
    namespaced::<core::Pod>().short(&["po"]).all().status(),
    namespaced::<core::PodTemplate>(),
    namespaced::<core::ReplicationController>().short(&["rc"]).all().status().scale(),
    namespaced::<core::ResourceQuota>().short(&["quota"]).status(),
    namespaced::<core::Secret>(),
    namespaced::<core::ServiceAccount>().short(&["sa"]),
    namespaced::<core::Service>().short(&["svc"]).all().status(),
    cluster::<apiregistration::APIService>().extension().status(),
    namespaced::<apps::ControllerRevision>(),
    namespaced::<apps::DaemonSet>().short(&["ds"]).all().status(),
    namespaced::<apps::Deployment>().short(&["deploy"]).all().status().scale(),
    namespaced::<apps::ReplicaSet>().short(&["rs"]).all().status().scale(),
    namespaced::<apps::StatefulSet>().short(&["sts"]).all().status().scale(),
    namespaced::<events::Event>().short(&["ev"]).stored_as("", "v1"),
    cluster::<authentication::SelfSubjectReview>().review(),
    cluster::<authentication::TokenReview>().review(),
    namespaced::<authorization::LocalSubjectAccessReview>().review(),
    cluster::<authorization::SelfSubjectAccessReview>().review(),
    cluster::<authorization::SelfSubjectRulesReview>().review(),
    cluster::<authorization::SubjectAccessReview>().review(),
    namespaced::<autoscaling2::HorizontalPodAutoscaler>().short(&["hpa"]).all().status(),
    namespaced::<autoscaling1::HorizontalPodAutoscaler>().short(&["hpa"]).all().status().stored_as("autoscaling", "v2"),
    namespaced::<batch::CronJob>().short(&["cj"]).all().status(),
    namespaced::<batch::Job>().all().status(),
    cluster::<signing::CertificateSigningRequest>().short(&["csr"]).status(),
    cluster::<networking::IPAddress>().short(&["ip"]),
    cluster::<networking::IngressClass>(),
    namespaced::<networking::Ingress>().short(&["ing"]).status(),
    namespaced::<networking::NetworkPolicy>().short(&["netpol"]),
    cluster::<networking::ServiceCIDR>().status(),
    namespaced::<policy::PodDisruptionBudget>().short(&["pdb"]).status(),
    cluster::<rbac::ClusterRoleBinding>(),
    cluster::<rbac::ClusterRole>(),
    namespaced::<rbac::RoleBinding>(),
    namespaced::<rbac::Role>(),
    cluster::<storage::CSIDriver>(),
    cluster::<storage::CSINode>(),
    cluster::<storage::StorageClass>().short(&["sc"]),
    cluster::<storage::VolumeAttachment>().status(),
    cluster::<admission::MutatingWebhookConfiguration>().extension(),
    cluster::<admission::ValidatingAdmissionPolicy>().extension().status(),
    cluster::<admission::ValidatingAdmissionPolicyBinding>().extension(),
    cluster::<admission::ValidatingWebhookConfiguration>().extension(),
    cluster::<apiextensions::CustomResourceDefinition>().short(&["crd", "crds"]).extension().status(),
    cluster::<scheduling::PriorityClass>().short(&["pc"]),
    namespaced::<coordination::Lease>(),
    cluster::<node::RuntimeClass>(),
    namespaced::<discovery::EndpointSlice>(),
    cluster::<flowcontrol::FlowSchema>().status(),
    cluster::<flowcontrol::PriorityLevelConfiguration>().status(),
];
