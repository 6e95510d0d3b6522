//! Tables in object stores, through the real tools: `cargo test --release --workspace --features cloud --test cloud`.
//! The store is a thread of this test, which counts what it is asked for.
#![cfg(all(feature = "cloud", feature = "nets"))]

mod util;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use util::{world::*, *};

/// A web server, and an S3 with buckets as folders.
struct Store {
    address: String,
    /// Method, path and bytes of every answer.
    asked: Arc<Mutex<Vec<(String, String, usize)>>>,
}

impl Store {
    fn of(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::<Mutex<Vec<_>>>::default();
        let files: BTreeMap<String, Vec<u8>> = files.iter().map(|(n, b)| (format!("/{n}"), b.clone())).collect();
        let (files, log) = (Arc::new(files), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (files, log) = (files.clone(), log.clone());
                std::thread::spawn(move || answer(stream.unwrap(), &files, &log));
            }
        });
        Self { address, asked }
    }

    fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// Bytes and requests since the last time.
    fn asked(&self) -> (usize, usize) {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        (asked.iter().map(|(_, _, bytes)| bytes).sum(), asked.len())
    }

    /// With nothing of this machine's environment but what an S3 user sets.
    fn s3(&self, tool: Tool) -> Tool {
        let mut tool = alone(tool);
        tool.command
            .env("AWS_ENDPOINT", format!("http://{}", self.address))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_ACCESS_KEY_ID", "user")
            .env("AWS_SECRET_ACCESS_KEY", "secret");
        tool
    }
}

fn alone(mut tool: Tool) -> Tool {
    tool.command.env_clear();
    tool
}

fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, log: &Mutex<Vec<(String, String, usize)>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|l| l.to_ascii_lowercase()).collect();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let range = headers.iter().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
    let (status, extra, body) = match files.get(path) {
        _ if query.contains("list-type=2") => ("200 OK", String::new(), listing(path, query, files)),
        None => ("404 Not Found", String::new(), vec![]),
        Some(file) => match range {
            None => ("200 OK", String::new(), file.clone()),
            Some((from, to)) => {
                let (from, to) = (from.parse::<usize>().unwrap(), to.parse::<usize>().unwrap().min(file.len() - 1));
                let extra = format!("Content-Range: bytes {from}-{to}/{}\r\n", file.len());
                ("206 Partial Content", extra, file[from..=to].to_vec())
            }
        },
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{extra}ETag: \"1\"\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    let sent = if method == "HEAD" { &[][..] } else { &body };
    log.lock().unwrap().push((method.to_owned(), target.to_owned(), sent.len()));
    let _ = stream.write_all(head.as_bytes()).and_then(|_| stream.write_all(sent));
}

/// S3's list of a bucket's objects under a prefix.
fn listing(bucket: &str, query: &str, files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let prefix = query.split('&').find_map(|part| part.strip_prefix("prefix=")).unwrap_or_default();
    let under = format!("{bucket}/{}", prefix.replace("%2F", "/"));
    let object = |(name, file): (&String, &Vec<u8>)| {
        let key = name.strip_prefix(&format!("{bucket}/")).unwrap();
        format!(
            "<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>1</ETag><Size>{}</Size></Contents>",
            file.len()
        )
    };
    let all: String = files.iter().filter(|(name, _)| name.starts_with(&under)).map(object).collect();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{all}</ListBucketResult>").into_bytes()
}

/// Scores of `n` pairs, with a column that nobody asks for and that does not compress.
fn table_of(dir: &Dir, name: &str, n: usize) -> Vec<u8> {
    let up: Vec<_> = (0..n).map(|i| Some((i * 37 % 101) as f32)).collect();
    let down: Vec<_> = (0..n).map(|i| Some((i * 53 % 97) as f32)).collect();
    let table = scores(&vec![None; n], &[("hps", &up, &down)]);
    let noise = texts((0..n).map(|i| pipe::id::hex(&pipe::id::sha256(&i.to_le_bytes())).repeat(8)));
    let fields = table.schema();
    let mut columns: Vec<_> =
        fields.fields().iter().map(|f| f.name().as_str()).zip(table.columns().iter().cloned()).collect();
    columns.push(("noise", noise));
    dir.put(name, &util::table(columns));
    dir.bytes(name)
}

