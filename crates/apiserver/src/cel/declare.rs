//! The functions and the types of their arguments: cel-go's standard library and Kubernetes' own libraries. Which of them
//! are methods shows in the dot.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use super::types::{
    AUTHORIZER, CIDR, DECISION, FORMAT, GROUP_CHECK, IP, PATH_CHECK, QUANTITY, RESOURCE_CHECK, SEMVER, Type, URL,
};

/// One way to call a function. Its type parameters are counted from 0.
#[derive(Debug)]
pub(super) struct Overload {
    pub(super) id: &'static str,
    pub(super) member: bool,
    /// What it is called on first.
    pub(super) args: Vec<Type>,
    pub(super) result: Type,
    pub(super) params: u32,
}

/// The overloads of a function by its full name.
pub(super) fn function(name: &str) -> Option<&'static [Overload]> {
    static ALL: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
        let made = TABLE.iter().map(|(name, overloads)| {
            (*name, overloads.iter().map(|(id, signature)| overload(id, signature)).collect())
        });
        made.collect()
    });
    ALL.get(name).map(Vec::as_slice)
}

/// The type that a name means: `int`, `list`.
pub(super) fn named_type(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "double" => Type::Double,
        "google.protobuf.Duration" => Type::Duration,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "int" => Type::Int,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "null_type" => Type::Null,
        "optional_type" => Type::optional(Type::Dyn),
        "string" => Type::Text,
        "type" => Type::Kind(None),
        "uint" => Type::Uint,
        _ => return None,
    })
}

fn overload(id: &'static str, signature: &str) -> Overload {
    let (called, result) = signature.rsplit_once(" -> ").unwrap_or((signature, "dyn"));
    let (target, args) = match called.strip_prefix('(') {
        Some(args) => (None, args),
        None => called.split_once(".(").map_or((None, called), |(target, args)| (Some(target), args)),
    };
    let args = target.into_iter().chain(split(args.strip_suffix(')').unwrap_or(args)));
    let args: Vec<Type> = args.map(read).collect();
    let params = if signature.contains(['A', 'B', 'K', 'T', 'V']) { 5 } else { 0 };
    Overload { id, member: target.is_some(), args, result: read(result), params }
}

/// At the commas outside of parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|it| !it.is_empty())
}

fn read(text: &str) -> Type {
    let inside = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
    if let Some(item) = inside("list") {
        return Type::list(read(item));
    }
    if let Some(value) = inside("optional") {
        return Type::optional(read(value));
    }
    if let Some(of) = inside("type") {
        return Type::Kind(Some(Arc::new(read(of))));
    }
    if let Some(types) = inside("map") {
        let mut types = split(types).map(read);
        return Type::map(types.next().unwrap_or(Type::Dyn), types.next().unwrap_or(Type::Dyn));
    }
    match text {
        "A" | "T" => Type::Param(0),
        "B" => Type::Param(1),
        "K" => Type::Param(2),
        "V" => Type::Param(3),
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "url" => URL,
        "quantity" => QUANTITY,
        "semver" => SEMVER,
        "format" => FORMAT,
        "ip" => IP,
        "cidr" => CIDR,
        "authorizer" => AUTHORIZER,
        "path" => PATH_CHECK,
        "group" => GROUP_CHECK,
        "resource" => RESOURCE_CHECK,
        "decision" => DECISION,
        other => named_type(other).unwrap_or(Type::Dyn),
    }
}

type Signatures = &'static [(&'static str, &'static str)];

