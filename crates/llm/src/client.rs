use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use jiff::fmt::rfc2822;
use kit::{ExposeSecret, SecretString};
use reqwest::{Response, Url};
use tokio::time::{Instant, timeout_at};

use crate::openai::{self, Ask, Assembly};
use crate::question::Question;
use crate::sse::Events;
use crate::{Completion, Error, Request, Usage};

/// An error's body is read no further than this.
const ERROR_BODY: usize = 64 * 1024;
/// A provider's own words are cut to this many bytes.
const WORDS: usize = 300;
/// JSON around an answer's text may take this many times the text's limit (escapes, usage, reasoning).
const WRAPPING: usize = 4;
/// Nobody is made to wait longer than this by a header.
const MAX_RETRY_AFTER: f64 = 86_400.0;

/// What an answer may cost us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until the first byte of the answer: a local model may have to be loaded, a large one may think before it speaks.
    pub first_byte: Duration,
    /// Between two pieces of an answer.
    pub idle: Duration,
    /// Text, tool names and arguments of one answer, in bytes. Reasoning is read over and not counted.
    pub answer: usize,
}

impl Default for Limits {
    /// Five minutes, two minutes, 4 MiB.
    fn default() -> Self {
        Self { first_byte: Duration::from_secs(300), idle: Duration::from_secs(120), answer: 4 << 20 }
    }
}

/// A model provider at one address with one key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: Url,
    /// The address as it may be shown: without what could be a secret in it.
    at: String,
    key: Option<Key>,
    limits: Limits,
    /// How this provider is asked, learned from its refusals.
    ask: Arc<AtomicU8>,
}

#[derive(Clone, Debug)]
struct Key {
    secret: SecretString,
    header: HeaderValue,
}

