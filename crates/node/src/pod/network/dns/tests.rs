#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::message::answer;
use super::zone::Zone;

fn zone() -> Zone {
    let mut zone = Zone::default();
    let name = |it: &str| ("default".to_owned(), it.to_owned());
    let tcp = |name, number| [(name, "tcp".to_owned(), number)];
    zone.service(&name("web"), [10, 96, 0, 7].into(), &tcp("http", 80));
    zone.headless(&name("db"));
    zone.endpoint(&name("db"), Some("db-0"), [10, 70, 0, 5].into(), &tcp("sql", 5432));
    zone.endpoint(&name("db"), None, [10, 70, 0, 6].into(), &tcp("sql", 5432));
    zone.headless(&name("empty"));
    zone.alias(&name("out"), "Example.org.");
    zone.alias(&name("again"), "web.default.svc.cluster.local");
    zone.alias(&name("round"), "round.default.svc.cluster.local");
    zone
}

fn question(name: &str, kind: u16, options: Option<u16>) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(options.is_some())];
    for label in name.split('.').filter(|it| !it.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, (kind >> 8) as u8, kind as u8, 0, 1]);
    if let Some(size) = options {
        bytes.extend([0, 0, 41, (size >> 8) as u8, size as u8, 0, 0, 0, 0, 0, 0]);
    }
    bytes
}

/// An answer as a resolver reads it: result, whether it was cut off, and its records in words.
fn read(bytes: &[u8]) -> (u8, bool, Vec<String>) {
    let half = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    fn name(bytes: &[u8], at: &mut usize) -> String {
        let mut labels = Vec::new();
        while bytes[*at] != 0 {
            let length = usize::from(bytes[*at]);
            labels.push(String::from_utf8(bytes[*at + 1..=*at + length].to_vec()).unwrap());
            *at += length + 1;
        }
        *at += 1;
        labels.join(".")
    }
    assert_eq!((half(0), half(2) & 0x8100), (0xabcd, 0x8100));
    let mut at = 12;
    for _ in 0..half(4) {
        name(bytes, &mut at);
        at += 4;
    }
    let mut records = Vec::new();
    for _ in 0..half(6) + half(8) + half(10) {
        let owner = name(bytes, &mut at);
        let (kind, length) = (half(at), usize::from(half(at + 8)));
        at += 10;
        let end = at + length;
        records.push(match kind {
            1 => format!("{owner} A {}", Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..end]).unwrap())),
            5 => format!("{owner} CNAME {}", name(bytes, &mut at)),
            6 => format!("{owner} SOA"),
            12 => format!("{owner} PTR {}", name(bytes, &mut at)),
            33 => {
                let port = half(at + 4);
                at += 6;
                format!("{owner} SRV {port} {}", name(bytes, &mut at))
            }
            41 => "OPT".into(),
            other => format!("{other}"),
        });
        at = end;
    }
    assert_eq!(at, bytes.len());
    (bytes[3] & 15, bytes[2] & 2 != 0, records)
}

#[test]
fn names_are_those_of_services_and_endpoints() {
    let zone = zone();
    const OURS: &str = "default.svc.cluster.local";
    let own = |it: &str| format!("{it}.{OURS}");
    let ask = |name: &str, kind| read(&answer(&zone, &question(name, kind, None), Some(1232), 0).unwrap());
    let soa = vec!["cluster.local SOA".to_owned()];
    let (a, aaaa, srv, ptr) = (1, 28, 33, 12);
    for (name, kind, code, records) in [
        (own("web"), a, 0, vec![own("web") + " A 10.96.0.7"]),
        (own("WEB").to_uppercase(), a, 0, vec![own("web") + " A 10.96.0.7"]),
        (own("web"), aaaa, 0, soa.clone()),
        (own("nobody"), a, 3, soa.clone()),
        (own("empty"), a, 0, soa.clone()),
        ("svc.cluster.local".into(), a, 0, soa.clone()),
        ("cluster.local".into(), a, 0, soa.clone()),
        ("notcluster.local".into(), a, 5, vec![]),
        ("example.org".into(), a, 5, vec![]),
        (String::new(), a, 5, vec![]),
        (own("db"), a, 0, vec![own("db") + " A 10.70.0.5", own("db") + " A 10.70.0.6"]),
        (own("db-0.db"), a, 0, vec![own("db-0.db") + " A 10.70.0.5"]),
        (own("10-70-0-6.db"), a, 0, vec![own("10-70-0-6.db") + " A 10.70.0.6"]),
        (own("db-1.db"), a, 3, soa.clone()),
        (
            own("_http._tcp.web"),
            srv,
            0,
            vec![own("_http._tcp.web") + " SRV 80 " + &own("web"), own("web") + " A 10.96.0.7"],
        ),
        (
            own("_sql._tcp.db"),
            srv,
            0,
            vec![
                own("_sql._tcp.db") + " SRV 5432 " + &own("10-70-0-6.db"),
                own("_sql._tcp.db") + " SRV 5432 " + &own("db-0.db"),
                own("10-70-0-6.db") + " A 10.70.0.6",
                own("db-0.db") + " A 10.70.0.5",
            ],
        ),
        ("7.0.96.10.in-addr.arpa".into(), ptr, 0, vec!["7.0.96.10.in-addr.arpa PTR ".to_owned() + &own("web")]),
        ("5.0.70.10.in-addr.arpa".into(), ptr, 0, vec!["5.0.70.10.in-addr.arpa PTR ".to_owned() + &own("db-0.db")]),
        ("9.9.9.9.in-addr.arpa".into(), ptr, 5, vec![]),
        (own("out"), a, 0, vec![own("out") + " CNAME example.org"]),
        (own("again"), a, 0, vec![own("again") + " CNAME " + &own("web"), own("web") + " A 10.96.0.7"]),
        (own("round"), a, 0, vec![own("round") + " CNAME " + &own("round"); 4]),
        ("10-70-0-9.x.pod.cluster.local".into(), a, 0, vec!["10-70-0-9.x.pod.cluster.local A 10.70.0.9".into()]),
        ("10-70-0.x.pod.cluster.local".into(), a, 3, soa.clone()),
    ] {
        assert_eq!(ask(&name, kind), (code, false, records), "{name} {kind}");
    }
    let turned = read(&answer(&zone, &question(&own("db"), a, None), Some(1232), 1).unwrap()).2;
    assert_eq!(turned, [own("db") + " A 10.70.0.6", own("db") + " A 10.70.0.5"]);
}

