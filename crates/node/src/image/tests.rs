use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::sync::Mutex;

use base64::Engine as _;
use flate2::write::GzEncoder;
use kit::{SecretString, Tasks};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::manifest::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, architecture};
use super::*;

/// An image as a registry or an archive has it.
struct Packed {
    /// By digest.
    blobs: BTreeMap<String, Vec<u8>>,
    manifest: String,
    config: String,
    layers: Vec<String>,
    plain: Vec<Vec<u8>>,
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        builder.append_data(&mut header, path, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn packed(mark: &str, architecture: &str) -> Packed {
    // Nothing packs this.
    let mut seed = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 40) as u8
    })
    .take(200_000)
    .collect();
    let passwd = b"root:x:0:0::/:/\napp:x:1000:1001::/:/\n";
    let plain = vec![
        tar(&[("etc/passwd", passwd), ("bin/noise", &noise)]),
        tar(&[("mark", mark.as_bytes()), ("bin/.wh.noise", b""), ("zeros", &[0; 300_000])]),
    ];
    let mut blobs = BTreeMap::new();
    let mut put = |bytes: Vec<u8>| {
        let digest = Digest::of(&bytes).to_string();
        blobs.insert(digest.clone(), bytes);
        digest
    };
    let sized: Vec<_> = plain.iter().map(|it| gzip(it)).map(|it| (it.len(), put(it))).collect();
    let config = json!({
        "os": "linux", "architecture": architecture,
        "config": {
            "User": "app", "Env": ["A=b=c"], "Entrypoint": ["/bin/x"], "Cmd": null, "WorkingDir": "/srv",
            "StopSignal": "SIGQUIT",
        },
        "rootfs": {"type": "layers", "diff_ids": plain.iter().map(|it| Digest::of(it)).collect::<Vec<_>>()},
    });
    let config = config.to_string().into_bytes();
    let (size, config) = (config.len(), put(config));
    let layers: Vec<_> =
        sized.iter().map(|(size, digest)| json!({"mediaType": OCI_LAYER, "digest": digest, "size": size})).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config, "size": size}, "layers": layers});
    let manifest = put(manifest.to_string().into_bytes());
    Packed { blobs, manifest, config, layers: sized.into_iter().map(|(_, digest)| digest).collect(), plain }
}

/// A question that a registry was asked.
#[derive(Clone, Debug)]
struct Asked {
    /// `GET /v2/...`
    line: String,
    headers: BTreeMap<String, String>,
}

impl Asked {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

#[derive(Default)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    cut: Option<usize>,
}

impl Answer {
    fn ok(media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: vec![("content-type", media_type.to_owned())], body: body.into(), cut: None }
    }

    fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }
}

type Script = dyn Fn(&Asked, &str) -> Answer + Send + Sync;

/// A registry on loopback that answers by a script and notes what it was asked.
struct Registry {
    /// HOST:PORT
    at: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Registry {
    async fn listen(tasks: &Tasks, script: impl Fn(&Asked, &str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let (asked, script, own) =
            (Arc::<Mutex<Vec<Asked>>>::default(), Arc::<Script>::from(Box::new(script) as Box<Script>), at.clone());
        let (noted, spawner) = (asked.clone(), tasks.clone());
        tasks.tenant("registry", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (noted, script, own) = (noted.clone(), script.clone(), own.clone());
                spawner.tenant("registry connection", async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let text = String::from_utf8(head).unwrap();
                    let mut lines = text.lines();
                    let line = lines.next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
                    let headers = lines
                        .filter_map(|it| it.split_once(": "))
                        .map(|(name, value)| (name.to_lowercase(), value.to_owned()));
                    let it = Asked { line, headers: headers.collect() };
                    let mut body = vec![0; it.header("content-length").parse().unwrap_or(0)];
                    stream.read_exact(&mut body).await.unwrap();
                    noted.lock().unwrap().push(it.clone());
                    let answer = script(&it, &own);
                    let mut out = format!(
                        "HTTP/1.1 {} X\r\nconnection: close\r\ncontent-length: {}\r\n",
                        answer.status,
                        answer.body.len()
                    );
                    for (name, value) in &answer.headers {
                        out.push_str(&format!("{name}: {value}\r\n"));
                    }
                    let _ = stream.write_all((out + "\r\n").as_bytes()).await;
                    let _ = stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())]).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { at, asked }
    }

    /// What was asked, without the host.
    fn lines(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|it| it.line.clone()).collect()
    }

