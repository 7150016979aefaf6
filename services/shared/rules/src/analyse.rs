//! Which phase each rule needs, and in which order the rules of a listener are tried.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::error::{Problem, Problems, RuleProblem};
use crate::field::Phase;
use crate::listen::{ListenSpec, Transport};
use crate::middleware::Middleware;
use crate::rule::Rule;
use crate::tls::ListenerTls;

/// A rule and what it needs.
#[derive(Debug)]
pub(crate) struct Analysed {
    pub(crate) rule: Rule,
    /// The phase in which its match can be decided.
    pub(crate) decided: Phase,
    /// The phase in which it ends: [`Phase::Raw`] for a forward of bytes, else [`Phase::Request`] or later.
    pub(crate) ends: Phase,
}

/// A listener and its rules, by index, in the order in which they are tried.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) listen: ListenSpec,
    pub(crate) rules: Vec<usize>,
    pub(crate) proxied_by: Vec<IpNet>,
    pub(crate) tls: Option<ListenerTls>,
}

#[derive(Debug)]
pub(crate) struct AnalysedSet {
    pub(crate) rules: Vec<Analysed>,
    pub(crate) groups: Vec<Group>,
    pub(crate) files: Vec<PathBuf>,
}

/// Rules of one listener are tried by: their file's order; forwards of bytes that have a match before HTTP (they can
/// be decided earlier); later phase first, then more checks first (the more specific rule wins); then as written.
pub(crate) fn analyse(rules: Vec<Rule>) -> Result<AnalysedSet, Problems> {
    let mut problems = Vec::new();
    let mut files: Vec<PathBuf> = rules.iter().map(|r| r.file.clone()).collect();
    files.sort();
    files.dedup();
    let rules: Vec<Analysed> = rules
        .into_iter()
        .map(|rule| {
            let decided = rule.matches.as_ref().map_or(Phase::Raw, crate::Predicate::phase);
            let ends = rule.terminate.phase();
            if let Err(problem) = fits(&rule, decided, ends) {
                problems.push(problem.at(&rule.file, Some(&rule.name)));
            }
            Analysed { rule, decided, ends }
        })
        .collect();
    let mut by_address: BTreeMap<ListenSpec, Vec<usize>> = BTreeMap::new();
    for (i, analysed) in rules.iter().enumerate() {
        for listen in &analysed.rule.listen {
            by_address.entry(*listen).or_default().push(i);
        }
    }
    let mut acme: BTreeMap<&str, &[String]> = BTreeMap::new();
    for Rule { name, file, tls, .. } in rules.iter().map(|analysed| &analysed.rule) {
        let Some((names, first)) = tls.as_ref().and_then(|tls| tls.acme()).and_then(|n| Some((n, n.first()?))) else {
            continue;
        };
        if acme.insert(first, names).is_some_and(|others| others != names) {
            let message = format!("another rule lists other names after {first}, which can be first of one list only");
            problems.push(Problem::new("tls.acme", message).at(file, Some(name)));
        }
    }
    let mut groups = Vec::new();
    for (listen, mut members) in by_address {
        members.sort_by_key(|&i| sort_key(&rules[i], i));
        let tls = tls_of(&rules, &members, &mut problems);
        if let (Transport::Quic, Some(message)) = (listen.transport, quic(&rules, listen, tls.is_some())) {
            let rule = &rules[members[0]].rule;
            problems.push(Problem::new("listen", message).at(&rule.file, Some(&rule.name)));
        }
        let mut proxied_by: Vec<IpNet> =
            members.iter().flat_map(|&i| rules[i].rule.proxied_by.iter().copied()).collect();
        proxied_by.sort_unstable();
        proxied_by.dedup();
        groups.push(Group { listen, rules: members, proxied_by, tls });
    }
    if problems.is_empty() { Ok(AnalysedSet { rules, groups, files }) } else { Err(Problems(problems)) }
}