#[rustfmt::skip]
const TABLE: &[(&str, Signatures)] = &[
    ("_?_:_", &[("conditional", "(bool, A, A) -> A")]),
    ("_&&_", &[("logical_and", "(bool, bool) -> bool")]),
    ("_||_", &[("logical_or", "(bool, bool) -> bool")]),
    ("!_", &[("logical_not", "(bool) -> bool")]),
    ("@not_strictly_false", &[("not_strictly_false", "(bool) -> bool")]),
    ("_==_", &[("equals", "(A, A) -> bool")]),
    ("_!=_", &[("not_equals", "(A, A) -> bool")]),
    ("@in", &[("in_list", "(A, list(A)) -> bool"), ("in_map", "(A, map(A, B)) -> bool")]),
    ("_+_", &[
        ("add_bytes", "(bytes, bytes) -> bytes"), ("add_double", "(double, double) -> double"),
        ("add_duration_duration", "(duration, duration) -> duration"),
        ("add_duration_timestamp", "(duration, timestamp) -> timestamp"),
        ("add_timestamp_duration", "(timestamp, duration) -> timestamp"), ("add_int64", "(int, int) -> int"),
        ("add_list", "(list(A), list(A)) -> list(A)"), ("add_string", "(string, string) -> string"),
        ("add_uint64", "(uint, uint) -> uint"),
    ]),
    ("_-_", &[
        ("subtract_double", "(double, double) -> double"),
        ("subtract_duration_duration", "(duration, duration) -> duration"), ("subtract_int64", "(int, int) -> int"),
        ("subtract_timestamp_duration", "(timestamp, duration) -> timestamp"),
        ("subtract_timestamp_timestamp", "(timestamp, timestamp) -> duration"),
        ("subtract_uint64", "(uint, uint) -> uint"),
    ]),
    ("_*_", &[
        ("multiply_double", "(double, double) -> double"), ("multiply_int64", "(int, int) -> int"),
        ("multiply_uint64", "(uint, uint) -> uint"),
    ]),
    ("_/_", &[
        ("divide_double", "(double, double) -> double"), ("divide_int64", "(int, int) -> int"),
        ("divide_uint64", "(uint, uint) -> uint"),
    ]),
    ("_%_", &[("modulo_int64", "(int, int) -> int"), ("modulo_uint64", "(uint, uint) -> uint")]),
    ("-_", &[("negate_double", "(double) -> double"), ("negate_int64", "(int) -> int")]),
    ("_[_]", &[
        ("index_list", "(list(A), int) -> A"), ("index_map", "(map(A, B), A) -> B"),
        ("optional_list_index_int", "(optional(list(V)), int) -> optional(V)"),
        ("optional_map_index_value", "(optional(map(K, V)), K) -> optional(V)"),
    ]),
    ("_[?_]", &[
        ("list_optindex_optional_int", "(list(V), int) -> optional(V)"),
        ("optional_list_optindex_optional_int", "(optional(list(V)), int) -> optional(V)"),
        ("map_optindex_optional_value", "(map(K, V), K) -> optional(V)"),
        ("optional_map_optindex_optional_value", "(optional(map(K, V)), K) -> optional(V)"),
    ]),
    ("_<_", &[
        ("less_bool", "(bool, bool) -> bool"), ("less_int64", "(int, int) -> bool"),
        ("less_int64_double", "(int, double) -> bool"), ("less_int64_uint64", "(int, uint) -> bool"),
        ("less_uint64", "(uint, uint) -> bool"), ("less_uint64_double", "(uint, double) -> bool"),
        ("less_uint64_int64", "(uint, int) -> bool"), ("less_double", "(double, double) -> bool"),
        ("less_double_int64", "(double, int) -> bool"), ("less_double_uint64", "(double, uint) -> bool"),
        ("less_string", "(string, string) -> bool"), ("less_bytes", "(bytes, bytes) -> bool"),
        ("less_timestamp", "(timestamp, timestamp) -> bool"), ("less_duration", "(duration, duration) -> bool"),
    ]),
    ("_<=_", &[
        ("less_equals_bool", "(bool, bool) -> bool"), ("less_equals_int64", "(int, int) -> bool"),
        ("less_equals_int64_double", "(int, double) -> bool"), ("less_equals_int64_uint64", "(int, uint) -> bool"),
        ("less_equals_uint64", "(uint, uint) -> bool"), ("less_equals_uint64_double", "(uint, double) -> bool"),
        ("less_equals_uint64_int64", "(uint, int) -> bool"), ("less_equals_double", "(double, double) -> bool"),
        ("less_equals_double_int64", "(double, int) -> bool"), ("less_equals_double_uint64", "(double, uint) -> bool"),
        ("less_equals_string", "(string, string) -> bool"), ("less_equals_bytes", "(bytes, bytes) -> bool"),
        ("less_equals_timestamp", "(timestamp, timestamp) -> bool"),
        ("less_equals_duration", "(duration, duration) -> bool"),
    ]),
    ("_>_", &[
        ("greater_bool", "(bool, bool) -> bool"), ("greater_int64", "(int, int) -> bool"),
        ("greater_int64_double", "(int, double) -> bool"), ("greater_int64_uint64", "(int, uint) -> bool"),
        ("greater_uint64", "(uint, uint) -> bool"), ("greater_uint64_double", "(uint, double) -> bool"),
        ("greater_uint64_int64", "(uint, int) -> bool"), ("greater_double", "(double, double) -> bool"),
        ("greater_double_int64", "(double, int) -> bool"), ("greater_double_uint64", "(double, uint) -> bool"),
        ("greater_string", "(string, string) -> bool"), ("greater_bytes", "(bytes, bytes) -> bool"),
        ("greater_timestamp", "(timestamp, timestamp) -> bool"), ("greater_duration", "(duration, duration) -> bool"),
    ]),
    ("_>=_", &[
        ("greater_equals_bool", "(bool, bool) -> bool"), ("greater_equals_int64", "(int, int) -> bool"),
        ("greater_equals_int64_double", "(int, double) -> bool"),
        ("greater_equals_int64_uint64", "(int, uint) -> bool"), ("greater_equals_uint64", "(uint, uint) -> bool"),
        ("greater_equals_uint64_double", "(uint, double) -> bool"),
        ("greater_equals_uint64_int64", "(uint, int) -> bool"), ("greater_equals_double", "(double, double) -> bool"),
        ("greater_equals_double_int64", "(double, int) -> bool"),
        ("greater_equals_double_uint64", "(double, uint) -> bool"),
        ("greater_equals_string", "(string, string) -> bool"), ("greater_equals_bytes", "(bytes, bytes) -> bool"),
        ("greater_equals_timestamp", "(timestamp, timestamp) -> bool"),
        ("greater_equals_duration", "(duration, duration) -> bool"),
    ]),
    ("size", &[
        ("size_bytes", "(bytes) -> int"), ("size_list", "(list(A)) -> int"), ("size_map", "(map(A, B)) -> int"),
        ("size_string", "(string) -> int"), ("bytes_size", "bytes.() -> int"), ("list_size", "list(A).() -> int"),
        ("map_size", "map(A, B).() -> int"), ("string_size", "string.() -> int"),
    ]),
    ("type", &[("type", "(A) -> type(A)")]),
    ("dyn", &[("to_dyn", "(A) -> dyn")]),
    ("bool", &[("bool_to_bool", "(bool) -> bool"), ("string_to_bool", "(string) -> bool")]),
    ("bytes", &[("bytes_to_bytes", "(bytes) -> bytes"), ("string_to_bytes", "(string) -> bytes")]),
    ("double", &[
        ("double_to_double", "(double) -> double"), ("int_to_double", "(int) -> double"),
        ("string_to_double", "(string) -> double"), ("uint_to_double", "(uint) -> double"),
    ]),
    ("duration", &[
        ("duration_to_duration", "(duration) -> duration"), ("int_to_duration", "(int) -> duration"), 
        ("string_to_duration", "(string) -> duration"),
    ]),
    ("int", &[
        ("int_to_int", "(int) -> int"), ("double_to_int", "(double) -> int"), ("duration_to_int", "(duration) -> int"),
        ("string_to_int", "(string) -> int"), ("timestamp_to_int", "(timestamp) -> int"),
        ("uint_to_int", "(uint) -> int"),
    ]),
    ("string", &[
        ("string_to_string", "(string) -> string"), ("bool_to_string", "(bool) -> string"),
        ("bytes_to_string", "(bytes) -> string"), ("double_to_string", "(double) -> string"),
        ("duration_to_string", "(duration) -> string"), ("int_to_string", "(int) -> string"),
        ("timestamp_to_string", "(timestamp) -> string"), ("uint_to_string", "(uint) -> string"),
        ("ip_to_string", "(ip) -> string"), ("cidr_to_string", "(cidr) -> string"),
    ]),
    ("timestamp", &[
        ("timestamp_to_timestamp", "(timestamp) -> timestamp"), ("int_to_timestamp", "(int) -> timestamp"),
        ("string_to_timestamp", "(string) -> timestamp"),
    ]),
    ("uint", &[
        ("uint_to_uint", "(uint) -> uint"), ("double_to_uint", "(double) -> uint"), ("int_to_uint", "(int) -> uint"),
        ("string_to_uint", "(string) -> uint"),
    ]),
    ("contains", &[("contains_string", "string.(string) -> bool")]),
    ("endsWith", &[("ends_with_string", "string.(string) -> bool")]),
    ("startsWith", &[("starts_with_string", "string.(string) -> bool")]),
    ("matches", &[("matches", "(string, string) -> bool"), ("matches_string", "string.(string) -> bool")]),
    ("getFullYear", &[
        ("timestamp_to_FullYear", "timestamp.() -> int"),
        ("timestamp_to_FullYear_with_tz", "timestamp.(string) -> int"),
    ]),
    ("getMonth", &[
        ("timestamp_to_Month", "timestamp.() -> int"), ("timestamp_to_Month_with_tz", "timestamp.(string) -> int"),
    ]),
    ("getDayOfYear", &[
        ("timestamp_to_DayOfYear", "timestamp.() -> int"),
        ("timestamp_to_DayOfYear_with_tz", "timestamp.(string) -> int"),
    ]),
    ("getDayOfMonth", &[
        ("timestamp_to_DayOfMonth", "timestamp.() -> int"),
        ("timestamp_to_DayOfMonth_with_tz", "timestamp.(string) -> int"),
    ]),
    ("getDate", &[
        ("timestamp_to_Date", "timestamp.() -> int"), ("timestamp_to_Date_with_tz", "timestamp.(string) -> int"),
    ]),
    ("getDayOfWeek", &[
        ("timestamp_to_DayOfWeek", "timestamp.() -> int"),
        ("timestamp_to_DayOfWeek_with_tz", "timestamp.(string) -> int"),
    ]),
    ("getHours", &[
        ("timestamp_to_Hours", "timestamp.() -> int"), ("timestamp_to_Hours_with_tz", "timestamp.(string) -> int"),
        ("duration_to_Hours", "duration.() -> int"),
    ]),
    ("getMinutes", &[
        ("timestamp_to_Minutes", "timestamp.() -> int"), ("timestamp_to_Minutes_with_tz", "timestamp.(string) -> int"),
        ("duration_to_Minutes", "duration.() -> int"),
    ]),
    ("getSeconds", &[
        ("timestamp_to_Seconds", "timestamp.() -> int"), ("timestamp_to_Seconds_with_tz", "timestamp.(string) -> int"),
        ("duration_to_Seconds", "duration.() -> int"),
    ]),
    ("getMilliseconds", &[
        ("timestamp_to_Milliseconds", "timestamp.() -> int"),
        ("timestamp_to_Milliseconds_with_tz", "timestamp.(string) -> int"),
        ("duration_to_Milliseconds", "duration.() -> int"),
    ]),
    ("optional.of", &[("optional_of", "(V) -> optional(V)")]),
    ("optional.ofNonZeroValue", &[("optional_ofNonZeroValue", "(V) -> optional(V)")]),
    ("optional.none", &[("optional_none", "() -> optional(V)")]),
    ("value", &[("optional_value", "optional(V).() -> V")]),
    ("hasValue", &[("optional_hasValue", "optional(V).() -> bool")]),
    ("or", &[("optional_or_optional", "optional(V).(optional(V)) -> optional(V)")]),
    ("orValue", &[("optional_orValue_value", "optional(V).(V) -> V")]),
    ("first", &[("list_first", "list(V).() -> optional(V)")]),
    ("last", &[("list_last", "list(V).() -> optional(V)")]),
    ("optional.unwrap", &[("optional_unwrap", "(list(optional(V))) -> list(V)")]),
    ("unwrapOpt", &[("optional_unwrapOpt", "list(optional(V)).() -> list(V)")]),
    ("cel.@mapInsert", &[
        ("@mapInsert_map_key_value", "(map(K, V), K, V) -> map(K, V)"),
        ("@mapInsert_map_map", "(map(K, V), map(K, V)) -> map(K, V)"),
    ]),
    ("charAt", &[("string_char_at_int", "string.(int) -> string")]),
    ("indexOf", &[
        ("string_index_of_string", "string.(string) -> int"),
        ("string_index_of_string_int", "string.(string, int) -> int"), ("list_a_index_of_int", "list(A).(A) -> int"),
    ]),
    ("lastIndexOf", &[
        ("string_last_index_of_string", "string.(string) -> int"),
        ("string_last_index_of_string_int", "string.(string, int) -> int"),
        ("list_a_last_index_of_int", "list(A).(A) -> int"),
    ]),
    ("lowerAscii", &[("string_lower_ascii", "string.() -> string")]),
    ("upperAscii", &[("string_upper_ascii", "string.() -> string")]),
    ("replace", &[
        ("string_replace_string_string", "string.(string, string) -> string"),
        ("string_replace_string_string_int", "string.(string, string, int) -> string"),
    ]),
    ("split", &[
        ("string_split_string", "string.(string) -> list(string)"),
        ("string_split_string_int", "string.(string, int) -> list(string)"),
    ]),
    ("substring", &[
        ("string_substring_int", "string.(int) -> string"),
        ("string_substring_int_int", "string.(int, int) -> string"),
    ]),
    ("trim", &[("string_trim", "string.() -> string")]),
    ("format", &[("string_format", "string.(list(dyn)) -> string")]),
    ("strings.quote", &[("strings_quote", "(string) -> string")]),
    ("join", &[("list_join", "list(string).() -> string"), ("list_join_string", "list(string).(string) -> string")]),
    ("sets.contains", &[("list_sets_contains_list", "(list(T), list(T)) -> bool")]),
    ("sets.equivalent", &[("list_sets_equivalent_list", "(list(T), list(T)) -> bool")]),
    ("sets.intersects", &[("list_sets_intersects_list", "(list(T), list(T)) -> bool")]),
    ("isSorted", &[
        ("list_int_is_sorted_bool", "list(int).() -> bool"), ("list_uint_is_sorted_bool", "list(uint).() -> bool"),
        ("list_double_is_sorted_bool", "list(double).() -> bool"),
        ("list_bool_is_sorted_bool", "list(bool).() -> bool"),
        ("list_duration_is_sorted_bool", "list(duration).() -> bool"),
        ("list_timestamp_is_sorted_bool", "list(timestamp).() -> bool"),
        ("list_string_is_sorted_bool", "list(string).() -> bool"),
        ("list_bytes_is_sorted_bool", "list(bytes).() -> bool"),
    ]),
    ("sum", &[
        ("list_int_sum_int", "list(int).() -> int"), ("list_uint_sum_uint", "list(uint).() -> uint"),
        ("list_double_sum_double", "list(double).() -> double"),
        ("list_duration_sum_duration", "list(duration).() -> duration"),
    ]),
    ("max", &[
        ("list_int_max_int", "list(int).() -> int"), ("list_uint_max_uint", "list(uint).() -> uint"),
        ("list_double_max_double", "list(double).() -> double"), ("list_bool_max_bool", "list(bool).() -> bool"),
        ("list_duration_max_duration", "list(duration).() -> duration"),
        ("list_timestamp_max_timestamp", "list(timestamp).() -> timestamp"),
        ("list_string_max_string", "list(string).() -> string"), ("list_bytes_max_bytes", "list(bytes).() -> bytes"),
    ]),
    ("min", &[
        ("list_int_min_int", "list(int).() -> int"), ("list_uint_min_uint", "list(uint).() -> uint"),
        ("list_double_min_double", "list(double).() -> double"), ("list_bool_min_bool", "list(bool).() -> bool"),
        ("list_duration_min_duration", "list(duration).() -> duration"),
        ("list_timestamp_min_timestamp", "list(timestamp).() -> timestamp"),
        ("list_string_min_string", "list(string).() -> string"), ("list_bytes_min_bytes", "list(bytes).() -> bytes"),
    ]),
    ("find", &[("string_find_string", "string.(string) -> string")]),
    ("findAll", &[
        ("string_find_all_string", "string.(string) -> list(string)"),
        ("string_find_all_string_int", "string.(string, int) -> list(string)"),
    ]),
    ("url", &[("string_to_url", "(string) -> url")]),
    ("isURL", &[("is_url_string", "(string) -> bool")]),
    ("getScheme", &[("url_get_Scheme", "url.() -> string")]),
    ("getHost", &[("url_get_Host", "url.() -> string")]),
    ("getHostname", &[("url_get_Hostname", "url.() -> string")]),
    ("getPort", &[("url_get_Port", "url.() -> string")]),
    ("getEscapedPath", &[("url_get_EscapedPath", "url.() -> string")]),
    ("getQuery", &[("url_get_query", "url.() -> map(string, list(string))")]),
    ("quantity", &[("string_to_quantity", "(string) -> quantity")]),
    ("isQuantity", &[("is_quantity_string", "(string) -> bool")]),
    ("sign", &[("quantity_sign", "(quantity) -> int")]),
    ("isGreaterThan", &[
        ("quantity_is_greater_than", "quantity.(quantity) -> bool"),
        ("semver_is_greater_than", "semver.(semver) -> bool"),
    ]),
    ("isLessThan", &[
        ("quantity_is_less_than", "quantity.(quantity) -> bool"), ("semver_is_less_than", "semver.(semver) -> bool"),
    ]),
    ("compareTo", &[
        ("quantity_compare_to", "quantity.(quantity) -> int"), ("semver_compare_to", "semver.(semver) -> int"),
    ]),
    ("asApproximateFloat", &[("quantity_get_float", "quantity.() -> double")]),
    ("asInteger", &[("quantity_get_int", "quantity.() -> int")]),
    ("isInteger", &[("quantity_is_integer", "quantity.() -> bool")]),
    ("add", &[("quantity_add", "quantity.(quantity) -> quantity"), ("quantity_add_int", "quantity.(int) -> quantity")]),
    ("sub", &[("quantity_sub", "quantity.(quantity) -> quantity"), ("quantity_sub_int", "quantity.(int) -> quantity")]),
    ("semver", &[("string_to_semver", "(string) -> semver"), ("string_bool_to_semver", "(string, bool) -> semver")]),
    ("isSemver", &[("is_semver_string", "(string) -> bool"), ("is_semver_string_bool", "(string, bool) -> bool")]),
    ("major", &[("semver_major", "semver.() -> int")]),
    ("minor", &[("semver_minor", "semver.() -> int")]),
    ("patch", &[("semver_patch", "semver.() -> int")]),
    ("ip", &[("string_to_ip", "(string) -> ip"), ("cidr_ip", "cidr.() -> ip")]),
    ("family", &[("ip_family", "ip.() -> int")]),
    ("ip.isCanonical", &[("ip_is_canonical", "(string) -> bool")]),
    ("isIP", &[("is_ip", "(string) -> bool")]),
    ("isUnspecified", &[("ip_isUnspecified", "ip.() -> bool")]),
    ("isLoopback", &[("ip_isLoopback", "ip.() -> bool")]),
    ("isLinkLocalMulticast", &[("ip_isLinkLocalMulticast", "ip.() -> bool")]),
    ("isLinkLocalUnicast", &[("ip_isLinkLocalUnicast", "ip.() -> bool")]),
    ("isGlobalUnicast", &[("ip_isGlobalUnicast", "ip.() -> bool")]),
    ("cidr", &[("string_to_cidr", "(string) -> cidr")]),
    ("isCIDR", &[("is_cidr", "(string) -> bool")]),
    ("containsIP", &[
        ("cidr_contains_ip_string", "cidr.(string) -> bool"), ("cidr_contains_ip_ip", "cidr.(ip) -> bool"),
    ]),
    ("containsCIDR", &[
        ("cidr_contains_cidr_string", "cidr.(string) -> bool"), ("cidr_contains_cidr", "cidr.(cidr) -> bool"),
    ]),
    ("prefixLength", &[("cidr_prefix_length", "cidr.() -> int")]),
    ("masked", &[("cidr_masked", "cidr.() -> cidr")]),
    ("validate", &[("format-validate", "format.(string) -> optional(list(string))")]),
    ("format.named", &[("format-named", "(string) -> optional(format)")]),
    ("format.dns1123Label", &[("format.dns1123Label", "() -> format")]),
    ("format.dns1123Subdomain", &[("format.dns1123Subdomain", "() -> format")]),
    ("format.dns1035Label", &[("format.dns1035Label", "() -> format")]),
    ("format.qualifiedName", &[("format.qualifiedName", "() -> format")]),
    ("format.dns1123LabelPrefix", &[("format.dns1123LabelPrefix", "() -> format")]),
    ("format.dns1123SubdomainPrefix", &[("format.dns1123SubdomainPrefix", "() -> format")]),
    ("format.dns1035LabelPrefix", &[("format.dns1035LabelPrefix", "() -> format")]),
    ("format.labelValue", &[("format.labelValue", "() -> format")]),
    ("format.uri", &[("format.uri", "() -> format")]),
    ("format.uuid", &[("format.uuid", "() -> format")]),
    ("format.byte", &[("format.byte", "() -> format")]),
    ("format.date", &[("format.date", "() -> format")]),
    ("format.datetime", &[("format.datetime", "() -> format")]),
    ("path", &[("authorizer_path", "authorizer.(string) -> path")]),
    ("group", &[("authorizer_group", "authorizer.(string) -> group")]),
    ("serviceAccount", &[("authorizer_serviceaccount", "authorizer.(string, string) -> authorizer")]),
    ("resource", &[("groupcheck_resource", "group.(string) -> resource")]),
    ("subresource", &[("resourcecheck_subresource", "resource.(string) -> resource")]),
    ("namespace", &[("resourcecheck_namespace", "resource.(string) -> resource")]),
    ("name", &[("resourcecheck_name", "resource.(string) -> resource")]),
    ("fieldSelector", &[("authorizer_fieldselector", "resource.(string) -> resource")]),
    ("labelSelector", &[("authorizer_labelselector", "resource.(string) -> resource")]),
    ("check", &[("pathcheck_check", "path.(string) -> decision"), ("resourcecheck_check", "resource.(string) -> decision")]),
    ("errored", &[("decision_errored", "decision.() -> bool")]),
    ("error", &[("decision_error", "decision.() -> string")]),
    ("allowed", &[("decision_allowed", "decision.() -> bool")]),
    ("reason", &[("decision_reason", "decision.() -> string")]),
];
