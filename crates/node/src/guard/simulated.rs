//! Runs a filter as the kernel does.

use seccompiler::sock_filter;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const ALWAYS: u32 = libc::BPF_JMP | libc::BPF_JA | libc::BPF_K;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const ABOVE: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;

/// What it says of a system call of an architecture.
pub(super) fn verdict(program: &[sock_filter], arch: u32, number: i64, args: &[u64]) -> u32 {
    let half = |offset: u32| (args[(offset as usize - 16) / 8] >> (offset % 8 * 8)) as u32;
    let (mut at, mut loaded) = (0, 0);
    loop {
        let it = &program[at];
        at += 1;
        let jump = match u32::from(it.code) {
            RETURN => return it.k,
            LOAD => {
                loaded = match it.k {
                    0 => number as u32,
                    4 => arch,
                    offset => half(offset),
                };
                continue;
            }
            AND => {
                loaded &= it.k;
                continue;
            }
            ALWAYS => {
                at += it.k as usize;
                continue;
            }
            EQUAL => loaded == it.k,
            ABOVE => loaded > it.k,
            AT_LEAST => loaded >= it.k,
            ANY_BIT => loaded & it.k != 0,
            other => panic!("unknown instruction {other}"),
        };
        at += usize::from(if jump { it.jt } else { it.jf });
    }
}