type SortKey = (i64, u8, std::cmp::Reverse<Phase>, std::cmp::Reverse<usize>, usize);

fn sort_key(analysed: &Analysed, index: usize) -> SortKey {
    let specificity = analysed.rule.matches.as_ref().map_or(0, crate::Predicate::specificity);
    let class = match (analysed.ends, specificity) {
        (Phase::Raw, 0) => 2,
        (Phase::Raw, _) => 0,
        _ => 1,
    };
    (analysed.rule.order, class, std::cmp::Reverse(analysed.decided), std::cmp::Reverse(specificity), index)
}

/// What a rule alone can get wrong about phases.
fn fits(rule: &Rule, decided: Phase, ends: Phase) -> Result<(), Problem> {
    if ends == Phase::Raw {
        if decided > Phase::Peek {
            let message = format!(
                "{} sends bytes on unread, so it can match only transport, remote.*, local.*, peek and tls.sni",
                rule.terminate.name()
            );
            return Err(Problem::new("match", message));
        }
        if let Some((middleware, _)) = rule.chain.iter().find(|(m, _)| !matches!(m, Middleware::Plugin { .. })) {
            let message =
                format!("{} reads HTTP, but {} sends bytes on unread", middleware.name(), rule.terminate.name());
            return Err(Problem::new("middleware_chain", message));
        }
        if rule.tls.is_some() {
            return Err(Problem::new("tls", "a forward of bytes does not decrypt; match tls.sni to forward by name"));
        }
    }
    for listen in &rule.listen {
        // Requests come over either; a rule that takes them reads `udp:` as HTTP/3.
        if listen.transport != rule.terminate.transport() && listen.transport != Transport::Quic {
            let message = match listen.transport {
                Transport::Udp | Transport::Quic => {
                    format!("{} cannot take datagrams; use udp_forward", rule.terminate.name())
                }
                Transport::Tcp => "udp_forward needs a listen address such as \"udp:53\"".to_owned(),
            };
            return Err(Problem::new("listen", message));
        }
    }
    if rule.listen.iter().any(|l| l.transport == Transport::Udp) && decided > Phase::Raw {
        return Err(Problem::new("match", "a rule for datagrams can match only transport, remote.* and local.*"));
    }
    Ok(())
}

/// What keeps requests from coming in over QUIC at this address.
fn quic(rules: &[Analysed], listen: ListenSpec, encrypted: bool) -> Option<String> {
    let address = listen.address;
    let forwards = |r: &Analysed| r.rule.listen.contains(&listen.socket());
    if !encrypted {
        return Some(format!(
            "udp:{address} with HTTP is HTTP/3, which needs a certificate: give this rule a tls section"
        ));
    }
    let other = &rules.iter().find(|r| forwards(r))?.rule.name;
    Some(format!("rule {other:?} forwards the datagrams of udp:{address}, so that HTTP/3 cannot be spoken there"))
}

fn tls_of(rules: &[Analysed], members: &[usize], problems: &mut Vec<RuleProblem>) -> Option<ListenerTls> {
    let with_tls: Vec<&Rule> = members.iter().map(|&i| &rules[i].rule).filter(|r| r.tls.is_some()).collect();
    let mut listener = ListenerTls::default();
    for (i, rule) in with_tls.iter().enumerate() {
        let added = rule.tls.as_ref().map_or(Ok(()), |tls| listener.add(tls, i == 0));
        if let Err(problem) = added {
            problems.push(problem.at(&rule.file, Some(&rule.name)));
        }
    }
    for &i in members {
        let analysed = &rules[i];
        let plain = with_tls.is_empty() && (Phase::Tls..Phase::Request).contains(&analysed.decided);
        if plain {
            let problem = Problem::new("match", "needs TLS, but no rule on this listener has a tls section");
            problems.push(problem.at(&analysed.rule.file, Some(&analysed.rule.name)));
        }
    }
    (!with_tls.is_empty()).then_some(listener)
}
