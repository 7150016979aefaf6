//! Calls by each way of linking, and straight on wasmtime, in turns.
//!
//! `shipote-link-beside ROUNDS` prints a line of JSON for each case: `id`, and `wall` and `cpu`, nanoseconds of one call in
//! each round. All of them add one to a `u32`, in a component called by the host or by another component.

mod ours;
mod plain;
mod theirs;

use std::hint::black_box;
use std::time::Instant;

/// Calls a round.
const CALLS: u32 = 20_000;
/// Answers its argument and one.
const ADD: &str = r#"(component
  (core module $m (func (export "f") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1))))
  (core instance $i (instantiate $m))
  (func $f (param "n" u32) (result u32) (canon lift (core func $i "f")))
  (instance $e (export "value" (func $f)))
  (export "my:test/leaf" (instance $e)))"#;

/// Calls the other component through its socket and returns what it says; `cases` are those of the error.
fn caller(cases: &str) -> String {
    format!(
        r#"(component
  (type $call-error (variant {cases}))
  (import "my:test/leaf" (instance $leaf
    (type $e' (variant {cases}))
    (export "call-error" (type $e (eq $e')))
    (type $r (result u32 (error $e)))
    (export "value" (func (param "n" u32) (result $r)))))
  (core module $memory (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096)))
  (core instance $mem (instantiate $memory))
  (alias core export $mem "memory" (core memory $memory))
  (alias core export $mem "realloc" (core func $realloc))
  (core func $value (canon lower (func $leaf "value") (memory $memory) (realloc $realloc)))
  (core module $m (import "leaf" "value" (func $value (param i32 i32))) (import "mem" "memory" (memory 1))
    (func (export "f") (param i32) (result i32)
      (call $value (local.get 0) (i32.const 16)) (i32.load offset=4 (i32.const 16))))
  (core instance $i (instantiate $m (with "leaf" (instance (export "value" (func $value)))) (with "mem" (instance $mem))))
  (func $f (param "n" u32) (result u32) (canon lift (core func $i "f")))
  (instance $e (export "run" (func $f)))
  (export "my:app/root" (instance $e)))"#
    )
}

/// One way to call.
struct Case {
    id: &'static str,
    call: Box<dyn FnMut(u32) -> u32>,
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Case {
    fn new(id: &'static str, call: impl FnMut(u32) -> u32 + 'static) -> Self {
        Self { id, call: Box::new(call), wall: Vec::new(), cpu: Vec::new() }
    }
}

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(9);
    let mut cases: Vec<Case> = [plain::cases(), ours::cases(), theirs::cases()].into_iter().flatten().collect();
    let count = cases.len();
    // The first round warms up; who begins changes from round to round.
    for round in 0..=rounds {
        for turn in 0..count {
            let case = &mut cases[(round + turn) % count];
            let (cpu, wall) = (cpu(), Instant::now());
            for n in 0..CALLS {
                assert_eq!(black_box((case.call)(black_box(n))), n + 1, "{}", case.id);
            }
            case.wall.push(wall.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS));
            case.cpu.push((self::cpu() - cpu) / f64::from(CALLS));
        }
    }
    for case in cases {
        println!("{{\"id\": {:?}, \"wall\": {:?}, \"cpu\": {:?}}}", case.id, case.wall, case.cpu);
    }
}

/// Processor time of this thread, nanoseconds (/proc/thread-self/schedstat, its first field).
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(f64::NAN)
}
