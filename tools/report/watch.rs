//! `report --watch DIR`: the page of a run that continues. It is updated whenever the files of the run change, and served on the
//! loopback address: only this machine sees it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use maud::html;
use pipe::stdout::print;
use pipe::{atomic, stop};

use crate::images::ModelImages;
use crate::{args::Args, assemble};

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);
/// Time that a browser has to say what it wants; others wait for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest request that is read: browsers send some hundred bytes.
const LONGEST: usize = 16 << 10;

/// Serves the page until a signal ends the program.
pub fn serve(args: &Args, folder: &Path) -> Result<()> {
    ensure!(
        folder.is_dir(),
        "--watch {}: there is no such folder; name the output folder of `train`",
        folder.display()
    );
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).with_context(|| format!("--port {}", args.port))?;
    listener.set_nonblocking(true)?;
    stop::watch()?;
    let mut page = Page::default();
    page.make(args, folder)?;
    print(format!("http://{}/\n", listener.local_addr()?))?;
    let mut looked = Instant::now();
    loop {
        stop::check()?;
        match listener.accept() {
            // A browser may leave early.
            Ok((stream, _)) => drop(answer(stream, &page)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(error).context("cannot answer on the loopback address"),
        }
        if looked.elapsed() >= LOOK {
            page.make(args, folder)?;
            looked = Instant::now();
        }
    }
}

#[derive(Default)]
struct Page {
    /// A hash of the files that it was made from.
    version: Option<u64>,
    html: String,
}

impl Page {
    /// Updates the page if a file has changed, and writes it where `-o` says.
    fn make(&mut self, args: &Args, folder: &Path) -> Result<()> {
        let found = Args {
            logs: logs(folder),
            winrates: args.winrates.iter().cloned().chain(winrates(folder)).collect(),
            ..args.clone()
        };
        let version = version(folder, &found);
        if self.version.replace(version) == Some(version) {
            return Ok(());
        }
        let tables = ModelImages::open_all(&found.images)?;
        let html = match found.logs.is_empty() && found.winrates.is_empty() {
            true => Err(anyhow::anyhow!("{} holds no log.jsonl yet", folder.display())),
            false => assemble::html(&found, &tables, None),
        };
        if let (Ok(html), Some(output)) = (&html, &args.common.output) {
            atomic::write(output, html.as_bytes())?;
        }
        // A log may have no line yet: the next look may find one.
        let html = html.unwrap_or_else(|error| {
            html! { meta charset="utf-8"; title { "report" } p { (format!("{error:#}")) } }.into_string()
        });
        self.html = reloading(&html, version);
        Ok(())
    }
}

/// The page, which asks now and then whether there is a newer one.
fn reloading(html: &str, version: u64) -> String {
    let policy = "default-src 'none';";
    let html = html.replacen(policy, &format!("{policy} connect-src 'self';"), 1);
    format!(
        "{html}<script>setInterval(async()=>{{try{{if(await(await fetch('/version')).text()!=='{version}')location.reload()}}\
         catch{{}}}},2000)</script>\n"
    )
}

/// The log of the run in `folder`, or those of the runs in its folders.
fn logs(folder: &Path) -> Vec<PathBuf> {
    let log =
        |folder: &Path| Some(folder.join("log.jsonl")).filter(|log| fs::metadata(log).is_ok_and(|log| log.len() > 0));
    let own = log(folder).into_iter();
    own.chain(entries(folder).iter().filter_map(|path| log(path))).collect()
}

/// The output of `winrate --json` in `folder`.
fn winrates(folder: &Path) -> Vec<PathBuf> {
    let is = |name: &str| name.starts_with("winrate") && name.ends_with(".json");
    let named = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(is);
    entries(folder).into_iter().filter(named).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// Changes with the names, sizes and times of the files that the page is made from.
fn version(folder: &Path, args: &Args) -> u64 {
    let mut hasher = DefaultHasher::new();
    let pictures = args.logs.iter().map(|log| log.with_file_name("pictures"));
    let files = pictures.flat_map(|folder| entries(&folder)).chain(args.logs.iter().chain(&args.winrates).cloned());
    for file in files.chain([folder.to_owned()]) {
        let about = fs::metadata(&file).ok();
        (file, about.as_ref().map(fs::Metadata::len), about.and_then(|about| about.modified().ok())).hash(&mut hasher);
    }
    hasher.finish()
}

fn answer(mut stream: TcpStream, page: &Page) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = vec![];
    let mut piece = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < LONGEST {
        match stream.read(&mut piece)? {
            0 => break,
            n => request.extend_from_slice(&piece[..n]),
        }
    }
    let request = String::from_utf8_lossy(&request);
    let (status, kind, body) = reply(&request, page);
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {length}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )?;
    if !request.starts_with("HEAD ") {
        stream.write_all(body.as_bytes())?;
    }
    Ok(stream.flush()?)
}

fn reply(request: &str, page: &Page) -> (&'static str, &'static str, String) {
    // A page of the network that is led to this address would send its own name.
    let host =
        request.lines().find_map(|line| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("host")));
    let host = host.map_or("", |(_, host)| host.trim());
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let path = request.split(' ').nth(1).unwrap_or_default();
    let plain = |status, text: &str| (status, "text/plain", text.to_owned());
    match (request.split(' ').next(), path) {
        _ if !["localhost", "127.0.0.1"].contains(&name) => plain("403 Forbidden", "only this machine is answered\n"),
        (Some("GET" | "HEAD"), "/") => ("200 OK", "text/html", page.html.clone()),
        (Some("GET" | "HEAD"), "/version") => plain("200 OK", &page.version.unwrap_or_default().to_string()),
        (Some("GET" | "HEAD"), _) => plain("404 Not Found", "there is only one page: /\n"),
        _ => plain("405 Method Not Allowed", "pages are only read\n"),
    }
}
