//! The columns and cells that `kubectl get` prints.

use jiff::Timestamp;
use serde_json::Value;

/// How the objects of one kind are printed.
#[derive(Clone, Debug)]
pub(crate) struct Printer;

impl Printer {
    /// A built-in kind's printer (`apps`, `Deployment`); NAME and AGE for one that has none of its own.
    pub(crate) fn builtin(_group: &str, _kind: &str) -> Self {
        todo!()
    }

    /// A custom resource's: `additionalPrinterColumns` of its version, `None` when it has none.
    pub(crate) fn custom(_columns: Option<&Value>) -> Self {
        todo!()
    }

    /// `columnDefinitions`.
    pub(crate) fn columns(&self) -> Value {
        todo!()
    }

    /// One row's `cells`.
    pub(crate) fn cells(&self, _object: &Value, _now: Timestamp) -> Value {
        todo!()
    }
}
