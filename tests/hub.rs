//! Models named by a hub id: out of a cache in `$HF_HOME`, or from a server that answers as the hub does.
#![cfg(feature = "nets")]

mod util;

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
};

use util::{world::*, *};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn sample(dir: &Dir, base: &str, rest: &[&str]) -> Tool {
    dir.write("prompts.txt", "a red bicycle\n");
    let mut tool = dir.tool("sample");
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        tool.command.env_remove(name);
    }
    tool.command.env("HF_HOME", dir.path("home")).env("HF_ENDPOINT", "http://127.0.0.1:9");
    tool.args(["prompts.txt", "-o", "out.parquet", "--steps", "2", "-q", "--base", base]).args(rest)
}

fn snapshot(dir: &Dir, repository: &str) -> PathBuf {
    let folder = dir.path(&format!("home/hub/models--{repository}"));
    std::fs::create_dir_all(folder.join("refs")).unwrap();
    std::fs::write(folder.join("refs/main"), COMMIT).unwrap();
    folder.join("snapshots").join(COMMIT)
}

#[test]
fn a_cached_model_by_its_id() {
    let dir = Dir::new();
    sample(&dir, &oracle("base").display().to_string(), &["--name", "x"]).ok();
    let there = dir.bytes("out.parquet");
    copy(&oracle("base"), &snapshot(&dir, "org--tiny"));
    copy(&oracle("policy"), &snapshot(&dir, "org--tiny-dpo"));
    for base in ["org/tiny", "org/tiny@main", &format!("org/tiny@{COMMIT}")] {
        sample(&dir, base, &["--name", "x"]).ok();
        assert!(dir.bytes("out.parquet") == there, "{base}");
    }
    sample(&dir, "org/tiny", &["--name", "x", "--unet", "org/tiny-dpo"]).ok();
    assert!(dir.bytes("out.parquet") != there);
    // The other tools that take models.
    dir.put("pairs.parquet", &pairs(4));
    dir.put("labels.parquet", &labels(&pairs(4), |_| (1.0, 1.0)));
    let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    copy(&repository.join("pipelines/mini/scorers/clip"), &snapshot(&dir, "org--clip"));
    copy(&repository.join("tests/fixtures/safe"), &snapshot(&dir, "org--safe"));
    for args in [
        "score pairs.parquet --metrics clip --model clip=org/clip",
        "prompts prompts.txt --safe org/safe",
        "train pairs.parquet --labels labels.parquet --resolution 16 --steps 1 --base org/tiny --policy org/tiny-dpo",
        "encode pairs.parquet --resolution 16 --base org/tiny",
        "refresh-ref --policy org/tiny-dpo --reference org/tiny",
    ] {
        let (tool, args) = args.split_once(' ').unwrap();
        let mut tool = dir.tool(tool).args(args.split(' ')).args(["-q", "-o", &format!("{tool}.out")]);
        tool.command.env("HF_HOME", dir.path("home"));
        tool.ok();
    }
}

#[test]
fn nothing_is_fetched_unasked() {
    let dir = Dir::new();
    let error = sample(&dir, "org/absent", &[]).fails(2);
    says(&error, &["org/absent does not exist", "home/hub", "--allow-download"]);
    copy(&oracle("base"), &snapshot(&dir, "org--tiny"));
    says(&sample(&dir, "org/tiny@other", &[]).fails(2), &["org/tiny@other does not exist"]);
    says(&sample(&dir, "../org/tiny", &[]).fails(2), &["../org/tiny"]);
    // A folder goes before an id.
    copy(&oracle("base/vae"), &dir.path("org/tiny/vae"));
    says(&sample(&dir, "org/tiny", &[]).fails(2), &["org/tiny"]);
    assert!(!dir.path("out.parquet").exists());
}

#[test]
fn a_download_fills_the_cache_and_an_absent_network_is_said() {
    let dir = Dir::new();
    let error = sample(&dir, "org/tiny", &["--allow-download"]).fails(2);
    says(&error, &["cannot fetch org/tiny from the hub"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || listener.incoming().for_each(|stream| drop(serve(stream.unwrap()))));
    let mut tool = sample(&dir, "org/tiny", &["--allow-download", "--name", "x"]);
    tool.command.env("HF_ENDPOINT", &endpoint);
    tool.ok();
    let fetched = dir.bytes("out.parquet");
    // From now on it is there, also without a network.
    for rest in [&["--name", "x"][..], &["--name", "x", "--allow-download"]] {
        sample(&dir, "org/tiny", rest).ok();
        assert!(dir.bytes("out.parquet") == fetched);
    }
}

/// The hub's answers about one repository, of which the small model's base is the content.
fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut request, mut from) = (String::new(), 0);
    reader.read_line(&mut request)?;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if let Some(range) = header.to_lowercase().strip_prefix("range: bytes=") {
            from = range.split('-').next().unwrap().parse().unwrap();
        }
        if header.trim().is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let files = tree(&oracle("base"));
    let body = if path.starts_with("/api/models/org/tiny") {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        serde_json::to_vec(&serde_json::json!({"siblings": siblings, "sha": COMMIT})).unwrap()
    } else {
        let name = path.strip_prefix("/org/tiny/resolve/main/").unwrap_or_default();
        files.get(&PathBuf::from(name)).cloned().unwrap_or_default()
    };
    let (size, rest) = (body.len(), &body[from..]);
    let range = format!("bytes {from}-{}/{size}", size.saturating_sub(1));
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nContent-Range: {range}\r\nETag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        rest.len(),
        pipe::id::hex(&pipe::id::sha256(&body))
    );
    (&stream).write_all(head.as_bytes())?;
    (&stream).write_all(rest)
}

/// The variables of huggingface_hub, and the name that a model of the hub has in the table.
#[test]
fn the_cache_lies_where_huggingface_hub_puts_it() {
    let dir = Dir::new();
    copy(&oracle("base"), &snapshot(&dir, "org--tiny"));
    let hub = dir.path("home/hub");
    let other = dir.path("other/huggingface");
    std::fs::create_dir_all(&other).unwrap();
    std::os::unix::fs::symlink(&hub, other.join("hub")).unwrap();
    for (variable, value) in [
        ("HF_HUB_CACHE", hub.clone()),
        ("HUGGINGFACE_HUB_CACHE", hub.clone()),
        ("HF_HOME", dir.path("home")),
        ("XDG_CACHE_HOME", dir.path("other")),
        ("TRANSFORMERS_CACHE", hub.clone()),
    ] {
        let mut tool = sample(&dir, "org/tiny", &[]);
        tool.command.env_remove("HF_HOME").env("HOME", dir.path("nobody")).env(variable, value);
        tool.ok();
        assert_eq!(column_text(&dir.get("out.parquet"), "model"), ["tiny"], "{variable}");
    }
    let mut tool = sample(&dir, "org/absent", &["--allow-download"]);
    tool.command.env("HF_HUB_OFFLINE", "1");
    says(&tool.fails(2), &["org/absent", "HF_HUB_OFFLINE"]);
    // Neither a revision nor a branch's file leads out of the cache.
    copy(&oracle("base"), &dir.path("outside"));
    sample(&dir, "org/tiny@../../../../outside", &[]).fails(2);
    std::fs::write(hub.join("models--org--tiny/refs/main"), "../../../../outside").unwrap();
    sample(&dir, "org/tiny", &[]).fails(2);
}
