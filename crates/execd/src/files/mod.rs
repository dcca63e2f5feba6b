//! Files: asked about, listed, found, read, written, moved, removed.
//!
//! The kernel confines all of it, because it happens inside the sandbox; what is guarded here is execd itself: no FIFO
//! or device blocks it, no depth, name or size exhausts it.

mod change;
mod download;
mod glob;
mod info;
mod multipart;
mod remove;
mod replace;
mod upload;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use hyper::StatusCode;
use hyper::header::HeaderMap;
use wire::execd::{Permission, Rename, Replace, code};

use crate::daemon::Daemon;
use crate::os::identity::{self, Identity};
use crate::reply::{Problem, Reply, Result, empty, json};
use crate::request::Query;

pub(crate) use self::download::Content;
pub(crate) use self::upload::upload;

/// Entries that one listing or search answers with, and entries that it looks at.
const LISTED_MOST: usize = 20_000;
const VISITED_MOST: usize = 1_000_000;
/// How deep a search goes. Paths end at 4,096 bytes anyway.
const DEEPEST: usize = 1_024;

/// The file API as one user: execd itself, or the one that the path names.
#[derive(Clone)]
pub(crate) struct Files {
    daemon: Rc<Daemon>,
    who: Option<Identity>,
}

impl Files {
    pub(crate) fn new(daemon: Rc<Daemon>, who: Option<Identity>) -> Self {
        Self { daemon, who }
    }

    /// Runs `act` where blocking is allowed, with the user's rights.
    async fn act<T: Send + 'static>(&self, act: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let who = self.who.clone();
        let done = self.daemon.workers.run(move || match who {
            None => act(),
            Some(who) => identity::with(&who, || Ok(act())).unwrap_or_else(|error| {
                Err(Problem::runtime(format!("this sandbox may not act as uid {}, gid {}: {error}", who.uid, who.gid)))
            }),
        });
        done.await.unwrap_or_else(|| Err(Problem::runtime("the operation failed inside execd")))
    }

    fn path(&self, raw: &[u8]) -> Result<PathBuf> {
        self.daemon.expand(raw, &self.daemon.environment())
    }

    fn paths<'a>(&self, raw: impl Iterator<Item = &'a [u8]>) -> Result<Vec<(String, PathBuf)>> {
        let env = self.daemon.environment();
        raw.map(|raw| Ok((String::from_utf8_lossy(raw).into_owned(), self.daemon.expand(raw, &env)?))).collect()
    }

    /// `GET /files/info?path=&path=`.
    pub(crate) async fn info(&self, query: &Query) -> Result {
        let paths = self.paths(query.all("path"))?;
        self.act(move || info::of(paths)).await.map(|found| json(&found))
    }

    /// `GET /files/search?path=&pattern=`.
    pub(crate) async fn search(&self, query: &Query) -> Result {
        let path = self.path(query.need("path")?)?;
        let pattern = query.get("pattern").unwrap_or(b"**").to_vec();
        self.act(move || info::search(&path, &pattern)).await.map(|found| json(&found))
    }

    /// `GET /directories/list?path=&depth=`.
    pub(crate) async fn list(&self, query: &Query) -> Result {
        let path = self.path(query.need("path")?)?;
        let depth = query.number("depth", 1)?.unwrap_or(1);
        let depth = usize::try_from(depth).unwrap_or(DEEPEST).min(DEEPEST);
        self.act(move || info::list(&path, depth)).await.map(|found| json(&found))
    }

    /// `DELETE /files?path=`.
    pub(crate) async fn remove_files(&self, query: &Query) -> Result {
        let paths = self.paths(query.all("path"))?;
        self.act(move || paths.iter().try_for_each(|(name, path)| remove::file(name, path))).await.map(|()| empty())
    }

    /// `DELETE /directories?path=`.
    pub(crate) async fn remove_directories(&self, query: &Query) -> Result {
        let paths = self.paths(query.all("path"))?;
        self.act(move || paths.iter().try_for_each(|(name, path)| remove::tree(name, path))).await.map(|()| empty())
    }

    /// `POST /directories`.
    pub(crate) async fn make_directories(&self, wanted: BTreeMap<String, Permission>) -> Result {
        let wanted = self.each(wanted)?;
        self.act(move || wanted.iter().try_for_each(|(path, about)| change::make_directory(path, about)))
            .await
            .map(|()| empty())
    }

    /// `POST /files/permissions`.
    pub(crate) async fn permissions(&self, wanted: BTreeMap<String, Permission>) -> Result {
        let wanted = self.each(wanted)?;
        self.act(move || wanted.iter().try_for_each(|(path, about)| change::permissions(path, about)))
            .await
            .map(|()| empty())
    }

    /// `POST /files/mv`.
    pub(crate) async fn rename(&self, wanted: Vec<Rename>) -> Result {
        let env = self.daemon.environment();
        let wanted = wanted
            .iter()
            .map(|item| {
                Ok((self.daemon.expand(item.src.as_bytes(), &env)?, self.daemon.expand(item.dest.as_bytes(), &env)?))
            })
            .collect::<Result<Vec<_>>>()?;
        self.act(move || wanted.iter().try_for_each(|(from, to)| change::rename(from, to))).await.map(|()| empty())
    }

    /// `POST /files/replace[?verbose=true]`.
    pub(crate) async fn replace(&self, wanted: BTreeMap<String, Replace>, verbose: bool) -> Result {
        let env = self.daemon.environment();
        let wanted = wanted
            .into_iter()
            .map(|(name, item)| self.daemon.expand(name.as_bytes(), &env).map(|path| (name, path, item)))
            .collect::<Result<Vec<_>>>()?;
        let done = self.act(move || replace::all(wanted)).await?;
        Ok(if verbose { json(&done) } else { empty() })
    }

    /// `GET /files/download?path=`, with a `Range` or with `offset` and `limit` in lines.
    pub(crate) async fn download(&self, query: &Query, headers: &HeaderMap) -> Result {
        let path = self.path(query.need("path")?)?;
        let (offset, limit) = (query.number("offset", 1)?, query.number("limit", 1)?);
        let range = headers.get(hyper::header::RANGE).map(|range| range.as_bytes().to_vec());
        if offset.is_some() || limit.is_some() {
            if range.is_some() {
                return Err(Problem::parameter("offset and limit (lines) do not go with a Range header (bytes)"));
            }
            let file = self.act(move || readable(&path)).await?;
            return Ok(download::lines(self.daemon.clone(), file, offset.unwrap_or(1), limit));
        }
        let name = path.file_name().unwrap_or_default().to_owned();
        let start = self.act(move || download::start(&path, range.as_deref())).await?;
        Ok(download::reply(self.daemon.clone(), start, &name))
    }

    fn each<T>(&self, wanted: BTreeMap<String, T>) -> Result<Vec<(PathBuf, T)>> {
        let env = self.daemon.environment();
        wanted.into_iter().map(|(name, it)| Ok((self.daemon.expand(name.as_bytes(), &env)?, it))).collect()
    }
}

