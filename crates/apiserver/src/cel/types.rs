//! CEL's types, and which can stand for which: cel-go's `checker/types.go`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::decl::Decl;

#[derive(Clone, Debug)]
pub(crate) enum Type {
    Error,
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    Optional(Arc<Type>),
    /// The type of types.
    Kind(Option<Arc<Type>>),
    Object(Arc<Decl>),
    /// A type of one of Kubernetes' libraries.
    Library(&'static str),
    /// A type parameter, or one that is not known yet.
    Param(u32),
}

pub(super) const URL: Type = Type::Library("kubernetes.URL");
pub(super) const QUANTITY: Type = Type::Library("kubernetes.Quantity");
pub(super) const SEMVER: Type = Type::Library("kubernetes.Semver");
pub(super) const FORMAT: Type = Type::Library("kubernetes.NamedFormat");
pub(crate) const AUTHORIZER: Type = Type::Library("kubernetes.authorization.Authorizer");
pub(super) const PATH_CHECK: Type = Type::Library("kubernetes.authorization.PathCheck");
pub(super) const GROUP_CHECK: Type = Type::Library("kubernetes.authorization.GroupCheck");
pub(crate) const RESOURCE_CHECK: Type = Type::Library("kubernetes.authorization.ResourceCheck");
pub(super) const DECISION: Type = Type::Library("kubernetes.authorization.Decision");
pub(super) const IP: Type = Type::Library("net.IP");
pub(super) const CIDR: Type = Type::Library("net.CIDR");

impl Type {
    pub(super) fn list(item: Self) -> Self {
        Self::List(Arc::new(item))
    }

    pub(super) fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new((key, value)))
    }

    pub(super) fn optional(inner: Self) -> Self {
        Self::Optional(Arc::new(inner))
    }

    pub(super) fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn)
    }

    pub(super) fn is_loose(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    /// The same type, parameter for parameter.
    pub(crate) fn is_exactly(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) | (Self::Optional(a), Self::Optional(b)) => a.is_exactly(b),
            (Self::Map(a), Self::Map(b)) => a.0.is_exactly(&b.0) && a.1.is_exactly(&b.1),
            (Self::Kind(a), Self::Kind(b)) => match (a, b) {
                (Some(a), Some(b)) => a.is_exactly(b),
                (None, None) => true,
                _ => false,
            },
            (Self::Object(a), Self::Object(b)) => Arc::ptr_eq(a, b) || a.name == b.name,
            (Self::Library(a), Self::Library(b)) => a == b,
            (Self::Param(a), Self::Param(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// Whether `size` of it is 1 whatever it is.
    pub(super) fn is_scalar(&self) -> bool {
        match self {
            Self::Bool | Self::Double | Self::Duration | Self::Int | Self::Timestamp | Self::Uint => true,
            Self::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error => f.write_str("!error!"),
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::Text => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Duration => f.write_str("duration"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::List(item) => write!(f, "list({item})"),
            Self::Map(types) => write!(f, "map({}, {})", types.0, types.1),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Kind(Some(of)) => write!(f, "type({of})"),
            Self::Kind(None) => f.write_str("type"),
            Self::Object(decl) => f.write_str(&decl.name),
            Self::Library(name) => f.write_str(name),
            Self::Param(id) => write!(f, "_var{id}"),
        }
    }
}

/// What is known of the type parameters.
#[derive(Debug, Default)]
pub(super) struct Mapping {
    known: HashMap<u32, Type>,
    /// What was known before each change of an attempt that is under way.
    before: Vec<(u32, Option<Type>)>,
}

impl Mapping {
    fn find(&self, of: &Type) -> Option<&Type> {
        match of {
            Type::Param(id) => self.known.get(id),
            _ => None,
        }
    }

    pub(super) fn add(&mut self, id: u32, to: Type) {
        let before = self.known.insert(id, to);
        self.before.push((id, before));
    }

    /// The type with all that is known put in; `dynamic`: what is not known is `dyn`.
    pub(super) fn substitute(&self, of: &Type, dynamic: bool) -> Type {
        if let Some(to) = self.find(of) {
            return self.substitute(to, dynamic);
        }
        match of {
            Type::Param(_) if dynamic => Type::Dyn,
            Type::List(item) => Type::list(self.substitute(item, dynamic)),
            Type::Optional(inner) => Type::optional(self.substitute(inner, dynamic)),
            Type::Map(types) => Type::map(self.substitute(&types.0, dynamic), self.substitute(&types.1, dynamic)),
            Type::Kind(Some(of)) => Type::Kind(Some(Arc::new(self.substitute(of, dynamic)))),
            other => other.clone(),
        }
    }

    /// Whether all of these can stand for all of those; what that says of parameters is kept when they can.
    pub(super) fn assignable(&mut self, from: &[Type], to: &[Type]) -> bool {
        self.before.clear();
        let fits = from.len() == to.len() && from.iter().zip(to).all(|(a, b)| self.fits(a, b));
        while let Some((id, before)) = self.before.pop().filter(|_| !fits) {
            match before {
                Some(before) => self.known.insert(id, before),
                None => self.known.remove(&id),
            };
        }
        fits
    }

    fn fits(&mut self, a: &Type, b: &Type) -> bool {
        if let Type::Param(id) = b {
            let (valid, known) = self.substitution(a, *id);
            if valid {
                return true;
            }
            if known {
                return false;
            }
        }
        if let Type::Param(id) = a {
            return self.substitution(b, *id).0;
        }
        if a.is_loose() || b.is_loose() {
            return true;
        }
        match (a, b) {
            (Type::Null, other) | (other, Type::Null) => {
                matches!(other, Type::Null | Type::Duration | Type::Timestamp | Type::Object(_) | Type::Optional(_))
                    || matches!(other, Type::Library(_))
            }
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => self.fits(a, b),
            (Type::Map(a), Type::Map(b)) => self.fits(&a.0, &b.0) && self.fits(&a.1, &b.1),
            (Type::Kind(_), Type::Kind(_)) => true,
            (a, b) => a.is_exactly(b),
        }
    }

    /// Whether `id` can be `of`, and whether something was known of it before.
    fn substitution(&mut self, of: &Type, id: u32) -> (bool, bool) {
        if of.is_exactly(&Type::Param(id)) {
            return (true, true);
        }
        if let Some(known) = self.known.get(&id).cloned() {
            if of.is_exactly(&known) {
                return (true, true);
            }
            if self.fits(of, &known) {
                let general = if less_specific(of, &known) { of.clone() } else { known };
                if self.absent(id, &general) {
                    self.add(id, general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.absent(id, of) {
            self.add(id, of.clone());
            return (true, false);
        }
        (false, false)
    }

    /// Whether the parameter does not occur within a type.
    fn absent(&self, id: u32, within: &Type) -> bool {
        match within {
            Type::Param(other) if *other == id => false,
            Type::Param(_) => self.find(within).is_none_or(|known| self.absent(id, known)),
            Type::List(inner) | Type::Optional(inner) | Type::Kind(Some(inner)) => self.absent(id, inner),
            Type::Map(types) => self.absent(id, &types.0) && self.absent(id, &types.1),
            _ => true,
        }
    }
}

/// Whether the first says as much as the second or less.
pub(super) fn less_specific(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Dyn | Type::Param(_), _) => true,
        (_, Type::Dyn | Type::Param(_)) => false,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => less_specific(a, b),
        (Type::Map(a), Type::Map(b)) => less_specific(&a.0, &b.0) && less_specific(&a.1, &b.1),
        (Type::Kind(_), Type::Kind(_)) => true,
        _ => a.is_exactly(b),
    }
}
