//! What the tests of the tools share: a folder that goes away, the real binaries, small tables.
#![allow(dead_code)] // each test target uses a part of it

#[cfg(feature = "nets")]
pub mod world;

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, AsArray, Float32Array, RecordBatch, StringArray, UInt32Array, UInt64Array},
    compute::concat_batches,
    datatypes::{Float32Type, Int8Type, Int32Type, Schema},
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};

/// A folder for one test, gone at its end. Tools run inside it, so that messages hold short names.
pub struct Dir(tempfile::TempDir);

impl Dir {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Names of what lies in it, sorted.
    pub fn list(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn put(&self, name: &str, table: &RecordBatch) -> PathBuf {
        let mut writer = ArrowWriter::try_new(File::create(self.path(name)).unwrap(), table.schema(), None).unwrap();
        writer.write(table).unwrap();
        writer.close().unwrap();
        self.path(name)
    }

    /// A Parquet file, or a folder of parts, whole.
    pub fn get(&self, name: &str) -> RecordBatch {
        read_parquet(&self.path(name))
    }

    /// A named pipe, and a thread that reads what comes out of it.
    pub fn fifo(&self, name: &str) -> std::thread::JoinHandle<Vec<u8>> {
        let path = self.path(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        std::thread::spawn(move || std::fs::read(path).unwrap())
    }

    pub fn tool(&self, name: &str) -> Tool {
        let mut tool = Tool::new(name);
        tool.command.current_dir(self.0.path());
        tool
    }
}

pub fn read_parquet(path: &Path) -> RecordBatch {
    if path.is_dir() {
        let mut parts: Vec<_> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        parts.sort();
        let parts: Vec<_> = parts.iter().map(|p| read_parquet(p)).collect();
        return concat_batches(&parts[0].schema(), &parts).unwrap();
    }
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let schema = builder.schema().clone();
    concat_batches(&schema, &builder.build().unwrap().map(Result::unwrap).collect::<Vec<_>>()).unwrap()
}

/// Where networks run in these tests, if not on the CPU: `make test-cuda` says so.
pub fn test_device() -> Option<String> {
    std::env::var("TEST_DEVICE").ok()
}

/// One of our binaries.
pub struct Tool {
    name: String,
    pub command: Command,
    stdin: Option<Vec<u8>>,
    stdin_file: Option<File>,
}

/// What came of a run.
pub struct Run {
    pub code: Option<i32>,
    pub out: Vec<u8>,
    pub err: String,
}

impl Tool {
    pub fn new(name: &str) -> Self {
        let path = match name {
            "score" => option_env!("CARGO_BIN_EXE_score"),
            "vote" => option_env!("CARGO_BIN_EXE_vote"),
            "train" => option_env!("CARGO_BIN_EXE_train"),
            "refresh-ref" => option_env!("CARGO_BIN_EXE_refresh-ref"),
            "sample" => option_env!("CARGO_BIN_EXE_sample"),
            "winrate" => option_env!("CARGO_BIN_EXE_winrate"),
            "prompts" => option_env!("CARGO_BIN_EXE_prompts"),
            "pairs" => option_env!("CARGO_BIN_EXE_pairs"),
            "encode" => option_env!("CARGO_BIN_EXE_encode"),
            "report" => option_env!("CARGO_BIN_EXE_report"),
            "check" => option_env!("CARGO_BIN_EXE_check"),
            "rehearse" => option_env!("CARGO_BIN_EXE_rehearse"),
            _ => None,
        };
        let path = path.unwrap_or_else(|| panic!("{name} was not built"));
        let mut command = Command::new(path);
        if let (Some(device), "score" | "train" | "refresh-ref" | "sample" | "encode") = (test_device(), name) {
            command.args(["--device", &device]);
        }
        Self { name: name.into(), command, stdin: None, stdin_file: None }
    }

    pub fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub fn arg(self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.args([arg])
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Standard input is this file, as after the shell's `<`.
    pub fn stdin_file(mut self, path: &Path) -> Self {
        self.stdin_file = Some(File::open(path).unwrap());
        self
    }

    pub fn run(mut self) -> Run {
        let stdin = match self.stdin_file.take() {
            Some(file) => file.into(),
            None if self.stdin.is_some() => Stdio::piped(),
            None => Stdio::null(),
        };
        let command = self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let feeder = self.stdin.map(|bytes| {
            let mut pipe = child.stdin.take().unwrap();
            // A tool that stops early closes the pipe; that is its right.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)))
        });
        let output = child.wait_with_output().unwrap();
        if let Some(feeder) = feeder {
            feeder.join().unwrap();
        }
        Run { code: output.status.code(), out: output.stdout, err: String::from_utf8(output.stderr).unwrap() }
    }

    /// Runs, and ends the test unless the exit code is 0.
    #[track_caller]
    pub fn ok(self) -> Run {
        self.exits(0)
    }

    /// Runs, and ends the test unless it fails with this code and one line that begins with the tool's name. Returns the line.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        let name = self.name.clone();
        let run = self.exits(code);
        let lines: Vec<_> = run.err.lines().filter(|l| !l.contains(": note: ") && !l.contains(": warning: ")).collect();
        assert!(lines.len() == 1 && lines[0].starts_with(&format!("{name}: ")), "not one sentence: {}", run.err);
        lines[0].to_owned()
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Run {
        let run = self.run();
        assert_eq!(run.code, Some(code), "{}{}", String::from_utf8_lossy(&run.out), run.err);
        run
    }
}

impl Run {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Standard output as an Arrow stream.
    pub fn table(&self) -> RecordBatch {
        read_stream(&self.out)
    }
}

/// `make` in the repository, without the environment of a `make` that may have started this test.
pub fn make(args: &[&str]) -> Command {
    let mut make = Command::new("make");
    make.current_dir(env!("CARGO_MANIFEST_DIR")).args(args);
    for inherited in ["MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "CARGO_TARGET_DIR"] {
        make.env_remove(inherited);
    }
    make
}

/// An Arrow stream, whole.
pub fn read_stream(bytes: &[u8]) -> RecordBatch {
    let reader = StreamReader::try_new(bytes, None).unwrap();
    let schema = reader.schema();
    concat_batches(&schema, &reader.map(Result::unwrap).collect::<Vec<_>>()).unwrap()
}

/// Checks that a message holds all of these.
#[track_caller]
pub fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

/// A table as an Arrow stream, with its end mark.
pub fn stream(table: &RecordBatch) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(vec![], &table.schema()).unwrap();
    writer.write(table).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

pub fn table(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, c)| (name, c, true))).unwrap()
}