/// Opens a regular file to be read. Anything else is refused, and opening it neither blocks nor does anything.
fn readable(path: &Path) -> Result<File> {
    let file = open(OpenOptions::new().read(true), path)?;
    regular(&file, path)?;
    Ok(file)
}

/// Opens without waiting for the other end of a FIFO and without taking a terminal.
fn open(options: &mut OpenOptions, path: &Path) -> Result<File> {
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).map_err(|error| problem(path, &error))
}

fn regular(file: &File, path: &Path) -> Result<()> {
    let kind = file.metadata().map_err(|error| problem(path, &error))?.file_type();
    if kind.is_file() {
        return Ok(());
    }
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else {
        "a device or socket"
    };
    Err(not_a_file(path, what))
}

fn not_a_file(path: &Path, what: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, code::INVALID_FILE, format!("{} is {what}, not a file", path.display()))
}

/// An error of the kernel about a path.
fn problem(path: &Path, error: &io::Error) -> Problem {
    let shown = path.display();
    match error.raw_os_error() {
        // A socket cannot be opened, nor a FIFO for writing that nobody reads.
        Some(libc::ENXIO | libc::ENODEV) => not_a_file(path, "a FIFO, a socket or a device"),
        Some(libc::ELOOP) => Problem::parameter(format!("{shown}: too many symbolic links")),
        Some(libc::EISDIR) => not_a_file(path, "a directory"),
        Some(libc::ENOTDIR) => Problem::parameter(format!("{shown}: what it is in is no directory")),
        _ => Problem::io(&shown.to_string(), error),
    }
}

/// Octal digits written as a decimal number, as the API has modes: 644 is 0o644.
fn mode(digits: u32) -> Result<u32> {
    u32::from_str_radix(&digits.to_string(), 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| Problem::invalid(format!("mode {digits} is not made of octal digits")))
}

/// The other way round.
fn digits(mode: u32) -> u32 {
    format!("{:o}", mode & 0o777).parse().unwrap_or(0)
}

/// Ready-made replies for whoever streams.
fn bad(problem: Problem) -> Reply {
    problem.into()
}
