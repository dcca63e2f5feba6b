use rustix::thread::{CapabilitySet, CapabilitySets};

/// What root in a sandbox can do, to its own files and processes alone: the user namespace confines it. No namespaces,
/// mounts, devices, tracing, clocks, networks.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// Drops every other capability for good, from this process and from whatever it executes.
pub(crate) fn drop() -> rustix::io::Result<()> {
    for capability in (CapabilitySet::all() & !KEPT).iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Newer than this kernel.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() },
    )
}

pub(crate) fn keep_no_new() -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)
}