impl Client {
    /// `base_url` with or without trailing slash, and with or without `/chat/completions`; a query is kept. Without
    /// `key` (or with an empty one) no `Authorization` is sent, as local servers like it.
    ///
    /// # Errors
    /// [`Error::Provider`] when the address is no http(s) URL or the key cannot be sent in a header.
    pub fn new(base_url: &str, key: Option<SecretString>, http: reqwest::Client) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Provider(format!("baseURL is no address of a model provider: {why}"));
        let mut url = Url::parse(base_url.trim()).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("it begins neither with http:// nor with https://"));
        }
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix("/chat/completions").unwrap_or(path);
        url.set_path(&format!("{path}/chat/completions"));
        url.set_fragment(None);
        let at = format!("{}{}", url.origin().ascii_serialization(), url.path());
        let key = key.map(Key::new).transpose()?.flatten();
        let ask = Arc::new(AtomicU8::new(Ask::StreamWithUsage as u8));
        Ok(Self { http, url, at, key, limits: Limits::default(), ask })
    }

    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Asks once and returns the whole answer; `on` gets its text piece by piece as it arrives. Dropping the future
    /// closes the connection, which stops the model.
    ///
    /// Streaming is tried first. A provider that refuses `stream_options`, or streaming, is asked again at once
    /// without, and this client remembers.
    ///
    /// `spent` is what the question has cost so far, true at every moment, so also when this is dropped or fails: nothing
    /// until the question is sent, and nothing where it was refused or the connection failed without an answer; then the
    /// provider's figures, or an estimate as long as there are none.
    ///
    /// # Errors
    /// See [`Error::class`] for what may be tried again. `on` may have seen a part of an answer that then failed.
    pub async fn chat(
        &self,
        request: &Request,
        spent: &mut Usage,
        mut on: impl FnMut(&str),
    ) -> Result<Completion, Error> {
        let mut ask = match self.ask.load(Ordering::Relaxed) {
            it if it == Ask::Stream as u8 => Ask::Stream,
            it if it == Ask::Whole as u8 => Ask::Whole,
            _ => Ask::StreamWithUsage,
        };
        loop {
            *spent = Usage::default();
            let answer = self.once(request, ask, spent, &mut on).await;
            match &answer {
                Ok(completion) => {
                    *spent = completion.usage;
                    self.ask.store(ask as u8, Ordering::Relaxed);
                }
                Err(Error::Unreachable { .. } | Error::Stranger { .. }) => *spent = Usage::default(),
                Err(Error::Refused { status, said, .. }) => {
                    *spent = Usage::default();
                    if let Some(instead) = ask.instead(*status, said) {
                        tracing::debug!(at = self.at, ?instead, "the model provider refuses how it is asked");
                        ask = instead;
                        continue;
                    }
                }
                Err(_) => {}
            }
            return answer.map_err(|error| self.tidy(error));
        }
    }

    async fn once(
        &self,
        request: &Request,
        ask: Ask,
        spent: &mut Usage,
        on: &mut impl FnMut(&str),
    ) -> Result<Completion, Error> {
        let (question, sent) = Question::new(openai::request(request, ask).to_string());
        let mut asking = self
            .http
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, if ask == Ask::Whole { "application/json" } else { "text/event-stream, application/json" })
            .body(reqwest::Body::wrap(question));
        if let Some(key) = &self.key {
            asking = asking.header(AUTHORIZATION, key.header.clone());
        }
        let patience = self.limits.first_byte;
        let deadline = Instant::now() + patience;
        let mut sending = pin!(timeout_at(deadline, asking.send()));
        let answer = tokio::select! {
            biased;
            answer = &mut sending => answer,
            Ok(()) = sent => {
                *spent = asked(request);
                sending.await
            }
        };
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(source)) => return Err(self.unanswered(source)),
            Err(_) => return Err(Error::Silent { at: self.at.clone(), waited: patience }),
        };
        let mut body = Body { response, at: &self.at, deadline, waited: patience, idle: self.limits.idle };
        if !body.response.status().is_success() {
            return Err(self.refused(body).await);
        }
        *spent = asked(request);
        let kind = media_type(body.response.headers());
        match kind.as_str() {
            "application/json" => {
                let limit = self.limits.answer.saturating_mul(WRAPPING);
                let (document, whole) = body.read(limit).await?;
                if !whole {
                    return Err(Error::TooLarge { limit: self.limits.answer });
                }
                let mut assembly = Assembly::new(self.limits.answer);
                let taken = assembly.take(&document, on);
                *spent = assembly.spent(*spent);
                taken?;
                assembly.finish(request, true)
            }
            // Some servers do not name the type of a stream; a stream it is when events come.
            "text/event-stream" | "text/plain" | "" if ask != Ask::Whole => self.stream(request, body, spent, on).await,
            _ => {
                let (beginning, _) = body.read(ERROR_BODY).await.unwrap_or_default();
                let page = openai::page(&String::from_utf8_lossy(&beginning));
                Err(self.stranger(format!("it answered with {kind:?}: {page}")))
            }
        }
    }

    async fn stream(
        &self,
        request: &Request,
        mut body: Body<'_>,
        spent: &mut Usage,
        on: &mut impl FnMut(&str),
    ) -> Result<Completion, Error> {
        let mut assembly = Assembly::new(self.limits.answer);
        let mut events = Events::new(self.limits.answer.saturating_mul(WRAPPING));
        let (mut seen, mut done) = (false, false);
        let mut take = |event: &[u8]| {
            seen = true;
            if done || event.is_empty() {
                return Ok(());
            }
            done = event == b"[DONE]";
            if done {
                return Ok(());
            }
            let taken = assembly.take(event, on);
            *spent = assembly.spent(*spent);
            taken
        };
        while let Some(bytes) = body.next().await? {
            events.push(&bytes, &mut take)?;
        }
        events.end(&mut take)?;
        if !seen && media_type(body.response.headers()) != "text/event-stream" {
            return Err(self.stranger("its answer is neither JSON nor a stream of events".into()));
        }
        assembly.finish(request, done)
    }

    async fn refused(&self, mut body: Body<'_>) -> Error {
        let status = body.response.status();
        let headers = body.response.headers().clone();
        if status.is_redirection() {
            let to = headers.get(LOCATION).and_then(|it| it.to_str().ok()).unwrap_or("nowhere");
            return self.stranger(format!("it redirects to {to}"));
        }
        let read = body.read(ERROR_BODY).await.map(|(read, _)| read).unwrap_or_default();
        let (mut said, hopeless) = openai::refusal(&read);
        if status == StatusCode::NOT_FOUND && serde_json::from_slice::<serde::de::IgnoredAny>(&read).is_err() {
            said = format!("nothing is at {}, is baseURL right? It says: {said}", self.at);
        }
        Error::Refused { status, said, retry_after: retry_after(&headers), hopeless }
    }

    /// Why there is no answer although something was sent, or was to be. What is no HTTP is no trouble of the network: it
    /// would hardly be another time.
    fn unanswered(&self, source: reqwest::Error) -> Error {
        let causes = std::iter::successors(std::error::Error::source(&source), |it| it.source());
        let odd = causes.filter_map(|it| it.downcast_ref::<hyper::Error>()).find(|it| it.is_parse());
        if let Some(odd) = odd {
            return Error::Broken { what: format!("it is not HTTP as it should be: {odd}") };
        }
        Error::Unreachable { at: self.at.clone(), source: source.without_url() }
    }

    fn stranger(&self, what: String) -> Error {
        Error::Stranger { at: self.at.clone(), what }
    }

    /// Takes the key out of whatever the provider said, and bounds it.
    fn tidy(&self, mut error: Error) -> Error {
        if let Error::Refused { said: text, .. }
        | Error::BrokeOff { said: text }
        | Error::Broken { what: text }
        | Error::Stranger { what: text, .. } = &mut error
        {
            // In this order: a cut must not leave half a key.
            if let Some(key) = &self.key {
                *text = text.replace(key.secret.expose_secret(), "[the key]");
            }
            if text.len() > WORDS {
                text.truncate(text.floor_char_boundary(WORDS));
                text.push('…');
            }
        }
        error
    }
}

