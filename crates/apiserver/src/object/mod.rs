//! What an object is: pure functions on `serde_json::Value`, with Kubernetes' own rules and words. No I/O, no clock.
//!
//! | module | what it knows |
//! |---|---|
//! | `schema` | structural schemas: compile, check, prune, default, validate |
//! | `builtin` | the schemas of Kubernetes' own kinds, loaded one definition at a time |
//! | `apply` | server-side apply and `managedFields` |
//! | `patch` | JSON patch, merge patch, strategic merge patch |
//! | `protobuf` | request bodies in Kubernetes' protobuf |
//! | `table` | the columns and cells that `kubectl get` prints |
//! | `selector`, `meta`, `quantity` | selectors, `ObjectMeta`, quantities |
//! | `field`, `status` | field errors and `metav1.Status` |

pub(crate) mod apply;
pub(crate) mod builtin;
pub(crate) mod field;
pub(crate) mod meta;
pub(crate) mod patch;
pub(crate) mod protobuf;
pub(crate) mod quantity;
pub(crate) mod schema;
pub(crate) mod selector;
pub(crate) mod status;
pub(crate) mod table;

pub(crate) use field::{Errors, FieldError};
pub(crate) use schema::Schema;
