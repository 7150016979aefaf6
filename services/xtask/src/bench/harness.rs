//! What every measurement shares: interleaved rounds, and the arithmetic from samples to a judged ratio.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// What one contender did in one round: some units of work.
#[derive(Debug, Default, Clone)]
pub(crate) struct Block {
    /// Wall time of each unit.
    pub(crate) walls: Vec<Duration>,
    /// CPU time of all units together, of every process that worked for them.
    pub(crate) cpu: Duration,
}

/// All rounds of one contender.
#[derive(Debug, Default, Clone)]
pub(crate) struct Series {
    walls: Vec<Duration>,
    /// Of one unit, one figure for each round.
    cpus: Vec<Duration>,
}

impl Series {
    /// Of rounds that somebody else had the contenders take in turns, one unit of work in each.
    pub(crate) fn of(walls: Vec<Duration>) -> Self {
        Series { cpus: walls.clone(), walls }
    }

    fn add(&mut self, block: Block) -> anyhow::Result<()> {
        let units = u32::try_from(block.walls.len()).context("count the units of a block")?;
        if units == 0 {
            bail!("a block without a unit of work");
        }
        self.cpus.push(block.cpu / units);
        self.walls.extend(block.walls);
        Ok(())
    }

    /// The same CPU time with other times in the place of those that were measured, such as the slowest of each round.
    pub(crate) fn with_walls(&self, walls: Vec<Duration>) -> Self {
        Series { walls, cpus: self.cpus.clone() }
    }

    /// Median wall time of a unit.
    pub(crate) fn wall(&self) -> Duration {
        median(&self.walls)
    }

    /// Wall time of the fastest unit.
    pub(crate) fn best(&self) -> Duration {
        self.walls.iter().min().copied().unwrap_or_default()
    }

    /// Wall time that all but the slowest hundredth of the units stay below.
    pub(crate) fn tail(&self) -> Duration {
        let mut sorted = self.walls.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
    }

    /// CPU time of a unit, median of the rounds.
    pub(crate) fn cpu(&self) -> Duration {
        median(&self.cpus)
    }

    /// Seconds of CPU that a unit takes beyond one of `other`: median of the rounds, in each of which both had their turns. What
    /// slows the machine down for some rounds is then no part of the difference.
    pub(crate) fn cpu_beyond(&self, other: &Series) -> f64 {
        let beyond = |(ours, theirs): (&Duration, &Duration)| ours.as_secs_f64() - theirs.as_secs_f64();
        let mut sorted: Vec<f64> = self.cpus.iter().zip(&other.cpus).map(beyond).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => 0.0,
            n if n % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }
}

/// The middle one; of an even number the mean of the two in the middle; of none, zero.
pub(crate) fn median(samples: &[Duration]) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => Duration::ZERO,
        n if n % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2,
    }
}

/// Lets every contender do a block in every round, so that what else the machine does meets all of them alike. Who
/// begins changes from round to round. A first round warms caches and is not counted.
pub(crate) fn interleave(
    rounds: u32,
    contenders: usize,
    mut block: impl FnMut(usize) -> anyhow::Result<Block>,
) -> anyhow::Result<Vec<Series>> {
    let mut all = vec![Series::default(); contenders];
    for round in 0..=rounds {
        for turn in 0..contenders {
            let contender = (round as usize + turn) % contenders;
            let done = block(contender)?;
            if round > 0 {
                all[contender].add(done)?;
            }
        }
    }
    Ok(all)
}

/// Which way a ratio should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
}

impl Better {
    /// Whether a ratio is as good as its target. What is not a number never is.
    pub(crate) fn met(self, ratio: f64, target: f64) -> bool {
        match self {
            Better::Lower => ratio <= target,
            Better::Higher => ratio >= target,
        }
    }
}

/// The figure that a target is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Median wall time, ours by theirs.
    Time,
    /// Throughput of the fastest round, ours by theirs.
    Throughput,
    /// CPU time, ours by theirs.
    Cpu,
}

impl Figure {
    fn better(self) -> Better {
        if self == Figure::Throughput { Better::Higher } else { Better::Lower }
    }

