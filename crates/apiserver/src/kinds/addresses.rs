//! IPAddresses and ServiceCIDRs: `pkg/apis/networking/validation` of upstream.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::validate::{list, text};
use crate::object::{Errors, FieldError};

pub(super) fn address(object: &Value, errors: &mut Errors) {
    let Some(parent) = object.pointer("/spec/parentRef").filter(|it| !it.is_null()) else {
        errors.push(FieldError::required("spec.parentRef", ""));
        return;
    };
    for field in ["resource", "name"] {
        if text(parent, &format!("/{field}")).is_empty() {
            errors.push(FieldError::required(format!("spec.parentRef.{field}"), ""));
        }
    }
}

pub(super) fn address_update(new: &Value, old: &Value, errors: &mut Errors) {
    let parent = |object: &Value| object.pointer("/spec/parentRef").cloned().unwrap_or_default();
    let new = parent(new);
    if new != parent(old) {
        // As Go writes the internal type, which has no names for JSON.
        let fields = ["Group", "Resource", "Namespace", "Name"];
        let said = fields.map(|it| format!("{it:?}:{}", json!(text(&new, &format!("/{}", it.to_lowercase())))));
        let shown = format!("{{{}}}", said.join(","));
        errors.push(FieldError::invalid_shown("spec.parentRef", shown, "field is immutable"));
    }
}

pub(super) fn ranges(object: &Value, errors: &mut Errors) {
    let path = "spec.cidrs";
    let all = list(object, "/spec/cidrs");
    if all.is_empty() {
        errors.push(FieldError::required(path, "at least one CIDR required"));
        return;
    }
    if all.len() > 2 {
        errors.push(FieldError::invalid(path, &json!({"CIDRs": all}), "may only hold up to 2 values"));
        return;
    }
    let mut families = Vec::new();
    for (at, one) in all.iter().enumerate() {
        let one = one.as_str().unwrap_or_default();
        if let Err(why) = range(one) {
            errors.push(FieldError::invalid_str(format!("{path}[{at}]"), one, &why));
        }
        families.extend(one.split('/').next().and_then(|it| it.parse::<IpAddr>().ok()).map(|it| it.is_ipv4()));
    }
    if let [first, second] = families.as_slice()
        && first == second
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(FieldError::invalid(path, &json!(all), why));
    }
}

/// What is wrong with a range.
fn range(text: &str) -> Result<(), String> {
    let invalid = || "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned();
    let (address, bits) = text.split_once('/').ok_or_else(invalid)?;
    let address: IpAddr = address.parse().map_err(|_| invalid())?;
    let bits: u32 = bits.parse().map_err(|_| invalid())?;
    let beyond = match address {
        IpAddr::V4(_) if bits > 32 => return Err(invalid()),
        IpAddr::V6(_) if bits > 128 => return Err(invalid()),
        IpAddr::V4(address) => address.to_bits().checked_shl(bits).unwrap_or_default() != 0,
        IpAddr::V6(address) => address.to_bits().checked_shl(bits).unwrap_or_default() != 0,
    };
    if beyond {
        return Err("must not have bits set beyond the prefix length".into());
    }
    if format!("{address}/{bits}") != text {
        return Err(format!("must be in canonical form (\"{address}/{bits}\")"));
    }
    Ok(())
}

/// Ranges stay as they are, but a second one of the other family may be added.
pub(super) fn ranges_update(new: &Value, old: &Value, errors: &mut Errors) {
    let (now, was) = (list(new, "/spec/cidrs"), list(old, "/spec/cidrs"));
    if now.len() != was.len() && !(was.len() == 1 && now.len() == 2) {
        errors.push(FieldError::invalid("spec.cidrs", &json!(now), "field is immutable"));
        return;
    }
    for (at, (new, old)) in now.iter().zip(was).enumerate() {
        if new != old {
            errors.push(FieldError::invalid(format!("spec.cidrs[{at}]"), new, "field is immutable"));
        }
    }
    if now.len() > was.len() {
        ranges(new, errors);
    }
}
