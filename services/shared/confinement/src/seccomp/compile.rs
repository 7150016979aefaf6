//! From a table of verdicts to a BPF program: the architecture is checked, then the number is
//! searched for in a balanced tree of ranges, then arguments are looked at where a call needs it.
//!
//! The layout of `struct seccomp_data` is in `linux/seccomp.h`: number at 0, architecture at 4,
//! arguments of 64 bits from 16 on, low half first on the little-endian machines we build for.

use libc::sock_filter;

use super::Filter;
use crate::Error;

const LD_ABS: u16 = 0x20;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
pub(super) const RET: u16 = 0x06;

const NUMBER: u32 = 0;
const ARCH: u32 = 4;

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("seccomp filters are written for x86_64 and aarch64");

/// What becomes of one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is made.
    Allow,
    /// It fails with this error number.
    Errno(i32),
    /// It depends on the low 32 bits of an argument.
    Argument(&'static Check),
}

/// A decision by one or two arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// Refused with the error where the argument has one of the bits.
    Without { argument: u32, bits: u32, errno: i32 },
    /// Refused with the error where the argument is one of the values.
    Not { argument: u32, values: &'static [u32], errno: i32 },
    /// Refused with the error where the argument is none of the values.
    Only { argument: u32, values: &'static [u32], errno: i32 },
    /// As `Only` for argument 0, where the last of the values demands argument 2 to be 0.
    Socket { families: &'static [u32], with_protocol_0: u32, errno: i32 },
}

/// Compiles a table of system call numbers, in any order; the last entry of a number counts.
pub(super) fn compile(table: &[(i64, Verdict)], otherwise: Verdict) -> Result<Filter, Error> {
    let mut program =
        vec![op(LD_ABS, ARCH), jump(JEQ, NATIVE, 1, 0), op(RET, libc::SECCOMP_RET_KILL_PROCESS), op(LD_ABS, NUMBER)];
    program.extend(search(&runs(table, otherwise)));
    Filter::new(program)
}

/// The table as ranges of equal verdict that cover every number from 0, by their first number.
fn runs(table: &[(i64, Verdict)], otherwise: Verdict) -> Vec<(u32, Verdict)> {
    let numbers: std::collections::BTreeMap<u32, Verdict> =
        table.iter().filter_map(|(number, verdict)| Some((u32::try_from(*number).ok()?, *verdict))).collect();
    let mut runs: Vec<(u32, Verdict)> = vec![(0, otherwise)];
    let mut push = |start: u32, verdict: Verdict| {
        if runs.last().is_some_and(|last| last.0 == start) {
            runs.pop();
        }
        if runs.last().is_none_or(|last| last.1 != verdict) {
            runs.push((start, verdict));
        }
    };
    for (number, verdict) in numbers {
        push(number, verdict);
        push(number + 1, otherwise);
    }
    runs
}

fn search(runs: &[(u32, Verdict)]) -> Vec<sock_filter> {
    if let [(_, verdict)] = runs {
        return leaf(*verdict);
    }
    let (below, from) = runs.split_at(runs.len() / 2);
    let pivot = from[0].0;
    let (below, from) = (search(below), search(from));
    let mut program = match u8::try_from(below.len()) {
        Ok(over) => vec![jump(JGE, pivot, over, 0)],
        // Conditional jumps reach 255 instructions only.
        Err(_) => vec![jump(JGE, pivot, 0, 1), op(JA, below.len() as u32)],
    };
    program.extend(below);
    program.extend(from);
    program
}

fn leaf(verdict: Verdict) -> Vec<sock_filter> {
    match verdict {
        Verdict::Allow => vec![allow()],
        Verdict::Errno(errno) => vec![deny(errno)],
        Verdict::Argument(Check::Without { argument, bits, errno }) => {
            vec![load_argument(*argument), jump(JSET, *bits, 0, 1), deny(*errno), allow()]
        }
        Verdict::Argument(Check::Not { argument, values, errno }) => {
            one_of(*argument, values, &[deny(*errno)], allow())
        }
        Verdict::Argument(Check::Only { argument, values, errno }) => {
            one_of(*argument, values, &[allow()], deny(*errno))
        }
        Verdict::Argument(Check::Socket { families, with_protocol_0, errno }) => {
            let mut program =
                vec![load_argument(0), jump(JEQ, *with_protocol_0, 0, 4), load_argument(2), jump(JEQ, 0, 0, 1)];
            program.extend([allow(), deny(*errno)]);
            program.extend(one_of(0, families, &[allow()], deny(*errno)));
            program
        }
    }
}

/// Loads the argument, then `hit` where it is one of the values and `miss` where not.
fn one_of(argument: u32, values: &[u32], hit: &[sock_filter], miss: sock_filter) -> Vec<sock_filter> {
    let mut program = vec![load_argument(argument)];
    for (index, value) in values.iter().enumerate() {
        // Over the comparisons left, and over `miss`.
        let over = (values.len() - index - 1 + 1) as u8;
        program.push(jump(JEQ, *value, over, 0));
    }
    program.push(miss);
    program.extend_from_slice(hit);
    program
}

fn allow() -> sock_filter {
    op(RET, libc::SECCOMP_RET_ALLOW)
}

fn deny(errno: i32) -> sock_filter {
    op(RET, libc::SECCOMP_RET_ERRNO | (errno as u32 & libc::SECCOMP_RET_DATA))
}

fn load_argument(argument: u32) -> sock_filter {
    op(LD_ABS, 16 + 8 * argument)
}

fn op(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// What a filter of ours returns for a call, as the kernel would find it; `arch` None stands for the native one.
pub(super) fn interpret(filter: &Filter, arch: Option<u32>, number: u32, arguments: [u64; 6]) -> u32 {
    let load = |offset: u32| match offset {
        NUMBER => number,
        ARCH => arch.unwrap_or(NATIVE),
        other => (arguments[((other - 16) / 8) as usize] >> (8 * (other % 8))) as u32,
    };
    let (mut at, mut a) = (0, 0);
    loop {
        let op = filter.program[at];
        at += 1;
        let jumps = |holds: bool| usize::from(if holds { op.jt } else { op.jf });
        match op.code {
            LD_ABS => a = load(op.k),
            JA => at += op.k as usize,
            JEQ => at += jumps(a == op.k),
            JGE => at += jumps(a >= op.k),
            JSET => at += jumps(a & op.k != 0),
            RET => return op.k,
            // The compiler makes no other.
            _ => return libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

/// A filter's answers, for the tests of this module.
#[cfg(test)]
pub(super) mod machine {
    use super::*;

    /// None where the call is made, else its error number.
    pub(in super::super) fn errno(filter: &Filter, number: i64, arguments: [u64; 6]) -> Option<i32> {
        let answer = interpret(filter, None, number as u32, arguments);
        match answer & 0xffff_0000 {
            libc::SECCOMP_RET_ALLOW => None,
            libc::SECCOMP_RET_ERRNO => Some((answer & 0xffff) as i32),
            other => panic!("unexpected action {other:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::machine::errno;
    use super::*;

    const BITS: Check = Check::Without { argument: 1, bits: 0x6, errno: 7 };
    const NOT: Check = Check::Not { argument: 0, values: &[3, 5], errno: 8 };
    const ONLY: Check = Check::Only { argument: 5, values: &[3, 5, 9], errno: 9 };
    const SOCKET: Check = Check::Socket { families: &[1, 2], with_protocol_0: 16, errno: 10 };

    #[test]
    fn every_number_gets_its_verdict() {
        // Many runs, so that both kinds of jump occur.
        let table: Vec<_> = (0..900).filter(|n| n % 3 == 0).map(|n| (n, Verdict::Allow)).collect();
        let filter = compile(&table, Verdict::Errno(38)).unwrap();
        for number in 0..1000 {
            let expected = if number < 900 && number % 3 == 0 { None } else { Some(38) };
            assert_eq!(errno(&filter, number, [0; 6]), expected, "{number}");
        }
        assert_eq!(errno(&filter, 0x4000_0000, [0; 6]), Some(38));
        assert_eq!(errno(&filter, i64::from(u32::MAX), [0; 6]), Some(38));
    }

    #[test]
    fn arguments_decide() {
        let table = [
            (1, Verdict::Argument(&BITS)),
            (2, Verdict::Argument(&NOT)),
            (3, Verdict::Argument(&ONLY)),
            (4, Verdict::Argument(&SOCKET)),
        ];
        let filter = compile(&table, Verdict::Errno(38)).unwrap();
        let cases: [(i64, [u64; 6], Option<i32>); 14] = [
            (1, [6, 8, 6, 6, 6, 6], None),
            (1, [0, 2, 0, 0, 0, 0], Some(7)),
            (1, [0, 0x4_0000_0004, 0, 0, 0, 0], Some(7)),
            (2, [4, 0, 0, 0, 0, 0], None),
            (2, [3, 0, 0, 0, 0, 0], Some(8)),
            (2, [0xdead_0000_0005, 0, 0, 0, 0, 0], Some(8)),
            (3, [0, 0, 0, 0, 0, 3], None),
            (3, [0, 0, 0, 0, 0, 9], None),
            (3, [3, 5, 9, 3, 5, 4], Some(9)),
            (4, [1, 0, 5, 0, 0, 0], None),
            (4, [2, 0, 5, 0, 0, 0], None),
            (4, [16, 0, 0, 0, 0, 0], None),
            (4, [16, 0, 15, 0, 0, 0], Some(10)),
            (4, [38, 0, 0, 0, 0, 0], Some(10)),
        ];
        for (number, arguments, expected) in cases {
            assert_eq!(errno(&filter, number, arguments), expected, "{number} {arguments:?}");
        }
    }

    #[test]
    fn another_architecture_is_killed() {
        let filter = compile(&[(1, Verdict::Allow)], Verdict::Allow).unwrap();
        assert_eq!(interpret(&filter, Some(0x4000_0003), 1, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    }
}
