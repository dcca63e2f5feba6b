//! Questions and answers as they are sent (RFC 1035, RFC 6891): of a question only what we answer is read.

use super::zone::{Data, Found, Kind, Record, Zone};

/// The longest datagram that is sent to who can read it, and to who has said nothing.
pub(super) const DATAGRAM: usize = 1232;
const PLAIN: usize = 512;
/// How long an answer may be remembered, in seconds.
const TTL: u32 = 5;
const HEADER: usize = 12;

const IN: u16 = 1;
const ANY: u16 = 255;
const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const PTR: u16 = 12;
const SRV: u16 = 33;
const OPT: u16 = 41;

const FORMAT: u16 = 1;
const NO_SUCH_NAME: u16 = 3;
const NOT_DONE: u16 = 4;
const REFUSED: u16 = 5;

struct Question {
    /// In lower case, without the last dot.
    name: String,
    kind: u16,
    class: u16,
    /// The longest datagram that the asker reads, if it says so; and the version in which.
    options: Option<(u16, u8)>,
    /// Where in the message it ends.
    end: usize,
}

/// The answer to a message. None when it is not even a question. `most`: bytes of an answer, at the most; what is longer is
/// cut off, and asked for again over a stream. `turn`: which of several addresses comes first.
pub(super) fn answer(zone: &Zone, message: &[u8], most: Option<usize>, turn: usize) -> Option<Vec<u8>> {
    let id = half(message, 0)?;
    let flags = half(message, 2)?;
    if message.len() < HEADER || flags & 0x8000 != 0 {
        return None;
    }
    // It is an answer; operation and wish for recursion as they came.
    let head = 0x8000 | (flags & 0x7900);
    if flags & 0x7800 != 0 {
        return Some(Answer::new(id, head | NOT_DONE).0);
    }
    let Some(question) = read(message) else { return Some(Answer::new(id, head | FORMAT).0) };
    let limit = match (most, question.options) {
        (None, _) => usize::from(u16::MAX),
        (Some(most), Some((size, _))) => usize::from(size).clamp(PLAIN, most),
        (Some(_), None) => PLAIN,
    };
    let asked = message.get(HEADER..question.end).unwrap_or_default();
    let found = match question.options {
        // Of versions that do not exist yet nothing else is known.
        Some((_, version)) if version > 0 => Found::Nothing,
        _ if question.class != IN && question.class != ANY => Found::NotOurs,
        _ => zone.find(&question.name, kind(question.kind), turn),
    };
    // What we know, we know from the source.
    let known = head | 0x0400;
    let mut out = match &found {
        Found::NotOurs => Answer::new(id, head | REFUSED),
        Found::NoSuchName => Answer::new(id, known | NO_SUCH_NAME),
        Found::Nothing | Found::Records(..) => Answer::new(id, known),
    };
    out.ask(asked);
    let start = out.0.len();
    let room = limit - if question.options.is_some() { 11 } else { 0 };
    match found {
        Found::Records(records, more) => {
            let fits = records.iter().all(|it| out.record(it, 6) && out.0.len() <= room);
            if !fits {
                out.0.truncate(start);
                out.count(6, 0);
                out.flag(0x0200);
            } else {
                let before = (out.0.len(), out.counted(10));
                let fits = more.iter().all(|it| out.record(it, 10) && out.0.len() <= room);
                if !fits {
                    // Whoever wants them asks.
                    out.0.truncate(before.0);
                    out.count(10, before.1);
                }
            }
        }
        Found::Nothing | Found::NoSuchName => out.authority(),
        Found::NotOurs => {}
    }
    if let Some((_, version)) = question.options {
        out.options(if version > 0 { 1 } else { 0 });
    }
    Some(out.0)
}

/// Whether it can be sent as a name.
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(|it| (1..=63).contains(&it.len()))
}

fn kind(number: u16) -> Kind {
    match number {
        A => Kind::Address,
        CNAME => Kind::Alias,
        PTR => Kind::Pointer,
        SRV => Kind::Port,
        ANY => Kind::Any,
        _ => Kind::Other,
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_be_bytes)
}

