//! Files of a sandbox, in its own view: what is a link there leads nowhere else.

use std::fmt::Write;
use std::time::Duration;

use bytes::BytesMut;
use http::{Method, StatusCode, header};
use http_body_util::BodyExt;
use wire::execd::{FileInfo, FileMetadata, Permission};
use wire::query::encode;

use crate::link::{answer, full};
use crate::{Error, Hand};

/// How long a call may take.
const CALL: Duration = Duration::from_secs(60);
/// Bytes of one file that is written.
pub const WRITE_LIMIT: usize = 16 << 20;

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub bytes: Vec<u8>,
    /// There is more behind it.
    pub more: bool,
    /// Of the whole file, where it is known.
    pub size: Option<u64>,
}

impl Hand {
    /// Reads a file from its `from`th line (the first is 1), at most `most` bytes.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such file, or it is not one.
    pub async fn read_file(&self, path: &str, from: u64, most: usize) -> Result<Content, Error> {
        let _busy = self.begin()?;
        let mut query = format!("files/download?path={}", encode(path.as_bytes()));
        if from > 1 {
            let _ = write!(query, "&offset={from}");
        }
        let read = async {
            let asked = self.link().execd(&self.live.id, Method::GET, &query, "application/json", full(""));
            let response = asked.await?;
            if response.status() != StatusCode::OK {
                return Err(Error::Nonsense(format!("status {} to a read", response.status())));
            }
            let size = response.headers().get(header::CONTENT_LENGTH);
            let size = size.and_then(|it| it.to_str().ok()?.parse().ok()).filter(|_| from <= 1);
            let (mut body, mut bytes) = (response.into_body(), BytesMut::new());
            while bytes.len() <= most
                && let Some(frame) = body.frame().await
            {
                let frame = frame.map_err(Error::unreachable("pass a file on"))?;
                bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            }
            let more = bytes.len() > most;
            bytes.truncate(most);
            Ok(Content { bytes: bytes.to_vec(), more, size })
        };
        self.within(CALL, read).await
    }

    /// Writes a whole file, with the directories above it. It is replaced at once or not at all.
    ///
    /// # Errors
    /// [`Error::Refused`] when it cannot be written there, is too large, or the workspace is full.
    pub async fn write_file(&self, path: &str, content: &[u8]) -> Result<(), Error> {
        if content.len() > WRITE_LIMIT {
            let said = format!("the content has {} bytes, more than {WRITE_LIMIT}", content.len());
            return Err(Error::Refused { code: wire::execd::code::TOO_LARGE.to_owned(), said });
        }
        let _busy = self.begin()?;
        self.has_room()?;
        let Form { kind, opening, closing } = Form::new(path);
        let body = [opening.as_bytes(), content, closing.as_bytes()].concat();
        let write = async {
            let done = self.link().execd(&self.live.id, Method::POST, "files/upload", &kind, full(body)).await?;
            done.into_body().collect().await.map_err(Error::unreachable("pass a file on"))?;
            Ok(())
        };
        self.within(CALL, write).await
    }

    /// What is in a directory, by name.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such directory, or too much is in it.
    pub async fn list_directory(&self, path: &str) -> Result<Vec<FileInfo>, Error> {
        let _busy = self.begin()?;
        let query = format!("directories/list?depth=1&path={}", encode(path.as_bytes()));
        let list = async {
            let asked = self.link().execd(&self.live.id, Method::GET, &query, "application/json", full(""));
            answer("pass a listing on", asked.await?).await
        };
        self.within(CALL, list).await
    }
}

/// A form with one file, as execd takes it.
pub(crate) struct Form {
    pub kind: String,
    pub opening: String,
    pub closing: String,
}

impl Form {
    pub(crate) fn new(path: &str) -> Self {
        let boundary = format!("{:032x}", rand::random::<u128>());
        let metadata = FileMetadata { path: path.to_owned(), permission: Permission::default() };
        let metadata = serde_json::to_string(&metadata).unwrap_or_default();
        Self {
            kind: format!("multipart/form-data; boundary={boundary}"),
            opening: format!(
                "--{boundary}\r\ncontent-disposition: form-data; name=\"metadata\"; filename=\"metadata\"\r\n\
                 content-type: application/json\r\n\r\n{metadata}\r\n\
                 --{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"file\"\r\n\
                 content-type: application/octet-stream\r\n\r\n"
            ),
            closing: format!("\r\n--{boundary}--\r\n"),
        }
    }
}
