//! Names for a machine: which it may know is what its rules allow; everything else does not exist.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::rules::{Rule, permit_name};

/// Longest query, and answers given at once.
const QUERY_MAX: u16 = 4096;
const QUERIES: usize = 64;
/// How long a query and its answer may take.
const QUERY_TIME: Duration = Duration::from_secs(10);
/// How long an answer may be remembered, in seconds: rules may change.
const TTL: u32 = 30;
/// Addresses in one answer.
const ADDRESSES: usize = 16;

/// Answers queries, one a connection (`u16` length, big-endian, and the message), until the process ends.
pub(super) async fn serve(listener: UnixListener, rules: Arc<Vec<Rule>>) {
    let room = Arc::new(Semaphore::new(QUERIES));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((guest, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let rules = Arc::clone(&rules);
        tokio::spawn(async move {
            // A guest that sends less than it said, or does not listen, gets no answer.
            let _ = tokio::time::timeout(QUERY_TIME, one(guest, &rules)).await;
            drop(permit);
        });
    }
}

async fn one(mut guest: UnixStream, rules: &[Rule]) -> std::io::Result<()> {
    let length = guest.read_u16().await?;
    if length > QUERY_MAX {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length.into()];
    guest.read_exact(&mut query).await?;
    let reply = answer(&query, rules).await;
    guest.write_u16(u16::try_from(reply.len()).map_err(std::io::Error::other)?).await?;
    guest.write_all(&reply).await
}

/// The reply to a query, whatever it is.
async fn answer(query: &[u8], rules: &[Rule]) -> Vec<u8> {
    let Ok(packet) = Packet::parse(query) else { return failure(query) };
    let [question] = &packet.questions[..] else { return failure(query) };
    let name = question.qname.to_string().to_ascii_lowercase();
    let mut reply = Packet::new_reply(packet.id());
    reply.set_flags(PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE);
    reply.questions.push(question.clone());
    match (permit_name(rules, &name), question.qtype) {
        (None, _) => *reply.rcode_mut() = RCODE::NameError,
        (Some(addresses), QTYPE::TYPE(kind @ (TYPE::A | TYPE::AAAA))) => {
            let Ok(found) = tokio::net::lookup_host((name.as_str(), 0)).await else { return failure(query) };
            let mut known: Vec<IpAddr> = found.map(|a| a.ip()).filter(|address| addresses.take(*address)).collect();
            known.sort_unstable();
            known.dedup();
            let data = known.into_iter().filter_map(|address| match (address, kind) {
                (IpAddr::V4(address), TYPE::A) => Some(RData::A(A { address: address.into() })),
                (IpAddr::V6(address), TYPE::AAAA) => Some(RData::AAAA(AAAA { address: address.into() })),
                _ => None,
            });
            for data in data.take(ADDRESSES) {
                reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data));
            }
        }
        // The name exists, with nothing of this kind.
        _ => {}
    }
    reply.build_bytes_vec().unwrap_or_else(|_| failure(query))
}

/// SERVFAIL, with what can be told of the query: its id.
fn failure(query: &[u8]) -> Vec<u8> {
    let id = query.first_chunk::<2>().copied().unwrap_or_default();
    // Response, recursion desired and available, SERVFAIL; nothing else.
    [id[0], id[1], 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0].to_vec()
}

#[cfg(test)]
mod tests {
    use simple_dns::{Name, QCLASS, Question};

    use super::*;

    fn query(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.questions.push(Question::new(
            Name::new_unchecked(name),
            QTYPE::TYPE(kind),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        packet.build_bytes_vec().unwrap()
    }

    async fn ask(rules: &[&str], name: &str, kind: TYPE) -> (RCODE, Vec<IpAddr>) {
        let rules: Vec<Rule> = rules.iter().map(|rule| Rule::parse(rule).unwrap()).collect();
        let reply = answer(&query(name, kind), &rules).await;
        let packet = Packet::parse(&reply).unwrap();
        assert_eq!(packet.id(), 7);
        let addresses = packet.answers.iter().map(|record| match &record.rdata {
            RData::A(a) => IpAddr::V4(a.address.into()),
            RData::AAAA(a) => IpAddr::V6(a.address.into()),
            other => panic!("{other:?}"),
        });
        (packet.rcode(), addresses.collect())
    }

    #[tokio::test]
    async fn only_allowed_names_exist() {
        assert_eq!(ask(&["localhost:80"], "localhost", TYPE::A).await, (RCODE::NoError, vec![[127, 0, 0, 1].into()]));
        assert_eq!(ask(&["localhost:80"], "LOCALHOST", TYPE::MX).await, (RCODE::NoError, vec![]));
        for (rules, name) in [
            (vec![], "localhost"),
            (vec!["example.org"], "localhost"),
            (vec!["*.example.org"], "example.org"),
            (vec!["*.example.org"], "badexample.org"),
            (vec!["127.0.0.1:80"], "localhost"),
        ] {
            assert_eq!(ask(&rules, name, TYPE::A).await.0, RCODE::NameError, "{rules:?} {name}");
        }
        // Allowed by a rule that means nobody on this host.
        assert_eq!(ask(&["*:*"], "localhost", TYPE::A).await, (RCODE::NoError, vec![]));
    }

    #[tokio::test]
    async fn nonsense_is_answered_too() {
        let whole = query("localhost", TYPE::A);
        for bad in [&b""[..], b"\x01", b"\x01\x02", &whole[..whole.len() - 3], &[0xff; 600]] {
            let reply = answer(bad, &[]).await;
            assert_eq!(reply[3] & 0x0f, 2, "SERVFAIL for {bad:?}");
            assert_eq!(
                reply[..2],
                [bad.first().copied().unwrap_or(0) * u8::from(bad.len() > 1), bad.get(1).copied().unwrap_or(0)]
            );
        }
    }
}