    fn ratio(self, ours: &Series, theirs: &Series) -> f64 {
        match self {
            Figure::Time => quotient(ours.wall(), theirs.wall()),
            Figure::Throughput => quotient(theirs.best(), ours.best()),
            Figure::Cpu => quotient(ours.cpu(), theirs.cpu()),
        }
    }
}

fn quotient(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

/// One target: what is compared with what, and how good it has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    pub(crate) against: &'static str,
    pub(crate) figure: Figure,
    pub(crate) target: f64,
}

/// A judged claim: these fields are the JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) id: Cow<'static, str>,
    pub(crate) what: Cow<'static, str>,
    pub(crate) against: Cow<'static, str>,
    pub(crate) ratio: f64,
    pub(crate) better: Better,
    pub(crate) target: f64,
    pub(crate) met: bool,
    pub(crate) samples: usize,
    pub(crate) cpu_ratio: f64,
    /// For people only.
    #[serde(skip)]
    pub(crate) detail: Detail,
}

/// A row with what is for people: how a measurement in another machine hands it over.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Whole {
    row: Row,
    detail: Detail,
}

impl From<&Row> for Whole {
    fn from(row: &Row) -> Self {
        Self { row: row.clone(), detail: row.detail.clone() }
    }
}

impl From<Whole> for Row {
    fn from(whole: Whole) -> Self {
        Self { detail: whole.detail, ..whole.row }
    }
}

/// What a person wants to know beside the ratio.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Detail {
    /// Ours by theirs in wall time (throughput: theirs by ours), of medians and of the fastest.
    pub(crate) median_ratio: f64,
    pub(crate) best_ratio: f64,
    /// Medians of a unit.
    pub(crate) ours: Duration,
    pub(crate) theirs: Duration,
}

impl Claim {
    /// Holds the samples against the target.
    pub(crate) fn judge(&self, ours: &Series, theirs: &Series) -> anyhow::Result<Row> {
        let ratio = self.figure.ratio(ours, theirs);
        let cpu_ratio = Figure::Cpu.ratio(ours, theirs);
        if !ratio.is_finite() || !cpu_ratio.is_finite() {
            bail!("{}: no time passed in {} or {}; nothing was measured", self.id, self.what, self.against);
        }
        let higher = self.figure == Figure::Throughput;
        let of = |a: Duration, b: Duration| if higher { quotient(b, a) } else { quotient(a, b) };
        let better = self.figure.better();
        Ok(Row {
            id: self.id.into(),
            what: self.what.into(),
            against: self.against.into(),
            ratio,
            better,
            target: self.target,
            met: better.met(ratio, self.target),
            samples: if self.figure == Figure::Cpu { ours.cpus.len() } else { ours.walls.len() },
            cpu_ratio,
            detail: Detail {
                median_ratio: of(ours.wall(), theirs.wall()),
                best_ratio: of(ours.best(), theirs.best()),
                ours: if self.figure == Figure::Cpu { ours.cpu() } else { ours.wall() },
                theirs: if self.figure == Figure::Cpu { theirs.cpu() } else { theirs.wall() },
            },
        })
    }
}

