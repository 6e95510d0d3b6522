//! Inputs that are missing, damaged, foreign or of another form.

use super::*;

#[test]
fn a_missing_input_is_named() {
    let dir = world();
    let before = listing(&dir.path(""));
    for (tool, args) in COMMANDS.iter().map(|command| split(command)) {
        let inputs: Vec<_> = args.iter().filter(|arg| dir.path(arg).exists()).collect();
        assert!(!inputs.is_empty());
        for input in inputs {
            let error = dir.tool(tool).args(replaced(&args, input, "absent")).fails(2);
            says(&error, &["absent"]);
        }
        assert_eq!(listing(&dir.path("")), before, "{tool} left something behind");
    }
}

#[test]
fn a_missing_or_foreign_file() {
    for case in cases(1) {
        let dir = case.dir();
        case.refuses(&dir, dir.tool(case.tool).args(["absent"]), &["absent", "No such file"]);
        dir.write("text", b"\x00\x01\xfe not a table");
        case.refuses(&dir, dir.tool(case.tool).args(["text"]), &["text", "table"]);
        dir.write("nothing", b"");
        case.refuses(&dir, dir.tool(case.tool).args(["nothing"]), &["nothing is empty"]);
        std::fs::create_dir(dir.path("folder")).unwrap();
        case.refuses(&dir, dir.tool(case.tool).args(["folder"]), &["folder", "part-00000"]);
        dir.put("folder/part-00001-of-00002.parquet", &case.input);
        case.refuses(&dir, dir.tool(case.tool).args(["folder"]), &["part-00000-of-00002.parquet is missing", "0/2"]);
        dir.put("folder/part-00001-of-00003.parquet", &case.input);
        case.refuses(&dir, dir.tool(case.tool).args(["folder"]), &["parts of different tables", "remove the old ones"]);
        std::fs::remove_file(dir.path("folder/part-00001-of-00002.parquet")).unwrap();
        let missing = ["2 of 3 parts are missing", "part-00000-of-00003.parquet first", "I = 0,2"];
        case.refuses(&dir, dir.tool(case.tool).args(["folder"]), &missing);
        // An object, without asking anybody for it.
        #[cfg(not(feature = "cloud"))]
        for url in ["s3://bucket/table.parquet", "http://127.0.0.1:1/parts/"] {
            case.refuses(&dir, dir.tool(case.tool).args([url]), &[url, "--features cloud"]);
        }
    }
}

#[test]
fn a_parquet_file_that_is_cut_off_or_damaged() {
    for case in cases(5000) {
        let dir = case.dir();
        let whole = dir.bytes("given");
        for keep in [5, whole.len() / 2, whole.len() - 1] {
            dir.write("cut", &whole[..keep]);
            case.refuses(&dir, dir.tool(case.tool).args(["cut"]), &["cut is not a whole table"]);
        }
        let mut hole = whole.clone();
        hole[4..whole.len() / 2].fill(0);
        dir.write("hole", &hole);
        case.refuses(&dir, dir.tool(case.tool).args(["hole"]), &["hole is not a whole table"]);
    }
}

#[test]
fn a_stream_whose_producer_died() {
    for case in cases(5000) {
        let dir = case.dir();
        let whole = stream(&case.input);
        dir.tool(case.tool).args(["-"]).args(case.rest).stdin(whole.clone()).ok();
        std::fs::remove_file(dir.path("out")).unwrap();
        // A named pipe gives its bytes once.
        dir.tool(case.tool).args(["/dev/stdin"]).args(case.rest).stdin(whole.clone()).ok();
        std::fs::remove_file(dir.path("out")).unwrap();
        // Without its end mark, in the middle of a batch, in the middle of the schema.
        for keep in [whole.len() - 8, whole.len() / 2, 20] {
            let tool = dir.tool(case.tool).args(["-"]).stdin(&whole[..keep]);
            case.refuses(&dir, tool, &["standard input", "stopped"]);
        }
        dir.write("file", &whole[..whole.len() - 8]);
        case.refuses(&dir, dir.tool(case.tool).args(["file"]), &["file", "stopped"]);
        case.refuses(&dir, dir.tool(case.tool).args(["-"]).stdin(""), &["standard input is empty"]);
        case.refuses(&dir, dir.tool(case.tool).args(["-", "-"]).stdin(whole), &["only once"]);
    }
}