/// The table with this origin in its metadata.
pub fn with_origin(table: &RecordBatch, origin: &str) -> RecordBatch {
    let schema = Schema::clone(&table.schema()).with_metadata([("origin".to_owned(), origin.to_owned())]);
    RecordBatch::try_new(Arc::new(schema), table.columns().to_vec()).unwrap()
}

pub fn without(table: &RecordBatch, column: &str) -> RecordBatch {
    let mut table = table.clone();
    table.remove_column(table.schema().index_of(column).unwrap());
    table
}

pub fn texts<S: Into<String>>(values: impl IntoIterator<Item = S>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values.into_iter().map(Into::into)))
}

pub fn floats(values: impl IntoIterator<Item = Option<f32>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<Float32Array>())
}

type Scores<'a> = &'a [Option<f32>];

/// A scores table of pairs p0, p1, ...: for each metric its scores of image 0 and image 1.
pub fn scores(label_0: Scores, metrics: &[(&str, Scores, Scores)]) -> RecordBatch {
    let n = label_0.len();
    let name = |what: &'static str| texts((0..n).map(|i| format!("{what}{i}")));
    let mut columns = vec![
        ("pair_id".to_owned(), name("p")),
        ("caption".to_owned(), name("caption ")),
        ("image_0_uid".to_owned(), name("a")),
        ("image_1_uid".to_owned(), name("b")),
        ("label_0".to_owned(), floats(label_0.iter().copied())),
    ];
    for (m, zero, one) in metrics {
        columns.push((format!("{m}_0"), floats(zero.iter().copied())));
        columns.push((format!("{m}_1"), floats(one.iter().copied())));
    }
    table(columns.iter().map(|(name, c)| (name.as_str(), c.clone())).collect())
}

/// A scored table of one model. `scores[p]` are the scores of prompt p's images; every metric gets them, the m-th through `f(m, x)`.
pub fn scored(model: &str, metrics: &[&str], scores: &[Vec<f32>], f: impl Fn(usize, f32) -> f32) -> RecordBatch {
    let rows: Vec<_> =
        scores.iter().enumerate().flat_map(|(p, xs)| xs.iter().enumerate().map(move |(k, &x)| (p, k, x))).collect();
    let column = |value: &dyn Fn(usize, usize) -> String| texts(rows.iter().map(|&(p, k, _)| value(p, k)));
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("prompt_id", column(&|p, _| format!("{p:016x}"))),
        ("prompt", column(&|p, _| format!("prompt {p}"))),
        ("set", column(&|p, _| if p % 2 == 0 { "even".into() } else { "odd".into() })),
        ("category", column(&|p, _| format!("category {}", p % 3))),
        ("challenge", Arc::new(StringArray::new_null(rows.len()))),
        ("image_uid", column(&|p, k| format!("{model}-{p}-{k}"))),
        ("k", Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.1 as u32)))),
        ("seed", Arc::new(UInt64Array::from_iter_values(rows.iter().map(|r| (100 * r.0 + r.1) as u64)))),
        ("model", column(&|_, _| model.into())),
    ];
    for (m, name) in metrics.iter().enumerate() {
        columns.push((name, floats(rows.iter().map(|r| Some(f(m, r.2))))));
    }
    table(columns)
}

pub fn column_f32(table: &RecordBatch, name: &str) -> Vec<f32> {
    column(table, name).as_primitive::<Float32Type>().values().to_vec()
}

pub fn column_i8(table: &RecordBatch, name: &str) -> Vec<i8> {
    column(table, name).as_primitive::<Int8Type>().values().to_vec()
}

pub fn column_i32(table: &RecordBatch, name: &str) -> Vec<i32> {
    column(table, name).as_primitive::<Int32Type>().values().to_vec()
}

pub fn column_f32_or_null(table: &RecordBatch, name: &str) -> Vec<Option<f32>> {
    column(table, name).as_primitive::<Float32Type>().iter().collect()
}

/// A text column; a null is "".
pub fn column_text(table: &RecordBatch, name: &str) -> Vec<String> {
    column(table, name).as_string::<i32>().iter().map(|s| s.unwrap_or("").to_owned()).collect()
}

pub fn column<'a>(table: &'a RecordBatch, name: &str) -> &'a ArrayRef {
    table.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"))
}

/// Numbers in [0, 1) that look random and are the same every time (splitmix64).
pub fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }
}
