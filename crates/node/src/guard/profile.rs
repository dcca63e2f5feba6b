//! Filters of system calls that users bring: profiles as the runtime specification of OCI has them (`linux.seccomp`), which
//! is what a kubelet's directory of profiles holds.
//!
//! They come on top of the filter that every container is under, and the kernel takes the stricter answer of both: a
//! profile can take away, and never give.

use std::collections::BTreeMap;
use std::str::FromStr;

use seccompiler::sock_filter;
use serde::Deserialize;
use syscalls::Sysno;

use super::seccomp::{AT_LEAST, EQUAL, LOAD, Program, RETURN, native, op};

/// Bytes of a profile's text.
pub(crate) const TEXT: u64 = 1 << 20;
/// Instructions that the kernel takes.
const INSTRUCTIONS: usize = 4096;
/// Arguments of a system call.
const ARGUMENTS: u32 = 6;

const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA | libc::BPF_K) as u16;
const ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: Action,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: Action,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Condition>>,
}

#[derive(Clone, Copy, Deserialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    index: u32,
    value: u64,
    /// What is left of the argument under the mask `value`.
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

#[derive(Clone, Copy, Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    AtMost,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    AtLeast,
    #[serde(rename = "SCMP_CMP_GT")]
    Above,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    Masked,
}

/// A filter as it is sent and kept: an instruction a number.
pub(crate) type Packed = Vec<u64>;

pub(crate) fn pack(program: &Program) -> Packed {
    let one =
        |it: &sock_filter| u64::from(it.code) << 48 | u64::from(it.jt) << 40 | u64::from(it.jf) << 32 | u64::from(it.k);
    program.iter().map(one).collect()
}

pub(crate) fn unpack(packed: &[u64]) -> Program {
    let one = |it: &u64| op((it >> 48) as u16, *it as u32, (it >> 40) as u8, (it >> 32) as u8);
    packed.iter().map(one).collect()
}

/// What is to be done with one system call.
#[derive(Default)]
struct Call {
    /// Of the first entry that names it without conditions. It counts more than those with some, as in libseccomp.
    always: Option<u32>,
    /// The first whose conditions all hold counts.
    when: Vec<(Vec<Condition>, u32)>,
}

/// Compiles a profile.
///
/// As with `runc`, calls that this machine does not know are passed over, and entries that say what is the default anyway;
/// conditions that name the same argument twice are alternatives. What `architectures` says is not looked at: calls of others than this machine's own are refused anyway.
///
/// # Errors
/// What is wrong with the text, for people.
pub(crate) fn compile(text: &str) -> Result<Program, String> {
    let profile: Profile = serde_json::from_str(text).map_err(|error| format!("it is no seccomp profile: {error}"))?;
    let otherwise = verdict(profile.default_action, profile.default_errno_ret)?;
    let mut calls = BTreeMap::<u32, Call>::new();
    for rule in &profile.syscalls {
        let verdict = verdict(rule.action, rule.errno_ret)?;
        let alternatives = alternatives(rule.args.as_deref().unwrap_or_default())?;
        if verdict == otherwise {
            continue;
        }
        let numbers = rule.names.iter().filter_map(|it| u32::try_from(Sysno::from_str(it).ok()?.id()).ok());
        for number in numbers {
            let call = calls.entry(number).or_default();
            // Each takes three instructions at least.
            if call.when.len() + alternatives.len() > INSTRUCTIONS / 3 {
                return Err(too_long());
            }
            if alternatives.is_empty() {
                call.always.get_or_insert(verdict);
            }
            call.when.extend(alternatives.iter().map(|it| (it.clone(), verdict)));
        }
    }
    let mut program = native();
    for (number, call) in calls {
        let body = body(&call, otherwise);
        match u8::try_from(body.len()) {
            Ok(len) => program.push(op(EQUAL, number, 0, len)),
            Err(_) => program.extend([op(EQUAL, number, 1, 0), op(JUMP, body.len() as u32, 0, 0)]),
        }
        program.extend(body);
        // A few names can mean much.
        if program.len() >= INSTRUCTIONS {
            return Err(too_long());
        }
    }
    program.push(op(RETURN, otherwise, 0, 0));
    Ok(program)
}

fn too_long() -> String {
    format!("it is too long: the kernel takes {INSTRUCTIONS} instructions")
}

fn verdict(action: Action, errno: Option<u16>) -> Result<u32, String> {
    let data = u32::from(errno.unwrap_or(libc::EPERM as u16));
    Ok(match action {
        Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::Trap => libc::SECCOMP_RET_TRAP,
        Action::Errno => libc::SECCOMP_RET_ERRNO | data,
        Action::Trace => libc::SECCOMP_RET_TRACE | data,
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Log => libc::SECCOMP_RET_LOG,
        Action::Notify => return Err("SCMP_ACT_NOTIFY needs a program that listens, and this node has none".to_owned()),
    })
}