#[test]
fn what_is_too_long_for_a_datagram_is_asked_for_over_a_stream() {
    let mut zone = Zone::default();
    let name = ("default".to_owned(), "many".to_owned());
    for it in 0..30 {
        zone.endpoint(&name, None, [10, 70, 0, it].into(), &[]);
    }
    let long = "many.default.svc.cluster.local";
    let ask = |options, most| {
        let answered = answer(&zone, &question(long, 1, options), most, 0).unwrap();
        let (code, cut, records) = read(&answered);
        (answered.len(), code, cut, records.len())
    };
    let (length, code, cut, count) = ask(None, Some(1232));
    assert!(length <= 512 && (code, cut, count) == (0, true, 0));
    let (length, code, cut, count) = ask(Some(60_000), Some(1232));
    assert!(length <= 1232 && (code, cut, count) == (0, true, 1));
    let (length, code, cut, count) = ask(None, None);
    assert!(length > 1232 && (code, cut, count) == (0, false, 30));
}

#[test]
fn what_is_no_question_is_not_answered_as_one() {
    let zone = zone();
    let asked = question("web.default.svc.cluster.local", 1, None);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut asked = asked.clone();
        change(&mut asked);
        answer(&zone, &asked, Some(1232), 0).map(|it| it[3] & 15)
    };
    assert_eq!(with(&|_| {}), Some(0));
    // Short; an answer; another operation; no and two questions; a reference; a name that does not end; another class.
    assert_eq!(with(&|it| it.truncate(11)), None);
    assert_eq!(with(&|it| it[2] |= 0x80), None);
    assert_eq!(with(&|it| it[2] |= 0x20), Some(4));
    assert_eq!(with(&|it| it[5] = 0), Some(1));
    assert_eq!(with(&|it| it[5] = 2), Some(1));
    assert_eq!(with(&|it| it[12] = 0xc0), Some(1));
    assert_eq!(with(&|it| it.truncate(20)), Some(1));
    assert_eq!(with(&|it| *it.last_mut().unwrap() = 3), Some(5));
    let longest = vec!["a".repeat(63); 4].join(".");
    assert_eq!(answer(&zone, &question(&longest, 1, None), Some(1232), 0).unwrap()[3] & 15, 1);
}

proptest! {
    #[test]
    fn no_message_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0usize..80, flip: u8) {
        let zone = zone();
        let mut asked = question("_sql._tcp.db.default.svc.cluster.local", 33, Some(1232));
        if let Some(byte) = asked.get_mut(at) {
            *byte ^= flip;
        }
        for message in [&bytes, &asked] {
            if let Some(answered) = answer(&zone, message, Some(1232), 3) {
                prop_assert!(answered.len() <= 1232 && answered[..2] == message[..2] && answered[2] & 0x80 != 0);
            }
        }
    }
}

#[test]
fn nothing_is_said_before_anything_is_known() {
    let names = super::Names::default();
    let asked = question("none.default.svc.cluster.local", 1, None);
    assert_eq!(names.answer(&asked, None, 0), None);
    names.set(zone());
    assert_eq!(read(&names.answer(&asked, None, 0).unwrap()).0, 3);
}