#[test]
fn a_table_on_a_web_server_is_read_by_what_is_needed_of_it() {
    let dir = Dir::new();
    let bytes = table_of(&dir, "scores.parquet", 30_000);
    let store = Store::of(&[("data/scores.parquet", bytes.clone())]);
    dir.tool("vote").args(["scores.parquet", "-o", "here.parquet", "-q"]).ok();
    alone(dir.tool("vote")).args([&store.url("data/scores.parquet"), "-o", "there.parquet", "-q"]).ok();
    assert_eq!(dir.get("here.parquet").columns(), dir.get("there.parquet").columns());
    let (read, requests) = store.asked();
    assert!(read < bytes.len() / 2 && requests < 40, "{read} of {} bytes in {requests} requests", bytes.len());
    println!("{read} of {} bytes in {requests} requests", bytes.len());
}

#[test]
fn parts_in_a_bucket_are_a_table() {
    let dir = Dir::new();
    let bytes = table_of(&dir, "scores.parquet", 500);
    let part = |i: usize| {
        (["bucket/parts/part-00000-of-00002.parquet", "bucket/parts/part-00001-of-00002.parquet"][i], bytes.clone())
    };
    let store = Store::of(&[part(0), part(1), ("bucket/one/part-00001-of-00002.parquet", bytes.clone())]);
    dir.tool("vote").args(["scores.parquet", "scores.parquet", "-o", "here.parquet", "-q"]).ok();
    store.s3(dir.tool("vote")).args(["s3://bucket/parts/", "-o", "there.parquet", "-q"]).ok();
    assert_eq!(dir.get("here.parquet").columns(), dir.get("there.parquet").columns());
    let error = store.s3(dir.tool("vote")).args(["s3://bucket/one/", "-o", "out"]).fails(2);
    says(&error, &["s3://bucket/one/: part-00000-of-00002.parquet is missing", "--shard 0/2"]);
}

#[test]
fn training_visits_pairs_where_they_are() {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(12));
    dir.put("labels.parquet", &labels(&pairs(12), some));
    let names = ["pairs.parquet", "labels.parquet"];
    let store = Store::of(&names.map(|name| (name, dir.bytes(name))));
    let train = |pairs: &str, labels: &str, out: &str| {
        let args = [pairs, "--labels", labels, "-o", out, "-q", "--resolution", "16", "--steps", "2", "--lr", "1e-4"];
        dir.tool("train").args(args).args(["--train_batch_size", "4", "--base"]).args([oracle("base")])
    };
    train("pairs.parquet", "labels.parquet", "here").ok();
    alone(train(&store.url("pairs.parquet"), &store.url("labels.parquet"), "there")).ok();
    assert_same(&weights(&dir.path("here")), &weights(&dir.path("there")));
}

#[test]
fn what_cannot_be_read_is_one_sentence() {
    let dir = Dir::new();
    let store = Store::of(&[("text.parquet", b"no table at all".to_vec())]);
    let vote = |url: &str| dir.tool("vote").args([url, "-o", "out"]);
    for (url, parts) in [
        (store.url("absent.parquet"), &["absent.parquet does not exist"][..]),
        (store.url("text.parquet"), &["text.parquet is not a whole table"]),
        (store.url("folder/"), &["a web server does not list its folders"]),
        ("http:///x".into(), &["names no object"]),
        ("gs://bucket/x.parquet".into(), &["no credentials", "GOOGLE_APPLICATION_CREDENTIALS"]),
        ("s3://bucket/x.parquet".into(), &["no credentials", "AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"]),
    ] {
        let error = alone(vote(&url)).fails(2);
        says(&error, parts);
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    }
    says(&store.s3(vote("s3://bucket/x.parquet")).fails(2), &["s3://bucket/x.parquet does not exist"]);
    let error = dir.tool("vote").args(["scores", "-o", "s3://bucket/labels.parquet"]).fails(2);
    says(&error, &["cannot write s3://bucket/labels.parquet", "only read"]);
    assert!(dir.list().is_empty());
}