    fn count(&self, part: &str) -> usize {
        self.lines().iter().filter(|it| it.contains(part)).count()
    }
}

/// The blobs and manifests of an image, asked for in the plain way.
fn plainly(it: &Packed, asked: &Asked) -> Answer {
    let what = asked.line.rsplit('/').next().unwrap_or_default();
    let media_type = if asked.line.contains("/manifests/") { OCI_MANIFEST } else { "application/octet-stream" };
    let what = if what == "1" { &it.manifest } else { what };
    match it.blobs.get(what) {
        Some(bytes) => Answer::ok(media_type, bytes.clone()),
        None => Answer::status(404),
    }
}

struct Scene {
    scratch: tempfile::TempDir,
    tasks: Tasks,
    clock: Clock,
}

impl Scene {
    fn new() -> Self {
        let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap());
        Self { scratch: tempfile::tempdir().unwrap(), tasks: Tasks::new(Shutdown::new()), clock }
    }

    fn images(&self) -> Images {
        self.images_with(ImageMap::default(), Limits { reserve: 0, ..Limits::default() })
    }

    fn images_with(&self, map: ImageMap, limits: Limits) -> Images {
        let dir = self.scratch.path().join("images");
        let mut images = Images::open(dir, map, limits, self.clock.clone(), Shutdown::new()).unwrap();
        let quick = Patience { base: Duration::from_millis(1), most: Duration::from_millis(2), ..Patience::usual() };
        images.registries = Arc::new(Registries::new(quick));
        images
    }

    /// What is in a directory of the store.
    fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.scratch.path().join("images").join(dir)).unwrap();
        let mut names: Vec<_> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn holds_nothing(&self) -> bool {
        ["blobs/sha256", "roots", "ingest"].iter().all(|it| self.names(it).is_empty())
    }
}

fn root_of(image: &Image) -> PathBuf {
    match &image.root {
        Root::Image(root) => root.clone(),
        Root::Host => panic!("{image:?}"),
    }
}

fn ids(images: &Images) -> BTreeSet<String> {
    images.list().unwrap().into_iter().map(|it| it.id).collect()
}