/// A figure held against a budget instead of a rival: `ratio` is the part of the budget that is used.
pub(crate) fn budget(id: &'static str, what: &'static str, budget: &'static str, ratio: f64, samples: usize) -> Row {
    Row {
        id: id.into(),
        what: what.into(),
        against: budget.into(),
        ratio,
        better: Better::Lower,
        target: 1.0,
        met: Better::Lower.met(ratio, 1.0),
        samples,
        cpu_ratio: ratio,
        detail: Detail::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn series(walls: &[u64], cpus: &[u64]) -> Series {
        Series { walls: walls.iter().map(|n| ms(*n)).collect(), cpus: cpus.iter().map(|n| ms(*n)).collect() }
    }

    fn claim(figure: Figure, target: f64) -> Claim {
        Claim { id: "id", what: "what", against: "against", figure, target }
    }

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        for (samples, middle) in
            [(&[][..], ms(0)), (&[7], ms(7)), (&[9, 1, 5], ms(5)), (&[8, 2, 4, 6], ms(5)), (&[1, 1, 1000], ms(1))]
        {
            assert_eq!(series(samples, &[]).wall(), middle, "{samples:?}");
        }
    }

    #[test]
    fn what_one_takes_beyond_another_is_told_round_by_round() {
        let plain = series(&[], &[40, 80, 41, 44]);
        for (cpus, beyond) in
            [(&[43, 84, 42, 49][..], 0.0035), (&[43, 84, 42], 0.003), (&[38, 77, 42, 44], -0.001), (&[], 0.0)]
        {
            assert!((series(&[], cpus).cpu_beyond(&plain) - beyond).abs() < 1e-9, "{cpus:?}");
        }
    }

    #[test]
    fn the_tail_is_the_ninety_ninth_of_a_hundred() {
        let walls: Vec<u64> = (1..=200).rev().collect();
        assert_eq!(series(&walls, &[]).tail(), ms(198));
        assert_eq!(series(&[5], &[]).tail(), ms(5));
        assert_eq!(series(&[], &[]).tail(), ms(0));
    }

    #[test]
    fn a_target_is_met_when_it_is_reached() {
        for (better, ratio, met) in [
            (Better::Lower, 1.0, true),
            (Better::Lower, 0.5, true),
            (Better::Lower, 1.001, false),
            (Better::Higher, 1.0, true),
            (Better::Higher, 1.5, true),
            (Better::Higher, 0.999, false),
            (Better::Lower, f64::NAN, false),
            (Better::Higher, f64::NAN, false),
        ] {
            assert_eq!(better.met(ratio, 1.0), met, "{better:?} {ratio}");
        }
    }

    #[test]
    fn time_is_compared_by_medians_throughput_by_the_fastest_cpu_by_rounds() {
        let (ours, theirs) = (series(&[20, 40, 90], &[3, 3, 30]), series(&[10, 20, 50], &[2, 2, 2]));
        let time = claim(Figure::Time, 2.0).judge(&ours, &theirs).unwrap();
        assert_eq!((time.ratio, time.better, time.met, time.samples), (2.0, Better::Lower, true, 3));
        assert_eq!((time.cpu_ratio, time.detail.best_ratio), (1.5, 2.0));
        let throughput = claim(Figure::Throughput, 0.6).judge(&ours, &theirs).unwrap();
        assert_eq!((throughput.ratio, throughput.better, throughput.met), (0.5, Better::Higher, false));
        let cpu = claim(Figure::Cpu, 1.4).judge(&ours, &theirs).unwrap();
        assert_eq!((cpu.ratio, cpu.better, cpu.met, cpu.detail.ours), (1.5, Better::Lower, false, ms(3)));
    }

    #[test]
    fn a_ratio_to_nothing_is_an_error_and_not_a_result() {
        let nothing = series(&[0], &[0]);
        assert!(claim(Figure::Time, 1.0).judge(&series(&[1], &[1]), &nothing).is_err());
        assert!(claim(Figure::Cpu, 1.0).judge(&series(&[1], &[1]), &series(&[1], &[])).is_err());
    }

    #[test]
    fn every_contender_has_every_round_and_the_first_round_does_not_count() {
        let mut order = Vec::new();
        let all = interleave(2, 3, |contender| {
            order.push(contender);
            Ok(Block { walls: vec![ms(order.len() as u64); 2], cpu: ms(10) })
        })
        .unwrap();
        assert_eq!(order, [0, 1, 2, 1, 2, 0, 2, 0, 1]);
        assert_eq!(all[0].walls, [ms(6), ms(6), ms(8), ms(8)]);
        assert_eq!(all[0].cpus, [ms(5), ms(5)], "CPU time is that of one unit");
        assert!(interleave(1, 1, |_| Ok(Block::default())).is_err(), "an empty block is no sample");
    }

    #[test]
    fn the_json_has_exactly_the_documented_keys() {
        let row = claim(Figure::Time, 2.0).judge(&series(&[2], &[2]), &series(&[1], &[1])).unwrap();
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"id": "id", "what": "what", "against": "against", "ratio": 2.0, "better": "lower",
                "target": 2.0, "met": true, "samples": 1, "cpu_ratio": 2.0})
        );
    }
}