/// As pyarrow's and pandas' `to_feather` write it.
#[test]
fn compressed_arrow_files_and_streams() {
    for case in cases(5000) {
        let dir = case.dir();
        let answer = |input: &str, bytes: &[u8]| {
            dir.write("table", bytes);
            let tool = dir.tool(case.tool).args([input]).args(case.rest);
            let printed = if input == "-" { tool.stdin(bytes) } else { tool }.ok().out;
            let columns = (!case.prints).then(|| dir.get("out").columns().to_vec());
            std::fs::remove_file(dir.path("out")).unwrap();
            (printed, columns)
        };
        let (of_file, of_stream) = (answer("table", &dir.bytes("given")), answer("-", &stream(&case.input)));
        let frames =
            [(CompressionType::LZ4_FRAME, [0x04, 0x22, 0x4d, 0x18]), (CompressionType::ZSTD, [0x28, 0xb5, 0x2f, 0xfd])];
        for (compression, mark) in frames {
            let options = || IpcWriteOptions::default().try_with_compression(Some(compression)).unwrap();
            let mut file = FileWriter::try_new_with_options(vec![], &case.input.schema(), options()).unwrap();
            file.write(&case.input).unwrap();
            file.finish().unwrap();
            let file = file.into_inner().unwrap();
            assert!(answer("table", &file) == of_file, "{} reads a file", case.tool);
            let mut stream = StreamWriter::try_new_with_options(vec![], &case.input.schema(), options()).unwrap();
            stream.write(&case.input).unwrap();
            stream.finish().unwrap();
            let stream = stream.into_inner().unwrap();
            assert!(answer("-", &stream) == of_stream, "{} reads a stream", case.tool);
            std::fs::remove_file(dir.path("table")).unwrap();

            // A length before a column that promises 64 GiB.
            for (name, whole) in [("stream", stream), ("file", file)] {
                let at = whole.windows(4).position(|bytes| bytes == mark).unwrap();
                let mut bomb = whole.clone();
                bomb[at - 8..at].copy_from_slice(&(64u64 << 30).to_le_bytes());
                dir.write(name, bomb);
                case.refuses(
                    &dir,
                    dir.tool(case.tool).args([name]),
                    &["its compressed columns promise 6871", "more than any table of its size"],
                );
            }
        }
    }
}

/// `cat a b | tool -`: the second table's rows were passed over.
#[test]
fn two_streams_in_one_pipe() {
    for case in cases(3) {
        let dir = case.dir();
        let one = stream(&case.input);
        case.refuses(&dir, dir.tool(case.tool).args(["-"]).stdin([&one[..], &one].concat()), &["follow the end mark"]);
    }
}

#[test]
fn a_missing_column_is_named_with_what_was_found() {
    for case in cases(3) {
        let dir = case.dir();
        // A table of one foreign column is still a table.
        dir.put("less", &table(vec![("foreign", texts(["a", "b", "c"]))]));
        case.refuses(&dir, dir.tool(case.tool).args(["less"]), &["less"]);
        if case.input.num_columns() > 1 {
            dir.put("less", &without(&case.input, case.column));
            let column = format!("column '{}' is missing (found: ", case.column);
            case.refuses(&dir, dir.tool(case.tool).args(["less"]), &["less", &column]);
        }
    }
}

#[test]
fn a_table_without_rows() {
    for case in cases(3) {
        let dir = case.dir();
        let empty = case.input.slice(0, 0);
        dir.put("empty", &empty);
        case.refuses(&dir, dir.tool(case.tool).args(["empty"]), &["empty has no"]);
        case.refuses(&dir, dir.tool(case.tool).args(["-"]).stdin(stream(&empty)), &["standard input has no"]);
    }
}
