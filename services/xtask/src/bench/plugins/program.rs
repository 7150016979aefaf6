//! A program that does a block of work when it is told to.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::super::harness::Block;

/// Units that are looked at together: of one alone, a nanosecond would be much.
const TOGETHER: f64 = 1000.0;

/// The program, running.
pub(super) struct Program {
    pub(super) name: &'static str,
    child: Child,
    /// Taken, it ends the program.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Program {
    /// Starts it.
    pub(super) fn start(name: &'static str, path: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}; without --binaries it is built", path.display()))?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("read from the program")?);
        Ok(Self { name, child, orders, answers })
    }

    /// Has it do a block of `case`.
    pub(super) fn block(&mut self, case: &str) -> anyhow::Result<Block> {
        let orders = self.orders.as_mut().context("the program has ended")?;
        writeln!(orders, "{case}").with_context(|| format!("tell {} to do {case}", self.name))?;
        let mut line = String::new();
        self.answers.read_line(&mut line).with_context(|| format!("read from {}", self.name))?;
        parse(&line).with_context(|| format!("{} did not do {case}; its own words are above", self.name))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Err(error) = self.child.wait() {
            eprintln!("xtask: wait for {}: {error}", self.name);
        }
    }
}

/// Units, wall and CPU time in nanoseconds; as a thousand units.
fn parse(line: &str) -> anyhow::Result<Block> {
    let numbers: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [units, wall, cpu] = numbers[..] else { bail!("{line:?} is not units, wall time and CPU time") };
    if !(units >= 1.0 && wall > 0.0 && cpu > 0.0) {
        bail!("{line:?}: nothing was done, or in no time");
    }
    let each = |nanoseconds: f64| Duration::from_secs_f64(nanoseconds / 1e9 / units * TOGETHER);
    Ok(Block { walls: vec![each(wall)], cpu: each(cpu) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_thousand_units_time() {
        let block = parse("20000 2000000 1000000\n").unwrap();
        assert_eq!((block.walls, block.cpu), (vec![Duration::from_micros(100)], Duration::from_micros(50)));
        for bad in ["", "\n", "1 2", "0 1 1", "1 0 1", "1 1 0", "1 2 3 4", "one 2 3"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_program_that_ends_is_an_error_that_names_the_case() {
        let mut program = Program::start("true", Path::new("/bin/true")).unwrap();
        let error = format!("{:#}", program.block("typed").unwrap_err());
        assert!(error.contains("true") && error.contains("typed"), "{error}");
    }
}
