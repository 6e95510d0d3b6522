//! Objects in S3, Google Cloud Storage or on a web server, read by ranges: first the footer, then the columns that are needed,
//! some megabytes at a time. Credentials come from the usual environment variables (`AWS_*`, `GOOGLE_*`).

use std::io::{self, Read};
use std::sync::{Arc, Mutex, OnceLock};
use std::{collections::HashMap, env, future::Future, ops::Range, time::Duration};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use bytes::Bytes;
use object_store::{
    BackoffConfig, ClientOptions, Error as StoreError, ObjectStore, ObjectStoreExt, RetryConfig, aws::AmazonS3Builder,
    gcp::GoogleCloudStorageBuilder, http::HttpBuilder, path::Path,
};
use parquet::file::metadata::ParquetMetaData;
use tokio::runtime::{Builder, Runtime};

/// Bytes per request within a column.
const AHEAD: u64 = 8 << 20;

/// One object. Only its length is read until bytes are needed.
#[derive(Clone)]
pub(super) struct Object(Arc<Inner>);

struct Inner {
    url: String,
    store: Box<dyn ObjectStore>,
    path: Path,
    length: u64,
    /// Position and column of every column chunk, in the order of the file.
    chunks: OnceLock<Vec<(Range<u64>, usize)>>,
    /// The bytes that were read last in each column, and their position.
    windows: Mutex<HashMap<usize, (u64, Bytes)>>,
}

impl Object {
    pub(super) fn open(url: &str) -> Result<Self> {
        let (store, path) = store(url)?;
        let length = wait(store.head(&path))?.map_err(|error| explain(url, error))?.size;
        let url = url.to_owned();
        Ok(Self(Arc::new(Inner { url, store, path, length, chunks: OnceLock::new(), windows: Mutex::default() })))
    }

    /// Remembers where column chunks begin and end, which limits what is read ahead.
    pub(super) fn learn(&self, metadata: &ParquetMetaData) {
        let columns = metadata.row_groups().iter().flat_map(|group| group.columns().iter().enumerate());
        let chunk = |(column, (start, length)): (usize, (u64, u64))| (start..start + length, column);
        let mut chunks: Vec<_> = columns.map(|(i, column)| chunk((i, column.byte_range()))).collect();
        chunks.sort_by_key(|(range, _)| range.start);
        let _ = self.0.chunks.set(chunks);
    }

    pub(super) fn len(&self) -> u64 {
        self.0.length
    }

    pub(super) fn reader(&self, start: u64) -> ObjectReader {
        ObjectReader { object: self.clone(), at: start }
    }

    /// Exactly these bytes; no request is made if they have been read already.
    pub(super) fn bytes(&self, start: u64, length: usize) -> io::Result<Bytes> {
        let end = start + length as u64;
        if let Ok(windows) = self.0.windows.lock() {
            let held = |(from, bytes): &&(u64, Bytes)| *from <= start && end <= from + bytes.len() as u64;
            if let Some((from, bytes)) = windows.values().find(held) {
                let from = (start - from) as usize;
                return Ok(bytes.slice(from..from + length));
            }
        }
        self.fetch(start..end)
    }

    /// Bytes from position `at` on, at most to the end of the column chunk.
    fn ahead(&self, at: u64) -> io::Result<Bytes> {
        const NO_COLUMN: usize = usize::MAX;
        let chunks = self.0.chunks.get().map_or(&[][..], Vec::as_slice);
        let chunk = chunks.iter().rfind(|(range, _)| range.contains(&at));
        let (end, column) = chunk.map_or((self.0.length, NO_COLUMN), |(range, column)| (range.end, *column));
        let windows = || self.0.windows.lock().map_err(|_| io::Error::other("another reader has failed"));
        if let Some((from, bytes)) = windows()?.get(&column)
            && (*from..from + bytes.len() as u64).contains(&at)
        {
            return Ok(bytes.slice((at - from) as usize..));
        }
        let bytes = self.fetch(at..end.min(at + AHEAD))?;
        windows()?.insert(column, (at, bytes.clone()));
        Ok(bytes)
    }

