//! The links of a page of HTML, changed as the page flows by: what is not a link stays as it is, byte for byte, and no more
//! than one tag is ever held.

use super::links::Links;

/// A longer tag goes by unread.
const LONGEST_TAG: usize = 64 << 10;
/// Elements with text in them that is no HTML.
const RAW: [&str; 9] = ["iframe", "noembed", "noframes", "plaintext", "script", "style", "textarea", "title", "xmp"];

/// Whether this attribute of this tag is a link.
fn is_link(tag: &str, attribute: &str) -> bool {
    match tag {
        "a" | "area" | "base" | "link" => attribute == "href",
        "applet" => attribute == "codebase",
        "audio" | "embed" | "script" | "source" => attribute == "src",
        "blockquote" | "del" | "ins" | "q" => attribute == "cite",
        "body" => attribute == "background",
        "button" => attribute == "formaction",
        "command" => attribute == "icon",
        "form" => attribute == "action",
        "frame" | "iframe" => matches!(attribute, "longdesc" | "src"),
        "head" => attribute == "profile",
        "html" => attribute == "manifest",
        "img" => matches!(attribute, "longdesc" | "src" | "usemap"),
        "input" => matches!(attribute, "src" | "usemap" | "formaction"),
        "object" => matches!(attribute, "classid" | "codebase" | "data" | "usemap"),
        "video" => matches!(attribute, "poster" | "src"),
        _ => false,
    }
}

#[derive(Clone, Copy)]
enum State {
    Text,
    /// After `<`.
    Open,
    /// After `<!`, with so many dashes.
    Bang(u8),
    /// In what ends with `>`.
    Markup,
    /// In a comment, after so many dashes.
    Comment(u8),
    Tag(Within),
    /// In the text of such an element: so much of its end has come.
    Raw(&'static str, usize),
}

/// Where in a tag.
#[derive(Clone, Copy, PartialEq)]
enum Within {
    Names,
    /// After `=`.
    Equals,
    Unquoted,
    Quoted(u8),
}

/// A page on its way.
pub(super) struct Page {
    links: Links,
    state: State,
    /// What is not decided about.
    held: Vec<u8>,
}

impl Page {
    pub(super) fn new(links: Links) -> Self {
        Self { links, state: State::Text, held: Vec::new() }
    }

    /// Takes the next piece, and adds to `out` what is decided about by then.
    pub(super) fn take(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        for byte in piece {
            self.byte(*byte, out);
        }
    }

