//! A hub on loopback, as large as the tests need it: one repository, ranges, etags, and faults on demand.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use sha2::{Digest, Sha256};

pub const NAME: &str = "tiny/pipeline";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The file that faults are about.
pub const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";

/// What goes wrong with one download of [`WEIGHTS`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The connection breaks after so many bytes.
    Cut(usize),
    /// It hangs there.
    Stall(usize),
    /// The server sends all, whatever range was asked for.
    Whole,
}

pub struct Hub {
    pub endpoint: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<VecDeque<Fault>>,
    /// The answer to everything.
    status: Option<u16>,
    /// Whether the etag of [`WEIGHTS`] is another file's.
    wrong_sum: bool,
    /// Requests as `path range authorization`.
    requests: Mutex<Vec<[String; 3]>>,
}

impl Hub {
    /// Serves a folder's files.
    pub fn of(folder: &Path, faults: &[Fault]) -> Self {
        let mut files = BTreeMap::new();
        collect(folder, "", &mut files);
        Self::start(State {
            files,
            faults: Mutex::new(faults.iter().copied().collect()),
            ..State::default()
        })
    }

    /// The same with a wrong checksum.
    pub fn with_wrong_sum(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        collect(folder, "", &mut files);
        Self::start(State {
            files,
            wrong_sum: true,
            ..State::default()
        })
    }

    /// One that answers with a status and nothing else.
    pub fn refusing(status: u16) -> Self {
        Self::start(State {
            status: Some(status),
            ..State::default()
        })
    }

    fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(state);
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || {
                    // A client that went away is no failure of the server.
                    let _ = state.answer(stream);
                });
            }
        });
        Self { endpoint, state }
    }

    /// The command with this hub, and a cache of its own.
    pub fn command(&self, cache: &Path, arguments: &[&str]) -> Command {
        let mut command = command_with_cache(cache, arguments);
        command.env("HF_ENDPOINT", &self.endpoint);
        command
    }

    /// Ranges that were asked of a file, but for those that only ask how long it is.
    pub fn ranges(&self, file: &str) -> Vec<String> {
        let requests = self.state.requests.lock().unwrap();
        let of_file = requests.iter().filter(|[path, ..]| path.ends_with(file));
        let ranges = of_file.map(|[_, range, _]| range.clone());
        ranges.filter(|range| range != "bytes=0-0").collect()
    }

    /// The authorization of the first request.
    pub fn authorization(&self) -> String {
        self.state.requests.lock().unwrap()[0][2].clone()
    }
}

/// The command with a cache of its own and nothing of the user's settings.
pub fn command_with_cache(cache: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harmonica"));
    for variable in [
        "HF_HOME",
        "HF_TOKEN",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
        "HUGGING_FACE_HUB_TOKEN",
        "ALL_PROXY",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "all_proxy",
        "https_proxy",
        "http_proxy",
    ] {
        command.env_remove(variable);
    }
    command.env("HF_TOKEN_PATH", cache.join("no-token"));
    command.env("HF_HUB_CACHE", cache).args(arguments);
    command
}

pub fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let [mut range, mut authorization] = [String::new(), String::new()];
        for line in lines {
            let line = line?;
            match line.split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("range") => range = value.into(),
                Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                    authorization = value.into();
                }
                _ => {}
            }
            if line.is_empty() {
                break;
            }
        }
        let asked = [path.clone(), range.clone(), authorization];
        self.requests.lock().unwrap().push(asked);

        if let Some(status) = self.status {
            return plain(&mut stream, status, b"");
        }
        if path == format!("/api/models/{NAME}/revision/main") {
            let siblings = self.files.keys();
            let siblings: Vec<_> = siblings
                .map(|name| serde_json::json!({ "rfilename": name }))
                .collect();
            let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings });
            return plain(&mut stream, 200, body.to_string().as_bytes());
        }
        let file = path.strip_prefix(&format!("/{NAME}/resolve/{COMMIT}/"));
        match file.and_then(|file| Some((file, self.files.get(file)?))) {
            Some((file, bytes)) => self.send(&mut stream, file, bytes, &range),
            None => plain(&mut stream, 404, b""),
        }
    }

    fn send(
        &self,
        stream: &mut TcpStream,
        file: &str,
        bytes: &[u8],
        range: &str,
    ) -> std::io::Result<()> {
        let (start, end) = range
            .strip_prefix("bytes=")
            .unwrap()
            .split_once('-')
            .unwrap();
        let start: usize = start.parse().unwrap();
        let download = end.is_empty();
        let end = end.parse().map_or(bytes.len() - 1, |end: usize| end);
        let fault = match download && file == WEIGHTS {
            true => self.faults.lock().unwrap().pop_front(),
            false => None,
        };
        let sum = match self.wrong_sum && file == WEIGHTS {
            true => sha256(b"another file"),
            false => sha256(bytes),
        };
        // Of large files the hub tells the sha256, of small ones something shorter.
        let etags = match file.ends_with(".safetensors") {
            true => format!("etag: \"storage\"\r\nx-linked-etag: \"{sum}\""),
            false => format!("etag: \"{}\"", &sum[..40]),
        };
        let (status, body) = match fault {
            Some(Fault::Whole) => ("200 OK".to_owned(), bytes),
            _ => {
                let range = format!("content-range: bytes {start}-{end}/{}", bytes.len());
                (
                    format!("206 Partial Content\r\n{range}"),
                    &bytes[start..=end],
                )
            }
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nx-repo-commit: {COMMIT}\r\n{etags}\r\nconnection: close\r\n\r\n",
            body.len()
        )?;
        match fault {
            Some(Fault::Cut(after)) => stream.write_all(&body[..after]),
            Some(Fault::Stall(after)) => {
                stream.write_all(&body[..after])?;
                stream.flush()?;
                std::thread::sleep(Duration::from_secs(120));
                Ok(())
            }
            _ => stream.write_all(body),
        }
    }
}

fn plain(stream: &mut TcpStream, status: u16, body: &[u8]) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} Status\r\ncontent-length: {}\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}