    fn fetch(&self, range: Range<u64>) -> io::Result<Bytes> {
        let Inner { url, store, path, .. } = &*self.0;
        let other = |error: Error| io::Error::other(format!("{error:#}"));
        wait(store.get_range(path, range)).map_err(other)?.map_err(|error| other(explain(url, error)))
    }
}

pub(crate) struct ObjectReader {
    object: Object,
    at: u64,
}

impl Read for ObjectReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || self.at >= self.object.len() {
            return Ok(0);
        }
        let bytes = self.object.ahead(self.at)?;
        let n = bytes.len().min(buf.len());
        buf[..n].copy_from_slice(&bytes[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

/// The names of the objects in a folder, whose URL ends in `/`.
pub(super) fn list(url: &str) -> Result<Vec<String>> {
    let web = url.starts_with("http");
    ensure!(!web, "{url} is a folder, and a web server does not list its folders; name its parts one by one");
    let (store, path) = store(url)?;
    let found = wait(store.list_with_delimiter(Some(&path)))?.map_err(|error| explain(url, error))?;
    Ok(found.objects.iter().filter_map(|object| object.location.filename()).map(str::to_owned).collect())
}

fn store(url: &str) -> Result<(Box<dyn ObjectStore>, Path)> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    ensure!(!host.is_empty() && !path.is_empty(), "{url} names no object; expected SCHEME://BUCKET/PATH");
    let retry = RetryConfig {
        backoff: BackoffConfig { init_backoff: Duration::from_millis(200), ..BackoffConfig::default() },
        max_retries: 5,
        retry_timeout: Duration::from_secs(60),
    };
    let cannot = || format!("cannot open {url}");
    let store: Box<dyn ObjectStore> = match scheme {
        "s3" | "s3a" => {
            credentials(url, &AWS, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "AWS_SKIP_SIGNATURE")?;
            let s3 = AmazonS3Builder::from_env().with_bucket_name(host).with_retry(retry);
            Box::new(s3.build().with_context(cannot)?)
        }
        "gs" => {
            credentials(url, &GOOGLE, "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SKIP_SIGNATURE")?;
            let gcs = GoogleCloudStorageBuilder::from_env().with_bucket_name(host).with_retry(retry);
            Box::new(gcs.build().with_context(cannot)?)
        }
        "http" | "https" => {
            let options = ClientOptions::new().with_allow_http(true);
            let web = HttpBuilder::new().with_url(format!("{scheme}://{host}"));
            Box::new(web.with_client_options(options).with_retry(retry).build().with_context(cannot)?)
        }
        _ => bail!("{url}: objects are named by s3://, gs://, http:// or https://"),
    };
    Ok((store, Path::from_url_path(path).with_context(cannot)?))
}

/// Environment variables, one of which must give credentials.
const AWS: [&str; 6] = [
    "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_METADATA_ENDPOINT", "AWS_SKIP_SIGNATURE",
];
const GOOGLE: [&str; 6] = [
    "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY", "SERVICE_ACCOUNT", "GOOGLE_SKIP_SIGNATURE",
];

/// Refuses to continue without credentials: object_store would ask the machine's metadata service, which is unexpected and which
/// only waits on most machines.
fn credentials(url: &str, known: &[&str], usual: &str, public: &str) -> Result<()> {
    let given = known.iter().any(|name| env::var_os(name).is_some_and(|value| !value.is_empty()));
    ensure!(given, "{url}: there are no credentials; set {usual}, or {public}=true if the bucket is public");
    Ok(())
}

fn explain(url: &str, error: StoreError) -> Error {
    match error {
        StoreError::NotFound { .. } => anyhow!("{url} does not exist (the URL of a folder of parts ends in '/')"),
        StoreError::Unauthenticated { .. } | StoreError::PermissionDenied { .. } => {
            anyhow!("{url}: the store refuses these credentials or asks for some")
        }
        error => Error::new(error).context(format!("cannot read {url}")),
    }
}

/// Waits for the store's answer. Ordinary threads read the tables; the runtime only waits for the network.
fn wait<T>(answer: impl Future<Output = T>) -> Result<T> {
    static RUNTIME: OnceLock<io::Result<Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| Builder::new_multi_thread().worker_threads(1).enable_all().build());
    let runtime = runtime.as_ref().map_err(|error| anyhow!("cannot wait for the network: {error}"))?;
    Ok(runtime.block_on(answer))
}
