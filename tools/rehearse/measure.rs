//! `rehearse run`: runs a command and notes what it took.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use pipe::cli::complain;
use serde::{Deserialize, Serialize};

/// Run a command, and add to a log what it took
///
/// The log has a line of JSON per run: time, processor time, largest memory, the bytes of what its `-o` names, and the exit code of a
/// command that failed.
#[derive(clap::Args)]
pub struct Args {
    /// The log
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// A line of the log.
#[derive(Serialize, Deserialize)]
pub struct Line {
    /// The program, without its folder.
    pub tool: String,
    /// The path of its output, below the log's folder.
    pub output: String,
    pub seconds: f64,
    /// Processor time of all threads, in the program and in the system.
    pub processor_seconds: f64,
    /// The largest resident memory.
    pub peak_bytes: u64,
    pub written_bytes: u64,
    /// Of a command that failed; 128 + N after signal N.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub exit_code: i32,
}

fn is_zero(code: &i32) -> bool {
    *code == 0
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let [program, words @ ..] = &args.command[..] else { return Ok(ExitCode::SUCCESS) };
    let program = Path::new(program);
    let began = Instant::now();
    let child =
        Command::new(program).args(words).spawn().with_context(|| format!("cannot run {}", program.display()))?;
    let (status, usage) = wait(&child).with_context(|| format!("cannot wait for {}", program.display()))?;
    let seconds = began.elapsed().as_secs_f64();
    let exit_code = status.code().unwrap_or(128 + status.signal().unwrap_or(0));
    let output = words.iter().position(|word| word == "-o" || word == "--sheet").and_then(|at| words.get(at + 1));
    let output = output.map(PathBuf::from).unwrap_or_default();
    let folder = pipe::place::folder_of(&args.log);
    let time = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    // Linux counts memory in units of 1,024 bytes, macOS in bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    let line = Line {
        tool: program.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        output: output.strip_prefix(folder).unwrap_or(&output).display().to_string(),
        seconds,
        processor_seconds: time(usage.ru_utime) + time(usage.ru_stime),
        peak_bytes: usage.ru_maxrss as u64 * unit,
        written_bytes: bytes(&output),
        exit_code,
    };
    // One call, so that the lines of several processes do not mix.
    let text = serde_json::to_string(&line)? + "\n";
    let log = OpenOptions::new().append(true).create(true).open(&args.log);
    let cannot = || format!("cannot write {}", args.log.display());
    log.with_context(cannot)?.write_all(text.as_bytes()).with_context(cannot)?;
    if exit_code != 0 {
        let words: Vec<_> = args.command.iter().map(|word| word.to_string_lossy()).collect();
        let (command, log) = (words.join(" "), args.log.display());
        complain(
            "rehearse",
            &anyhow!(
                "`{command}` failed with exit code {exit_code}; what it printed is above, what it took is the last line of {log}"
            ),
        );
    }
    Ok(ExitCode::from(exit_code as u8))
}

/// Waits for the end of a child: how it ended, and what it took. (The system's sum over all children would include those that this
/// process had before it became this program.)
fn wait(child: &Child) -> io::Result<(ExitStatus, libc::rusage)> {
    let mut status = 0;
    // SAFETY: rusage is made of numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to values that live long enough.
    while unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok((ExitStatus::from_raw(status), usage))
}

/// The size of a file, or of all files in a folder; 0 of anything else.
fn bytes(path: &Path) -> u64 {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| bytes(&entry.path())).sum(),
        Err(_) => path.metadata().map_or(0, |about| about.len()),
    }
}