impl Key {
    /// Secrets are made with editors and with `echo`: space around a key is none of it.
    fn new(secret: SecretString) -> Result<Option<Self>, Error> {
        let trimmed = secret.expose_secret().trim();
        if trimmed.is_empty() {
            return Ok(None);
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {trimmed}"))
            .map_err(|_| Error::Provider("the model provider's key has characters that no key has".into()))?;
        header.set_sensitive(true);
        Ok(Some(Self { secret: SecretString::from(trimmed), header }))
    }
}

/// An answer's body, read with deadlines.
struct Body<'a> {
    response: Response,
    at: &'a str,
    deadline: Instant,
    waited: Duration,
    idle: Duration,
}

impl Body<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match timeout_at(self.deadline, self.response.chunk()).await {
            Ok(Ok(bytes)) => {
                self.waited = self.idle;
                self.deadline = Instant::now() + self.idle;
                Ok(bytes)
            }
            Ok(Err(source)) => Err(Error::CutOff { source: Some(source.without_url()) }),
            Err(_) => Err(Error::Silent { at: self.at.to_owned(), waited: self.waited }),
        }
    }

    /// At most `limit` bytes, and whether that is all.
    async fn read(&mut self, limit: usize) -> Result<(Vec<u8>, bool), Error> {
        let mut read = Vec::new();
        while let Some(bytes) = self.next().await? {
            let room = limit - read.len();
            read.extend_from_slice(bytes.get(..room).unwrap_or(&bytes));
            if bytes.len() > room {
                return Ok((read, false));
            }
        }
        Ok((read, true))
    }
}

/// What a question costs that has no answer yet.
fn asked(request: &Request) -> Usage {
    Usage { input: request.estimate(), output: 0, estimated: true }
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// `Retry-After` in seconds or as a date, and OpenAI's `retry-after-ms`. A date counts from the provider's own `Date`,
/// so that clocks need not agree.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).map(str::trim);
    let seconds = |number: f64| Duration::try_from_secs_f64(number.clamp(0.0, MAX_RETRY_AFTER)).ok();
    if let Some(ms) = text("retry-after-ms").and_then(|it| it.parse::<f64>().ok()) {
        return seconds(ms / 1000.0);
    }
    let after = text(RETRY_AFTER.as_str())?;
    if let Ok(number) = after.parse::<f64>() {
        return seconds(number);
    }
    let date = |it: &str| rfc2822::parse(it).ok().map(|it| it.timestamp());
    seconds(date(after)?.duration_since(date(text(DATE.as_str())?)?).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_every_form_and_bounded() {
        let after = |pairs: &[(&'static str, &str)]| {
            retry_after(&pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect())
        };
        let date = ("date", "Wed, 21 Oct 2015 07:27:00 GMT");
        assert_eq!(after(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        assert_eq!(after(&[("retry-after", "0.5")]), Some(Duration::from_millis(500)));
        assert_eq!(after(&[("retry-after", "1"), ("retry-after-ms", "20")]), Some(Duration::from_millis(20)));
        assert_eq!(after(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), date]), Some(Duration::from_secs(60)));
        assert_eq!(after(&[("retry-after", "Wed, 21 Oct 2015 07:26:00 GMT"), date]), Some(Duration::ZERO));
        assert_eq!(after(&[("retry-after", "1e300")]), Some(Duration::from_secs(86_400)));
        for none in ["NaN", "soon", ""] {
            assert_eq!(after(&[("retry-after", none), date]), None, "{none}");
        }
        assert_eq!(after(&[]), None);
    }

    #[test]
    fn an_address_is_taken_with_and_without_what_we_append() {
        let http = reqwest::Client::new();
        let at = |base: &str| Client::new(base, None, http.clone()).map(|it| it.url.to_string());
        for base in ["http://h:1/v1", "http://h:1/v1/", " http://h:1/v1/chat/completions#x"] {
            assert_eq!(at(base).unwrap(), "http://h:1/v1/chat/completions");
        }
        assert_eq!(at("http://h").unwrap(), "http://h/chat/completions");
        assert_eq!(at("https://h/v1?api-version=2").unwrap(), "https://h/v1/chat/completions?api-version=2");
        for wrong in ["", "h:1/v1", "ftp://h/v1", "/v1"] {
            assert!(at(wrong).unwrap_err().to_string().starts_with("baseURL is no address"), "{wrong}");
        }
        let shown = Client::new("http://user:pw@h/v1?key=x", None, http.clone()).unwrap().at;
        assert_eq!(shown, "http://h/v1/chat/completions");
        let key = Client::new("http://h", Some(SecretString::from("a\nb")), http).unwrap_err();
        assert!(key.to_string().contains("no key has"));
    }
}
