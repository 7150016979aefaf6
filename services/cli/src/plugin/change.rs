//! What changes a plugin that is there: outcomes, dry runs, and canaries.

use std::process::ExitCode;

use clap::Args;
use shipote_bus::plugins::{Options, PluginInfo, PluginsError, WHOLE};

use super::{manager, refusal};
use crate::output;

#[derive(Debug, Args)]
#[command(
    after_help = "The canary goes back by itself when it traps, overruns its deadline, runs out of fuel or is slower than its\npolicy allows ([plugins.NAME.canary]); a call that it breaks is made again with the version at work.\n\nExamples:\n  shipote plugin canary jwt@1.3.0 --share 5%\n  shipote plugin canary jwt@1.3.0 --share 50%\n  shipote plugin promote jwt"
)]
pub(crate) struct CanaryArgs {
    /// NAME@1.2.3, NAME@^1.2 or sha256:HEX
    plugin: String,
    /// Its share of the calls, more than 0 % and less than 100 %
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    share: u32,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  shipote plugin promote --dry-run jwt\n  shipote plugin promote jwt\n  shipote plugin abort jwt"
)]
pub(crate) struct EndArgs {
    /// Name
    name: String,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn canary(args: &CanaryArgs) -> anyhow::Result<ExitCode> {
    let CanaryArgs { plugin, share, dry_run, json } = args;
    if *dry_run {
        return plan("canary", plugin, Options::from([("share", (*share).into())]), *json).await;
    }
    done("began", manager().await?.canary(plugin, *share, Options::new()).await, *json)?;
    Ok(ExitCode::SUCCESS)
}

/// Ends a canary, by putting it to work or by taking its share away.
pub(super) async fn end(promote: bool, args: &EndArgs) -> anyhow::Result<ExitCode> {
    let EndArgs { name, dry_run, json } = args;
    if *dry_run {
        return plan(if promote { "promote" } else { "abort" }, name, Options::new(), *json).await;
    }
    let manager = manager().await?;
    if promote {
        done("promoted", manager.promote(name, Options::new()).await, *json)?;
    } else {
        done("aborted", manager.abort(name, Options::new()).await, *json)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A share as people write it (`5%`, `0.25 %`, `5`), in hundredths of a percent.
fn share(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim_end();
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = match (whole.parse::<u32>(), part.len()) {
        (Ok(whole), 1..=2) if digits(number.get(..1).unwrap_or_default()) && digits(part) => {
            let part: u32 = format!("{part:0<2}").parse().map_err(|e| format!("{e}"))?;
            whole.checked_mul(100).and_then(|whole| whole.checked_add(part))
        }
        _ => None,
    };
    let value = value.ok_or("write a percentage such as 5% or 0.25%")?;
    if (1..WHOLE).contains(&value) {
        Ok(value)
    } else {
        Err("a canary has more than 0 % and less than 100 %; `shipote plugin activate` gives it all".to_owned())
    }
}

/// A share for people.
pub(super) fn percent(share: u32) -> String {
    match share % 100 {
        0 => format!("{} %", share / 100),
        part => format!("{}.{} %", share / 100, format!("{part:02}").trim_end_matches('0')),
    }
}

/// What a change would do: 0 if it would be done, 1 if it would be refused.
pub(super) async fn plan(action: &str, reference: &str, options: Options<'_>, json: bool) -> anyhow::Result<ExitCode> {
    let plan = manager().await?.plan(action, reference, options).await.map_err(|error| refusal(&error))?;
    if json {
        output::json(&plan)?;
    } else if plan.refused.is_empty() {
        let version = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
        println!("{}: at work now {}, then {}", plan.name, version(&plan.from), version(&plan.to));
        if let Some(version) = &plan.removed {
            println!("  removes {} {version}", plan.name);
        }
        if !plan.canary.is_empty() {
            println!("  canary: {} with {}", plan.canary, percent(plan.share));
        }
        for (what, names) in [
            ("new exports", &plan.exports_added),
            ("exports that go", &plan.exports_removed),
            ("plugins that call it", &plan.used_by),
        ] {
            if !names.is_empty() {
                println!("  {what}: {}", names.join(", "));
            }
        }
    }
    if plan.refused.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if json { Ok(ExitCode::FAILURE) } else { Err(anyhow::anyhow!("{}", plan.refused)) }
}

pub(super) fn done(what: &str, outcome: Result<PluginInfo, PluginsError>, json: bool) -> anyhow::Result<()> {
    let plugin = outcome.map_err(|error| refusal(&error))?;
    if json {
        return output::json(&plugin);
    }
    println!("{}", told(what, &plugin));
    Ok(())
}

/// What became of a version, and of which one is at work.
fn told(what: &str, plugin: &PluginInfo) -> String {
    let PluginInfo { name, version, digest, .. } = plugin;
    let what = if plugin.known == Some(true) { "there already:" } else { what };
    let state = match plugin.share {
        0 if plugin.active => "at work".to_owned(),
        0 => {
            let is = match plugin.at_work.as_deref() {
                None => String::new(),
                Some("") => ", nor is another".to_owned(),
                Some(other) => format!("; {other} is"),
            };
            format!("not at work{is}; `shipote plugin activate {name}@{version}` puts it to work")
        }
        share => format!("canary with {} of the calls", percent(share)),
    };
    format!("{what} {name} {version} ({digest}), {state}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hands_in_a_version_hears_which_one_is_at_work() {
        let info = |active, at_work: &str, known, share| PluginInfo {
            name: "edge".to_owned(),
            version: "1.0.0".to_owned(),
            kind: "plugin".to_owned(),
            digest: "sha256:00".to_owned(),
            size: 1,
            added: 1,
            active,
            share,
            exports: Vec::new(),
            at_work: Some(at_work.to_owned()),
            known: Some(known),
        };
        let activate = "`shipote plugin activate edge@1.0.0` puts it to work";
        for (info, line) in [
            (info(true, "1.0.0", false, 0), "added edge 1.0.0 (sha256:00), at work".to_owned()),
            (info(true, "1.0.0", true, 0), "there already: edge 1.0.0 (sha256:00), at work".to_owned()),
            (
                info(false, "1.1.0", true, 0),
                format!("there already: edge 1.0.0 (sha256:00), not at work; 1.1.0 is; {activate}"),
            ),
            (
                info(false, "", false, 0),
                format!("added edge 1.0.0 (sha256:00), not at work, nor is another; {activate}"),
            ),
            (
                info(false, "1.1.0", true, 500),
                "there already: edge 1.0.0 (sha256:00), canary with 5 % of the calls".to_owned(),
            ),
        ] {
            assert_eq!(told("added", &info), line);
        }
    }

    #[test]
    fn shares_are_percentages_with_two_places() {
        for (text, value) in [("5%", 500), ("5 %", 500), ("5", 500), ("0.25%", 25), ("0.5%", 50), ("99.99", 9_999)] {
            assert_eq!(share(text), Ok(value), "{text}");
            assert_eq!(share(&percent(value)), Ok(value), "{text}");
        }
        for text in
            ["", "%", "0", "0%", "100%", "1.234%", "-5%", "+5", "5.%", ".5", "five", "5%%", "99999999999%", "1.+5"]
        {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