/// Lists of conditions that must all hold; none when there are no conditions.
fn alternatives(args: &[Condition]) -> Result<Vec<Vec<Condition>>, String> {
    if let Some(it) = args.iter().find(|it| it.index >= ARGUMENTS) {
        return Err(format!("a system call has no argument {}: they are 0 to {}", it.index, ARGUMENTS - 1));
    }
    let mut indices: Vec<_> = args.iter().map(|it| it.index).collect();
    indices.sort_unstable();
    Ok(match args {
        [] => Vec::new(),
        _ if indices.windows(2).any(|it| it.first() == it.last()) => args.iter().map(|it| vec![*it]).collect(),
        _ => vec![args.to_vec()],
    })
}

/// What to do when the number is the right one; it always ends with an answer.
fn body(call: &Call, otherwise: u32) -> Program {
    if let Some(verdict) = call.always {
        return vec![op(RETURN, verdict, 0, 0)];
    }
    let mut out = Program::new();
    for (conditions, verdict) in &call.when {
        let mut rule: Vec<Step> = conditions.iter().flat_map(|it| steps(*it)).collect();
        rule.push(Step::plain(RETURN, *verdict));
        let len = rule.len();
        out.extend(rule.into_iter().enumerate().map(|(at, it)| it.placed((len - at - 1) as u8)));
    }
    out.push(op(RETURN, otherwise, 0, 0));
    out
}

/// An instruction whose ways are not known as numbers yet.
#[derive(Clone, Copy)]
struct Step {
    code: u16,
    k: u32,
    yes: Way,
    no: Way,
}

#[derive(Clone, Copy)]
enum Way {
    /// Over so many instructions: 0 is the next one.
    Over(u8),
    /// The rule does not hold.
    Out,
}

const ON: Way = Way::Over(0);

impl Step {
    const fn plain(code: u16, k: u32) -> Self {
        Self { code, k, yes: ON, no: ON }
    }

    const fn jump(code: u16, k: u32, yes: Way, no: Way) -> Self {
        Self { code, k, yes, no }
    }

    /// `out`: how many instructions there are from here to the end of the rule. Six conditions are far below 255.
    fn placed(self, out: u8) -> sock_filter {
        let far = |it: Way| match it {
            Way::Over(far) => far,
            Way::Out => out,
        };
        op(self.code, self.k, far(self.yes), far(self.no))
    }
}

