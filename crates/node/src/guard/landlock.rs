use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};

/// The newest interface whose meaning we know; an older kernel gives what it has.
const KNOWN: ABI = ABI::V6;

/// Puts this process and all that come from it into a domain: everything beneath `/` save making device nodes; `program`
/// may be executed; no mounts; no signal, trace or abstract socket to anybody outside the domain.
///
/// # Errors
/// Where the kernel refuses. A kernel without Landlock is no error: this guard is the second on each of its doors.
pub(crate) fn restrict(program: Option<BorrowedFd<'_>>) -> Result<(), RulesetError> {
    let all = AccessFs::from_all(KNOWN);
    let devices: BitFlags<AccessFs> = AccessFs::MakeChar | AccessFs::MakeBlock;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    if let Ok(root) = PathFd::new("/") {
        rules = rules.add_rule(PathBeneath::new(root, all & !devices))?;
    }
    if let Some(program) = program {
        rules = rules.add_rule(PathBeneath::new(program, AccessFs::Execute | AccessFs::ReadFile))?;
    }
    rules.restrict_self()?;
    Ok(())
}
