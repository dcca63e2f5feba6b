//! `POST /files/upload`: pairs of a `metadata` and a `file` part.

use std::io::Write;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use wire::execd::{FileMetadata, code};

use crate::reply::{Problem, Reply, Result, empty};

use super::multipart::{Multipart, Piece};
use super::replace::Replacement;
use super::{Files, change, problem};

const LONGEST_METADATA: usize = 64 << 10;
/// Written at once.
const GATHERED: usize = 512 << 10;

/// Writes each file as it arrives; it takes its place when all of it is there. Files before one that fails stay.
pub(crate) async fn upload(files: Files, content_type: &str, body: &mut Incoming) -> Result<Reply> {
    let bad = |why: &str| Problem::new(StatusCode::BAD_REQUEST, code::INVALID_FILE, why.to_owned());
    let mut multipart = Multipart::new(content_type).map_err(bad)?;
    let mut upload = Upload { files, metadata: None, part: Part::None, gathered: Vec::new(), size: 0, written: 0 };
    loop {
        match multipart.next().map_err(bad)? {
            Some(Piece::Part(name)) => upload.begin(&name).await?,
            Some(Piece::Data(data)) => upload.take(data).await?,
            Some(Piece::End) => upload.end().await?,
            Some(Piece::Done) => break,
            None => match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        multipart.feed(&data);
                    }
                }
                Some(Err(error)) => return Err(bad(&format!("the body did not arrive: {error}"))),
                None => return Err(bad("the body ends before its last boundary")),
            },
        }
    }
    if upload.metadata.is_some() {
        return Err(bad("the last metadata part has no file part"));
    }
    if upload.written == 0 {
        return Err(bad("there is no file in the body"));
    }
    Ok(empty())
}

struct Upload {
    files: Files,
    metadata: Option<FileMetadata>,
    part: Part,
    gathered: Vec<Bytes>,
    size: usize,
    written: usize,
}

enum Part {
    None,
    Metadata(Vec<u8>),
    /// None while a job has it.
    File(Option<Box<Open>>),
    /// A field that nobody asked for.
    Other,
}

struct Open {
    replacement: Replacement,
    metadata: FileMetadata,
    path: std::path::PathBuf,
}

impl Upload {
    async fn begin(&mut self, name: &str) -> Result<()> {
        self.part = match name {
            "metadata" => Part::Metadata(Vec::new()),
            "file" => {
                let metadata =
                    self.metadata.take().ok_or_else(|| invalid("a file part has no metadata part before it"))?;
                let path = self.files.path(metadata.path.as_bytes())?;
                let open = self.files.act(move || {
                    change::owners(&metadata.permission)?;
                    change::given_mode(&metadata.permission)?;
                    if let Some(parent) = path.parent() {
                        change::make_parents(parent)?;
                    }
                    Ok(Box::new(Open { replacement: Replacement::new(&path, None)?, metadata, path }))
                });
                Part::File(Some(open.await?))
            }
            _ => Part::Other,
        };
        Ok(())
    }

    async fn take(&mut self, data: Bytes) -> Result<()> {
        match &mut self.part {
            Part::Metadata(text) if text.len() + data.len() > LONGEST_METADATA => {
                return Err(invalid(&format!("a metadata part is over {LONGEST_METADATA} bytes")));
            }
            Part::Metadata(text) => text.extend_from_slice(&data),
            Part::File(_) => {
                self.size += data.len();
                self.gathered.push(data);
                if self.size >= GATHERED {
                    return self.write().await;
                }
            }
            Part::Other | Part::None => {}
        }
        Ok(())
    }

    async fn write(&mut self) -> Result<()> {
        let Part::File(slot) = &mut self.part else { return Ok(()) };
        let Some(mut open) = slot.take() else { return Ok(()) };
        let gathered = std::mem::take(&mut self.gathered);
        self.size = 0;
        let open = self.files.act(move || {
            for data in &gathered {
                open.replacement.file().write_all(data).map_err(|error| problem(&open.path, &error))?;
            }
            Ok(open)
        });
        let open = open.await?;
        self.part = Part::File(Some(open));
        Ok(())
    }

    async fn end(&mut self) -> Result<()> {
        self.write().await?;
        match std::mem::replace(&mut self.part, Part::None) {
            Part::Metadata(text) => {
                let metadata: FileMetadata = serde_json::from_slice(&text)
                    .map_err(|error| invalid(&format!("error parsing a metadata part: {error}")))?;
                if metadata.path.is_empty() {
                    return Err(invalid("metadata names no path"));
                }
                self.metadata = Some(metadata);
            }
            Part::File(Some(open)) => {
                let finish = self.files.act(move || {
                    let Open { replacement, metadata, path } = *open;
                    replacement.finish()?;
                    change::permissions(&path, &metadata.permission)
                });
                finish.await?;
                self.written += 1;
            }
            Part::File(None) | Part::Other | Part::None => {}
        }
        Ok(())
    }
}

fn invalid(why: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, code::INVALID_FILE_METADATA, why)
}