/// Goes on after its last step when the condition holds. The high half of the argument comes first.
fn steps(condition: Condition) -> Vec<Step> {
    let Condition { index, value, value_two, op } = condition;
    let halves = |it: u64| ((it >> 32) as u32, it as u32);
    let (high, low) = halves(value);
    let load_low = Step::plain(LOAD, 16 + 8 * index);
    let load_high = Step::plain(LOAD, 20 + 8 * index);
    let greater = |low_code: u16| {
        vec![
            load_high,
            Step::jump(ABOVE, high, Way::Over(3), ON),
            Step::jump(EQUAL, high, ON, Way::Out),
            load_low,
            Step::jump(low_code, low, ON, Way::Out),
        ]
    };
    let not_greater = |low_code: u16| {
        vec![
            load_high,
            Step::jump(ABOVE, high, Way::Out, ON),
            Step::jump(EQUAL, high, ON, Way::Over(2)),
            load_low,
            Step::jump(low_code, low, Way::Out, ON),
        ]
    };
    match op {
        Operator::Equal => {
            vec![load_high, Step::jump(EQUAL, high, ON, Way::Out), load_low, Step::jump(EQUAL, low, ON, Way::Out)]
        }
        Operator::NotEqual => {
            vec![load_high, Step::jump(EQUAL, high, ON, Way::Over(2)), load_low, Step::jump(EQUAL, low, Way::Out, ON)]
        }
        Operator::Above => greater(ABOVE),
        Operator::AtLeast => greater(AT_LEAST),
        Operator::AtMost => not_greater(ABOVE),
        Operator::Less => not_greater(AT_LEAST),
        Operator::Masked => {
            let (wanted_high, wanted_low) = halves(value_two);
            vec![
                load_high,
                Step::plain(AND, high),
                Step::jump(EQUAL, wanted_high, ON, Way::Out),
                load_low,
                Step::plain(AND, low),
                Step::jump(EQUAL, wanted_low, ON, Way::Out),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::seccomp::ARCH;
    use super::super::simulated::verdict;
    use super::*;
    use serde_json::{Value, json};

    fn verdict_of(program: &Program, number: i64, args: [u64; 6]) -> u32 {
        verdict(program, ARCH, number, &args)
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn errno(it: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | it as u32
    }

    fn compiled(profile: &Value) -> Result<Program, String> {
        compile(&profile.to_string())
    }

    #[test]
    fn a_call_has_the_verdict_of_its_entry_or_the_default_one() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {"names": ["read", "write", "a_call_of_tomorrow"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["ptrace"], "action": "SCMP_ACT_KILL_PROCESS"},
                {"names": ["kill"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                {"names": ["personality"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
                {"names": ["mmap"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 1, "value": 4096, "op": "SCMP_CMP_LE"}, {"index": 2, "value": 4, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_GE"}]},
                {"names": ["getpid"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["dup"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["dup"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            ],
        });
        let program = unpack(&pack(&compiled(&profile).unwrap()));
        let table: &[(i64, [u64; 6], u32)] = &[
            (libc::SYS_read, [0; 6], ALLOW),
            (libc::SYS_openat, [0; 6], errno(libc::ENOSYS)),
            (libc::SYS_ptrace, [0; 6], libc::SECCOMP_RET_KILL_PROCESS),
            (libc::SYS_kill, [0; 6], errno(libc::EPERM)),
            (libc::SYS_personality, [8, 0, 0, 0, 0, 0], ALLOW),
            (libc::SYS_personality, [9, 0, 0, 0, 0, 0], libc::SECCOMP_RET_LOG),
            (libc::SYS_personality, [8 | 1 << 32, 0, 0, 0, 0, 0], errno(libc::ENOSYS)),
            (libc::SYS_socket, [1, 0, 0, 0, 0, 0], ALLOW),
            (libc::SYS_socket, [2, 0, 0, 0, 0, 0], ALLOW),
            (libc::SYS_socket, [3, 0, 0, 0, 0, 0], errno(libc::ENOSYS)),
            (libc::SYS_mmap, [0, 4096, 3, 0, 0, 0], ALLOW),
            (libc::SYS_mmap, [0, 4097, 3, 0, 0, 0], errno(libc::ENOSYS)),
            (libc::SYS_mmap, [0, 4096, 7, 0, 0, 0], errno(libc::ENOSYS)),
            (libc::SYS_getpid, [0; 6], ALLOW),
            (libc::SYS_dup, [1, 0, 0, 0, 0, 0], ALLOW),
            (libc::SYS_dup, [2, 0, 0, 0, 0, 0], errno(libc::ENOSYS)),
            (0x4000_0000, [0; 6], errno(libc::ENOSYS)),
        ];
        for (number, args, is) in table {
            assert_eq!(verdict_of(&program, *number, *args), *is, "{number} {args:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn conditions_are_what_they_say_of_all_64_bits(
            high in 0u64..3, low in 0u64..3, other_high in 0u64..3, other_low in 0u64..3, index in 0u32..6,
        ) {
            let (value, argument) = (high << 32 | low, other_high << 32 | other_low);
            let mut args = [7; 6];
            args[index as usize] = argument;
            let table = [
                ("SCMP_CMP_NE", argument != value),
                ("SCMP_CMP_LT", argument < value),
                ("SCMP_CMP_LE", argument <= value),
                ("SCMP_CMP_EQ", argument == value),
                ("SCMP_CMP_GE", argument >= value),
                ("SCMP_CMP_GT", argument > value),
                ("SCMP_CMP_MASKED_EQ", argument & value == 1),
            ];
            for (op, holds) in table {
                let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
                    {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": index, "value": value, "valueTwo": 1, "op": op}]},
                ]});
                let found = verdict_of(&compiled(&profile).unwrap(), libc::SYS_read, args);
                proptest::prop_assert_eq!(found == ALLOW, holds, "{} {} {}", argument, op, value);
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_profile_is_said() {
        let entry = |it: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [it]});
        let condition = json!({"index": 6, "value": 0, "op": "SCMP_CMP_EQ"});
        let far: Vec<_> = (0..1000).map(|it| json!({"index": 0, "value": it, "op": "SCMP_CMP_EQ"})).collect();
        let table = [
            (json!("all"), "it is no seccomp profile: invalid type"),
            (json!({}), "it is no seccomp profile: missing field `defaultAction`"),
            (json!({"defaultAction": "SCMP_ACT_MAYBE"}), "it is no seccomp profile: unknown variant `SCMP_ACT_MAYBE`"),
            (entry(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})), "SCMP_ACT_NOTIFY needs"),
            (
                entry(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [condition]})),
                "a system call has no argument 6",
            ),
            (entry(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": far})), "it is too long"),
        ];
        for (profile, why) in table {
            let found = compiled(&profile).unwrap_err();
            assert!(found.starts_with(why), "{found}");
        }
        // Far jumps: every one of these has a body of more than a byte can jump over.
        let far: Vec<_> = (0..100).map(|it| json!({"index": 0, "value": it, "op": "SCMP_CMP_EQ"})).collect();
        let program = compiled(&json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ERRNO", "args": far},
        ]}));
        let program = program.unwrap();
        assert_eq!(verdict_of(&program, libc::SYS_write, [99; 6]), errno(libc::EPERM));
        assert_eq!(verdict_of(&program, libc::SYS_write, [100; 6]), ALLOW);
        assert_eq!(verdict_of(&program, libc::SYS_close, [99; 6]), ALLOW);
    }
}