    /// The page ends here.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        match self.state {
            State::Text if byte == b'<' => {
                self.held.push(byte);
                self.state = State::Open;
            }
            State::Text => out.push(byte),
            State::Open => match byte {
                b'a'..=b'z' | b'A'..=b'Z' => {
                    self.held.push(byte);
                    self.state = State::Tag(Within::Names);
                }
                _ => {
                    out.append(&mut self.held);
                    self.state = match byte {
                        b'!' => State::Bang(0),
                        b'/' | b'?' => State::Markup,
                        _ => State::Text,
                    };
                    match self.state {
                        State::Text => self.byte(byte, out),
                        _ => out.push(byte),
                    }
                }
            },
            State::Bang(dashes) => {
                out.push(byte);
                self.state = match (byte, dashes) {
                    (b'-', 0) => State::Bang(1),
                    // `<!-->` is a comment as a whole.
                    (b'-', _) => State::Comment(2),
                    (b'>', _) => State::Text,
                    _ => State::Markup,
                };
            }
            State::Markup => {
                out.push(byte);
                if byte == b'>' {
                    self.state = State::Text;
                }
            }
            State::Comment(dashes) => {
                out.push(byte);
                self.state = match byte {
                    b'-' => State::Comment(dashes.saturating_add(1)),
                    b'>' if dashes >= 2 => State::Text,
                    b'!' if dashes >= 2 => State::Comment(dashes),
                    _ => State::Comment(0),
                };
            }
            State::Tag(within) => self.in_tag(within, byte, out),
            State::Raw(name, come) => self.in_raw(name, come, byte, out),
        }
    }

    fn in_tag(&mut self, within: Within, byte: u8, out: &mut Vec<u8>) {
        self.held.push(byte);
        let next = match (within, byte) {
            (Within::Quoted(quote), byte) if byte != quote => within,
            (Within::Quoted(_), _) => Within::Names,
            (_, b'>') => {
                let name = self.tag(out);
                self.held.clear();
                let raw = RAW.into_iter().find(|it| *it == name);
                self.state = raw.map_or(State::Text, |name| State::Raw(name, 0));
                return;
            }
            (Within::Names, b'=') => Within::Equals,
            (Within::Equals, b'"' | b'\'') => Within::Quoted(byte),
            (Within::Equals | Within::Unquoted, byte) if byte.is_ascii_whitespace() => match within {
                Within::Equals => Within::Equals,
                _ => Within::Names,
            },
            (Within::Equals | Within::Unquoted, _) => Within::Unquoted,
            (Within::Names, _) => Within::Names,
        };
        self.state = State::Tag(next);
        if self.held.len() > LONGEST_TAG {
            out.append(&mut self.held);
            self.state = State::Markup;
        }
    }

    fn in_raw(&mut self, name: &'static str, come: usize, byte: u8, out: &mut Vec<u8>) {
        out.push(byte);
        let expected = match come {
            0 => Some(b'<'),
            1 => Some(b'/'),
            _ => name.as_bytes().get(come - 2).copied(),
        };
        self.state = match expected {
            Some(expected) if byte.eq_ignore_ascii_case(&expected) => State::Raw(name, come + 1),
            None if byte == b'>' => State::Text,
            None if byte == b'/' || byte.is_ascii_whitespace() => State::Markup,
            _ if byte == b'<' => State::Raw(name, 1),
            _ => State::Raw(name, 0),
        };
    }

    /// Writes the tag that is held, whole, with its links led through the proxy. Returns its name.
    fn tag(&self, out: &mut Vec<u8>) -> String {
        let tag = self.held.as_slice();
        let name_end = tag.iter().position(|it| it.is_ascii_whitespace() || matches!(it, b'/' | b'>'));
        let name_end = name_end.unwrap_or(tag.len());
        let lower = |from: usize, to: usize| {
            String::from_utf8_lossy(tag.get(from..to).unwrap_or_default()).to_ascii_lowercase()
        };
        let name = lower(1, name_end);
        let (mut at, mut copied) = (name_end, 0);
        let byte = |at: usize| tag.get(at).copied();
        while let Some(here) = byte(at) {
            if here.is_ascii_whitespace() || matches!(here, b'/' | b'>') {
                at += 1;
                continue;
            }
            let attribute = at;
            // A name may begin with `=`, as browsers have it.
            at += 1;
            while byte(at).is_some_and(|it| !it.is_ascii_whitespace() && !matches!(it, b'=' | b'/' | b'>')) {
                at += 1;
            }
            let attribute = lower(attribute, at);
            while byte(at).is_some_and(|it| it.is_ascii_whitespace()) {
                at += 1;
            }
            if byte(at) != Some(b'=') {
                continue;
            }
            at += 1;
            while byte(at).is_some_and(|it| it.is_ascii_whitespace()) {
                at += 1;
            }
            let quote = byte(at).filter(|it| matches!(it, b'"' | b'\''));
            at += usize::from(quote.is_some());
            let value = at;
            while byte(at).is_some_and(|it| match quote {
                Some(quote) => it != quote,
                None => !it.is_ascii_whitespace() && it != b'>',
            }) {
                at += 1;
            }
            if is_link(&name, &attribute)
                && let Some(led) =
                    tag.get(value..at).and_then(|it| str::from_utf8(it).ok()).and_then(|it| self.links.led(it))
            {
                out.extend_from_slice(tag.get(copied..value).unwrap_or_default());
                out.extend_from_slice(led.as_bytes());
                copied = at;
            }
            at += usize::from(quote.is_some());
        }
        out.extend_from_slice(tag.get(copied..).unwrap_or_default());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        Page::new(Links { prefix: "/p".into(), address: "10.0.0.1".into(), host: String::new() })
    }

    /// In pieces of every size: what comes out is the same.
    fn changed(html: &str) -> String {
        let mut all: Vec<String> = (1..=html.len())
            .map(|size| {
                let (mut page, mut out) = (page(), Vec::new());
                html.as_bytes().chunks(size).for_each(|piece| page.take(piece, &mut out));
                page.end(&mut out);
                String::from_utf8(out).unwrap()
            })
            .collect();
        all.dedup();
        assert_eq!(all.len(), 1, "{all:?}");
        all.pop().unwrap()
    }

    #[test]
    fn links_are_changed_and_nothing_else() {
        for (html, want) in [
            ("<a href=/x>/x</a>", "<a href=/p/x>/x</a>"),
            ("<A\nHREF = '/x?a=1&amp;b' title=/x>", "<A\nHREF = '/p/x?a=1&amp;b' title=/x>"),
            ("<img alt=\">\" src=\"/i\"/><link href=/c/>", "<img alt=\">\" src=\"/p/i\"/><link href=/p/c/>"),
            ("<p href=/x><input src=/y formaction='/z'>", "<p href=/x><input src=/p/y formaction='/p/z'>"),
            ("<!-- <a href=/x> --><a href=/x>", "<!-- <a href=/x> --><a href=/p/x>"),
            ("<!--><a href=/x><!doctype html><a href=/x>", "<!--><a href=/p/x><!doctype html><a href=/p/x>"),
            (
                "<script src=/s>'<a href=/x></scrip'</SCRIPT ><a href=/x>",
                "<script src=/p/s>'<a href=/x></scrip'</SCRIPT ><a href=/p/x>",
            ),
            ("a < b <3 <<a href=/x>", "a < b <3 <<a href=/p/x>"),
            ("<a href=/unfinished", "<a href=/unfinished"),
            ("<a ==/x href href=/x =>", "<a ==/x href href=/p/x =>"),
            ("<?xml <a?><a href='http://10.0.0.1/x'>", "<?xml <a?><a href='/p/x'>"),
        ] {
            assert_eq!(changed(html), want);
        }
    }

    #[test]
    fn a_tag_without_end_is_not_held() {
        let (mut page, mut out) = (page(), Vec::new());
        page.take(b"<a href=/x ", &mut out);
        page.take(&vec![b'x'; 2 * LONGEST_TAG], &mut out);
        page.take(b"><a href=/x>", &mut out);
        assert_eq!(out.len(), 11 + 2 * LONGEST_TAG + 12 + 2);
        assert!(page.held.is_empty() && out.ends_with(b"><a href=/p/x>"));
    }
}