#[tokio::test]
async fn an_image_is_pulled_by_whoever_may_and_a_broken_connection_goes_on_where_it_broke() {
    let scene = Scene::new();
    let it = Arc::new(packed("pulled", architecture()));
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": format!("sha256:{}", "0".repeat(64)), "size": 1, "platform": {"os": "linux", "architecture": "vax"}},
        {"mediaType": OCI_MANIFEST, "digest": it.manifest, "size": 1, "platform": {"os": "linux", "architecture": architecture()}},
    ]});
    let index = index.to_string();
    let target = Digest::of(index.as_bytes()).to_string();
    let (large, breaks) = (it.layers[0].clone(), Mutex::new(3));
    // Where the registry keeps its blobs: it breaks off three times, and knows ranges.
    let kept = it.clone();
    let store = Registry::listen(&scene.tasks, move |asked, _| {
        let digest = asked.line.split('/').next_back().unwrap().split('?').next().unwrap();
        let Some(bytes) = kept.blobs.get(digest) else { return Answer::status(404) };
        let from: usize = asked.header("range").trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
        let mut answer = Answer::ok("application/octet-stream", &bytes[from..]);
        if from > 0 {
            answer.status = 206;
            answer.headers.push(("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())));
        }
        let mut breaks = breaks.lock().unwrap();
        if digest == large && *breaks > 0 {
            *breaks -= 1;
            answer.cut = Some(50_000);
        }
        answer
    })
    .await;
    let (manifest, at) = (it.clone(), store.at.clone());
    let registry = Registry::listen(&scene.tasks, move |asked, own| {
        let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("ann:secret"));
        match asked.line.as_str() {
            line if line.starts_with("GET /token?") => match asked.header("authorization") == basic {
                true => Answer::ok("application/json", r#"{"token": "t0ken"}"#),
                false => Answer::status(401),
            },
            _ if asked.header("authorization") != "Bearer t0ken" => {
                let challenge = format!(r#"Bearer realm="http://{own}/token",service="r",scope="repository:a/b:pull""#);
                Answer { headers: vec![("www-authenticate", challenge)], ..Answer::status(401) }
            }
            line if line.contains("/manifests/1") => Answer::ok(OCI_INDEX, index.clone()),
            line if line.contains("/manifests/") => plainly(&manifest, asked),
            line => {
                let digest = line.rsplit('/').next().unwrap();
                Answer {
                    headers: vec![("location", format!("http://{at}/kept/{digest}?signature=s"))],
                    ..Answer::status(307)
                }
            }
        }
    })
    .await;

    let images = scene.images();
    let name = format!("{}/a/b:1", registry.at);
    let wrong = Credential::new(&format!("{}/a", registry.at), "bob", SecretString::from("guess"));
    let right = Credential::new(&registry.at, "ann", SecretString::from("secret"));
    let elsewhere = Credential::new("example.com", "eve", SecretString::from("other"));
    assert!(images.would_pull(&name, PullPolicy::IfNotPresent));
    let image = images.ensure(&name, PullPolicy::IfNotPresent, &[elsewhere, wrong.clone(), right]).await.unwrap();

    let root = root_of(&image);
    assert_eq!(fs::read_to_string(root.join("mark")).unwrap(), "pulled");
    assert!(!root.join("bin/noise").exists() && root.join("bin").is_dir());
    assert_eq!((image.id.as_str(), image.name.as_str()), (it.config.as_str(), name.as_str()));
    assert_eq!(image.reference, format!("{}/a/b@{target}", registry.at));
    assert_eq!((image.user, image.group, image.user_name.as_deref()), (1000, 1001, Some("app")));
    assert_eq!(
        (image.entrypoint.as_slice(), image.cmd.len(), image.cwd.as_str()),
        (["/bin/x".to_owned()].as_slice(), 0, "/srv")
    );
    assert_eq!(image.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(image.env, [("A".to_owned(), "b=c".to_owned()), ("PATH".to_owned(), PATH.to_owned())]);
    assert!(image.pulled.as_ref().is_some_and(|it| it.now.is_some() && it.means.is_none()), "{image:?}");
    assert!(
        store.asked.lock().unwrap().iter().all(|it| it.header("authorization").is_empty()),
        "a token went elsewhere"
    );
    let ranges: Vec<_> = store
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|it| it.header("range").to_owned())
        .filter(|it| !it.is_empty())
        .collect();
    assert_eq!(ranges, ["bytes=50000-", "bytes=100000-", "bytes=150000-"]);

    // What is there is asked for nowhere, by its digest neither, and by another node either.
    let before = registry.lines().len();
    assert!(!images.would_pull(&name, PullPolicy::IfNotPresent));
    for name in [name.clone(), format!("{}/a/b@{target}", registry.at)] {
        let again = scene.images().ensure(&name, PullPolicy::IfNotPresent, &[]).await.unwrap();
        assert_eq!((again.id.as_str(), again.pulled.clone()), (it.config.as_str(), None));
    }
    assert_eq!(registry.lines().len(), before);
    let refused = images.ensure(&name, PullPolicy::Always, &[wrong]).await.unwrap_err();
    assert_eq!(refused.reason, "ErrImagePull");
    assert!(
        refused.message.contains(
            "failed to authorize: failed to fetch oauth token: unexpected status from GET request to http://"
        ),
        "{refused}"
    );
    assert!(!refused.message.contains("guess"));
}

#[tokio::test]
async fn two_who_want_the_same_image_share_one_pull() {
    let scene = Scene::new();
    let it = packed("shared", architecture());
    let layers = it.layers.clone();
    let registry = Registry::listen(&scene.tasks, move |asked, _| plainly(&it, asked)).await;
    let name = format!("{}/a:1", registry.at);
    // As in two processes: they know nothing of each other but the directory.
    let (one, two) = (scene.images(), scene.images());
    let (first, second) =
        tokio::join!(one.ensure(&name, PullPolicy::IfNotPresent, &[]), two.ensure(&name, PullPolicy::Always, &[]));
    assert_eq!(root_of(&first.unwrap()), root_of(&second.unwrap()));
    for layer in layers {
        assert_eq!(registry.count(&layer), 1, "{:?}", registry.lines());
    }
    assert_eq!(scene.names("ingest"), [""; 0]);
}

#[tokio::test]
async fn what_a_registry_gives_wrongly_is_said_and_leaves_nothing() {
    let scene = Scene::new();
    let it = packed("wrong", architecture());
    let mut false_layer = packed("wrong", architecture());
    let bytes = false_layer.blobs.get_mut(&it.layers[1]).unwrap();
    let last = bytes.len() - 9;
    bytes[last] ^= 1;
    let mut longer = packed("wrong", architecture());
    longer.blobs.get_mut(&it.layers[1]).unwrap().push(0);
    let mut lies = packed("wrong", architecture());
    let other = packed("other", architecture()).blobs.into_values().next().unwrap();
    lies.blobs.insert(it.manifest.clone(), other);
    let vax = packed("wrong", "vax");
    let layer = it.layers[1].clone();
    let scripts: [(&str, &str, Box<Script>); 9] = [
        (
            "1",
            &format!("unexpected commit digest sha256:{{}}, expected {layer}: failed precondition"),
            Box::new(move |asked, _| plainly(&false_layer, asked)),
        ),
        ("1", "has more than the", Box::new(move |asked, _| plainly(&longer, asked))),
        (
            &it.manifest.clone(),
            "failed to resolve reference \"{name}\": unexpected commit digest",
            Box::new(move |asked, _| plainly(&lies, asked)),
        ),
        (
            "1",
            "rpc error: code = NotFound desc = failed to pull and unpack image \"{name}\": no match for platform in manifest: not found",
            Box::new(move |asked, _| plainly(&vax, asked)),
        ),
        (
            "2",
            "rpc error: code = NotFound desc = failed to pull and unpack image \"{name}\": failed to resolve reference \"{name}\": {name}: not found",
            Box::new(|_, _| Answer::status(404)),
        ),
        (
            "1",
            "unexpected status from GET request to http://{host}/v2/a/manifests/1: 503 Service Unavailable",
            Box::new(|_, _| Answer::status(503)),
        ),
        (
            "1",
            "pull access denied, repository does not exist or may require authorization: no basic auth credentials",
            Box::new(|_, _| Answer {
                headers: vec![("www-authenticate", "Basic realm=x".into())],
                ..Answer::status(401)
            }),
        ),
        (
            "1",
            "it leads to where nothing is encrypted",
            Box::new(|_, _| Answer { headers: vec![("location", "ftp://x/".into())], ..Answer::status(302) }),
        ),
        ("1", "it is longer than 4194304 bytes", Box::new(|_, _| Answer::ok(OCI_MANIFEST, vec![b' '; (4 << 20) + 1]))),
    ];
    let images = scene.images();
    for (version, expected, script) in scripts {
        let registry = Registry::listen(&scene.tasks, script).await;
        let name = format!("{}/a{}{version}", registry.at, if version.contains(':') { "@" } else { ":" });
        let error = images.ensure(&name, PullPolicy::IfNotPresent, &[]).await.unwrap_err();
        assert_eq!(error.reason, "ErrImagePull");
        let expected = expected.replace("{name}", &name).replace("{host}", &registry.at);
        let mut from = 0;
        for part in expected.split("{}") {
            let at = error.message[from..].find(part);
            from += at.unwrap_or_else(|| panic!("{} has not {part:?}", error.message)) + part.len();
        }
        assert!(images.list().unwrap().is_empty() && scene.names("roots").is_empty());
        assert!(!scene.names("blobs/sha256").iter().any(|it| layer.ends_with(it)), "{expected}");
        // A part of a blob may stay, to go on with; nothing else.
        assert!(scene.names("ingest").iter().all(|it| it.ends_with(".part")), "{:?}", scene.names("ingest"));
    }
    // Nobody listens there, nor can anybody else come to.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = closed.local_addr().unwrap();
    let error = images.ensure(&format!("{nobody}/a"), PullPolicy::Always, &[]).await.unwrap_err().message;
    assert!(error.contains("failed to do request: Get \"http://") && error.contains("insula image load"), "{error}");
}

#[tokio::test]
async fn what_a_killed_process_has_left_is_gone_on_with_or_cleared() {
    let scene = Scene::new();
    let it = packed("resumed", architecture());
    let (large, small) = (it.layers[0].clone(), it.layers[1].clone());
    let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
    let half = it.blobs[&large][..100_000].to_vec();
    drop(scene.images());
    let ingest = scene.scratch.path().join("images/ingest");
    let now = scene.clock.now();
    let leave = |name: String, bytes: &[u8], at: Timestamp| {
        fs::write(ingest.join(&name), bytes).unwrap();
        fs::File::open(ingest.join(name)).unwrap().set_modified(at.into()).unwrap();
    };
    leave(format!("{}.part", hex(&large)), &half, now);
    leave(format!("{}.part", hex(&small)), b"damaged", now);
    leave(format!("{}.part", "0".repeat(64)), b"old", now - jiff::SignedDuration::from_hours(25));
    leave("x.tmp".into(), b"", now);
    fs::create_dir_all(ingest.join(format!("{}.root/fs/half/an/image", "1".repeat(64)))).unwrap();
    let images = scene.images();
    assert_eq!(scene.names("ingest").len(), 2, "{:?}", scene.names("ingest"));

    let registry = Registry::listen(&scene.tasks, move |asked, _| {
        let mut answer = plainly(&it, asked);
        if let Some(from) = asked.header("range").strip_prefix("bytes=") {
            let from: usize = from.trim_end_matches('-').parse().unwrap();
            answer
                .headers
                .push(("content-range", format!("bytes {from}-{}/{}", answer.body.len() - 1, answer.body.len())));
            (answer.status, answer.body) = (206, answer.body.split_off(from));
        }
        answer
    })
    .await;
    let image = images.ensure(&format!("{}/a:1", registry.at), PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert_eq!(fs::read_to_string(root_of(&image).join("mark")).unwrap(), "resumed");
    let asked = registry.asked.lock().unwrap().clone();
    let ranges = |digest: &str| {
        asked.iter().filter(|it| it.line.ends_with(digest)).map(|it| it.header("range").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ranges(&large), ["bytes=100000-"]);
    assert_eq!(ranges(&small), ["bytes=7-", ""], "what was found was damaged");
    assert_eq!(scene.names("ingest"), [""; 0]);
}

#[tokio::test]
async fn an_image_that_is_too_large_is_not_even_fetched() {
    let scene = Scene::new();
    let it = packed("large", architecture());
    let registry = Registry::listen(&scene.tasks, move |asked, _| plainly(&it, asked)).await;
    let name = format!("{}/a:1", registry.at);
    for (limits, why) in [
        (Limits { bytes: 1000, reserve: 0, ..Limits::default() }, "an image may have 0 MiB"),
        (Limits { reserve: u64::MAX, ..Limits::default() }, "are kept free"),
    ] {
        let error =
            scene.images_with(ImageMap::default(), limits).ensure(&name, PullPolicy::Always, &[]).await.unwrap_err();
        assert!(error.message.contains(why), "{error}");
    }
    assert_eq!(registry.count("/blobs/"), 0);
    assert!(scene.holds_nothing());
    // Packed it is small enough.
    let limits = Limits { bytes: 250_000, reserve: 0, ..Limits::default() };
    let error =
        scene.images_with(ImageMap::default(), limits).ensure(&name, PullPolicy::Always, &[]).await.unwrap_err();
    assert!(
        error.message.contains("failed to extract layer sha256:") && error.message.contains("its image has more than"),
        "{error}"
    );
    assert!(scene.names("roots").is_empty() && scene.names("ingest").is_empty());
}

/// The two forms of an archive.
fn archives(it: &Packed, name: &str) -> [Vec<u8>; 2] {
    let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
    let saved =
        json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["0/layer.tar", "1/layer.tar"]}]).to_string();
    let docker = tar(&[
        ("0/layer.tar", &it.plain[0]),
        ("1/layer.tar", &it.plain[1]),
        ("config.json", &it.blobs[&it.config]),
        ("manifest.json", saved.as_bytes()),
    ]);
    let index: Value = json!({"schemaVersion": 2, "manifests": [{"mediaType": OCI_MANIFEST, "digest": it.manifest, "size": 1,
        "annotations": {"io.containerd.image.name": name}}]});
    let mut files: Vec<_> =
        it.blobs.iter().map(|(digest, bytes)| (format!("blobs/sha256/{}", hex(digest)), bytes.clone())).collect();
    files.push(("index.json".into(), index.to_string().into_bytes()));
    files.push(("oci-layout".into(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec()));
    let files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    [docker, gzip(&tar(&files))]
}

#[tokio::test]
async fn archives_are_loaded_shadow_the_default_map_and_go_when_nobody_wants_them() {
    let scene = Scene::new();
    let it = packed("loaded", architecture());
    let path = scene.scratch.path().join("archive");
    for archive in archives(&it, "busybox:1") {
        let images = scene.images();
        let before = images.ensure("busybox:1", PullPolicy::Never, &[]).await.unwrap();
        assert_eq!(before.remark().unwrap(), "here this name means \"host\", this machine's own files");
        assert_eq!((before.reference.as_str(), before.cmd.as_slice()), ("host", ["sh".to_owned()].as_slice()));
        fs::write(&path, archive).unwrap();
        assert_eq!(images.load(&path, None).await.unwrap(), ["docker.io/library/busybox:1"]);
        let loaded = images.ensure("busybox:1", PullPolicy::Never, &[]).await.unwrap();
        assert_eq!(fs::read_to_string(root_of(&loaded).join("mark")).unwrap(), "loaded");
        assert_eq!((loaded.id.as_str(), loaded.name.as_str()), (it.config.as_str(), "docker.io/library/busybox:1"));
        assert_eq!(loaded.reference, it.config, "it has no digest of a registry");
        assert_eq!(images.load(&path, Some("localhost/mine")).await.unwrap(), ["localhost/mine:latest"]);
        assert_eq!(images.list().unwrap()[0].names, ["docker.io/library/busybox:1", "localhost/mine:latest"]);

        // Its files come again from its layers, should they be gone.
        fs::remove_dir_all(root_of(&loaded).parent().unwrap()).unwrap();
        let again = images.ensure("localhost/mine", PullPolicy::IfNotPresent, &[]).await.unwrap();
        assert!(root_of(&again).join("mark").exists());

        images.remove("busybox:1").unwrap();
        images.remove("localhost/mine").unwrap();
        assert_eq!(images.remove("localhost/mine").unwrap_err().message, "there is no image \"localhost/mine\" here");
        let id = ids(&images);
        let later = Scene {
            clock: Clock::starting_at(scene.clock.now() + jiff::SignedDuration::from_hours(1)),
            tasks: scene.tasks.clone(),
            scratch: tempfile::tempdir().unwrap(),
        };
        assert_eq!(images.collect(&BTreeSet::new()).await.unwrap(), 0, "it was used a moment ago");
        let mut images = images;
        images.store = Arc::new(Store::open(scene.scratch.path().join("images"), later.clock.clone()).unwrap());
        assert_eq!(images.collect(&id).await.unwrap(), 0, "a container uses it");
        assert_eq!(images.collect(&BTreeSet::new()).await.unwrap(), 1);
        assert!(scene.holds_nothing());
    }
}

#[tokio::test]
async fn beside_a_node_nothing_is_cleared() {
    let scene = Scene::new();
    let path = scene.scratch.path().join("archive");
    fs::write(&path, &archives(&packed("x", architecture()), "a:1")[0]).unwrap();
    let images = scene.images();
    images.load(&path, None).await.unwrap();
    images.remove("a:1").unwrap();
    let data = scene.scratch.path().join("node");
    fs::create_dir_all(data.join("pods/uid")).unwrap();
    assert!(!images.clear_unnamed(&data).await.unwrap(), "a container may use it");
    fs::remove_dir(data.join("pods/uid")).unwrap();
    let lock = fs::File::create_new(data.join("lock")).unwrap();
    assert!(crate::sys::lock(std::os::fd::AsFd::as_fd(&lock)).unwrap());
    assert!(!images.clear_unnamed(&data).await.unwrap(), "a node works there");
    drop(lock);
    let adding = images.store.adding(Duration::ZERO).await.unwrap();
    assert!(!images.clear_unnamed(&data).await.unwrap(), "somebody adds an image");
    drop(adding);
    // What another test forks right now still has the node's lock until it executes.
    let cleared = async {
        while !images.clear_unnamed(&data).await.unwrap() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), cleared).await.unwrap();
    assert!(scene.holds_nothing());
}

#[tokio::test]
async fn archives_that_are_none_say_so_and_leave_nothing() {
    let scene = Scene::new();
    let images = scene.images();
    let path = scene.scratch.path().join("archive");
    let it = packed("bad", architecture());
    let [docker, _] = archives(&it, "a:1");
    let [unnamed, _] = archives(&it, "a");
    let mut damaged = docker.clone();
    let at = damaged.windows(3).position(|it| it == b"bad").unwrap();
    damaged[at] ^= 1;
    let outside = json!([{"Config": "../../../../etc/passwd", "RepoTags": ["a:1"], "Layers": []}]).to_string();
    for (bytes, why) in [
        (b"text".to_vec(), "unexpected end of file"),
        (tar(&[("readme", b"hello")]), "neither OCI's index.json nor docker's manifest.json"),
        (tar(&[("manifest.json", outside.as_bytes())]), "there is no ../../../../etc/passwd in it"),
        (docker[..docker.len() / 2].to_vec(), "unexpected end of file"),
        (archives(&packed("bad", "vax"), "a:1")[0].clone(), "no match for platform"),
        (damaged, "unpacked it has sha256:"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = images.load(&path, None).await.unwrap_err();
        assert!(error.message.contains(why), "{error}");
        assert!(
            images.list().unwrap().is_empty() && scene.names("roots").is_empty() && scene.names("ingest").is_empty()
        );
    }
    fs::write(&path, &docker).unwrap();
    let full = scene.images_with(ImageMap::default(), Limits { reserve: u64::MAX, ..Limits::default() });
    let error = full.load(&path, None).await.unwrap_err();
    assert!(error.message.contains("are kept free") && scene.names("roots").is_empty(), "{error}");
    fs::write(&path, unnamed).unwrap();
    assert_eq!(images.load(&path, None).await.unwrap(), ["docker.io/library/a:latest"], "a name needs no tag");
}

#[tokio::test]
async fn names_mean_what_the_map_says_and_policies_are_kept() {
    let scene = Scene::new();
    let it = packed("mapped", architecture());
    let registry = Registry::listen(&scene.tasks, move |asked, _| plainly(&it, asked)).await;
    let mut map = ImageMap::default();
    map.add("alpine=host").unwrap();
    map.add(&format!("tool={}/a:1", registry.at)).unwrap();
    let images = scene.images_with(map, Limits { reserve: 0, ..Limits::default() });
    for name in ["host", "alpine:3", "ubuntu:24.04"] {
        let image = images.ensure(name, PullPolicy::Always, &[]).await.unwrap();
        assert!(matches!(image.root, Root::Host) && image.id == "host", "{name}");
        assert!(!images.would_pull(name, PullPolicy::Always));
    }
    let never = images.ensure("tool:2", PullPolicy::Never, &[]).await.unwrap_err();
    assert_eq!(
        (never.reason, never.message.as_str()),
        ("ErrImageNeverPull", "Container image \"tool:2\" is not present with pull policy of Never")
    );
    let tool = images.ensure("tool:2", PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert_eq!(tool.remark().unwrap(), format!("here this name means \"{}/a:1\"", registry.at));
    let invalid = images.ensure("UPPER", PullPolicy::Never, &[]).await.unwrap_err();
    assert_eq!(invalid.reason, "InvalidImageName");
    assert_eq!(
        invalid.message,
        "Failed to apply default image tag \"UPPER\": couldn't parse image name \"UPPER\": invalid reference format: repository name (library/UPPER) must be lowercase"
    );
}