/// Reads a message with one question.
fn read(message: &[u8]) -> Option<Question> {
    let [questions, answers, authorities, more] = [4, 6, 8, 10].map(|at| half(message, at).unwrap_or_default());
    if questions != 1 {
        return None;
    }
    let (name, at) = name(message, HEADER)?;
    let (kind, class, end) = (half(message, at)?, half(message, at + 2)?, at + 4);
    let mut options = None;
    // Options come first where nothing is before them: no resolver sends anything else.
    if answers == 0
        && authorities == 0
        && more > 0
        && message.get(end) == Some(&0)
        && half(message, end + 1) == Some(OPT)
    {
        options = Some((half(message, end + 3)?, *message.get(end + 6)?));
    }
    Some(Question { name, kind, class, options, end })
}

/// A name that is written out, and where it ends. In a question there is nothing that it could refer to.
fn name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        let label = message.get(at..at + length).filter(|_| length <= 63)?;
        at += length;
        if name.len() + length + 1 > 254 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        // A dot or a byte beyond ASCII within a label: no name here has one, and none is to look as if.
        name.extend(label.iter().map(|it| match it {
            b'.' => '\u{fffd}',
            it if it.is_ascii() => char::from(it.to_ascii_lowercase()),
            _ => '\u{fffd}',
        }));
    }
}

struct Answer(Vec<u8>);

impl Answer {
    fn new(id: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(PLAIN);
        bytes.extend(id.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.resize(HEADER, 0);
        Self(bytes)
    }

    fn flag(&mut self, flag: u16) {
        let flags = half(&self.0, 2).unwrap_or_default() | flag;
        self.write(2, flags);
    }

    fn write(&mut self, at: usize, value: u16) {
        if let Some(place) = self.0.get_mut(at..at + 2) {
            place.copy_from_slice(&value.to_be_bytes());
        }
    }

    fn counted(&self, at: usize) -> u16 {
        half(&self.0, at).unwrap_or_default()
    }

    fn count(&mut self, at: usize, count: u16) {
        self.write(at, count);
    }

    fn more(&mut self, at: usize) {
        self.count(at, self.counted(at).saturating_add(1));
    }

    /// Repeats the question.
    fn ask(&mut self, asked: &[u8]) {
        self.0.extend(asked);
        self.more(4);
    }

    fn name(&mut self, name: &str) {
        for label in name.split('.').filter(|it| !it.is_empty()) {
            let length = label.len().min(63);
            self.0.push(length as u8);
            self.0.extend(label.bytes().take(length));
        }
        self.0.push(0);
    }

    fn head(&mut self, name: &str, kind: u16, data: &[u8]) {
        self.name(name);
        self.0.extend(kind.to_be_bytes());
        self.0.extend(IN.to_be_bytes());
        self.0.extend(TTL.to_be_bytes());
        self.0.extend((data.len() as u16).to_be_bytes());
        self.0.extend(data);
    }

    /// Adds a record to the section whose count is at this place. Always true.
    fn record(&mut self, record: &Record, section: usize) -> bool {
        let named = |before: &[u8], name: &str| {
            let mut bytes = Answer(before.to_vec());
            bytes.name(name);
            bytes.0
        };
        let (kind, data) = match &record.data {
            Data::Address(address) => (A, address.octets().to_vec()),
            Data::Alias(to) => (CNAME, named(&[], to)),
            Data::Pointer(to) => (PTR, named(&[], to)),
            // All are as good as each other.
            Data::Port { port, target } => {
                let [high, low] = port.to_be_bytes();
                (SRV, named(&[0, 0, 0, 100, high, low], target))
            }
        };
        self.head(&record.name, kind, &data);
        self.more(section);
        true
    }

    /// Says for how long nothing may be taken to be nothing.
    fn authority(&mut self) {
        let mut data = Answer(Vec::new());
        data.name("ns.dns.cluster.local");
        data.name("hostmaster.cluster.local");
        for number in [1, 7200, 1800, 86400, TTL] {
            data.0.extend(number.to_be_bytes());
        }
        self.head("cluster.local", SOA, &data.0);
        self.more(8);
    }

    /// `high`: the upper bits of the result; 1 there means that we do not know this version.
    fn options(&mut self, high: u8) {
        self.0.push(0);
        self.0.extend(OPT.to_be_bytes());
        self.0.extend((DATAGRAM as u16).to_be_bytes());
        self.0.extend([high, 0, 0, 0, 0, 0]);
        self.more(10);
    }
}
