//! Tables in streams and folders of parts, whole and damaged.

use super::*;

fn uids(table: &RecordBatch) -> Vec<String> {
    column_text(table, "image_0_uid")
}

/// Nobody knows how many rows come out of a stream; the tables after it are read all the same.
#[test]
fn tables_after_a_stream_keep_their_rows() {
    let dir = Dir::new();
    let all = pairs(9);
    dir.put("two.parquet", &all.slice(4, 2));
    dir.write("one.arrows", stream(&all.slice(0, 4)));
    dir.write("three.arrows", stream(&all.slice(6, 3)));
    for tables in ["one.arrows two.parquet three.arrows", "- two.parquet three.arrows"] {
        colourfulness(&dir, tables, "out").stdin(stream(&all.slice(0, 4))).ok();
        assert_eq!(uids(&dir.get("out")), uids(&all), "{tables}");
    }
    colourfulness(&dir, "two.parquet one.arrows", "out").ok();
    assert_eq!(uids(&dir.get("out")), [uids(&all.slice(4, 2)), uids(&all.slice(0, 4))].concat());
}

/// As other programs name the files of one table.
#[test]
fn folders_of_parts_by_other_programs() {
    let dir = Dir::new();
    let all = pairs(6);
    let put = |folder: &str, names: [&str; 3]| {
        std::fs::create_dir_all(dir.path(folder)).unwrap();
        for (i, name) in names.iter().enumerate() {
            dir.put(&format!("{folder}/{name}"), &all.slice(2 * i, 2));
        }
    };
    put("hub", ["0000.parquet", "0001.parquet", "0002.parquet"]);
    let spark = |partition: usize, file: usize| format!("part-{partition:05}-0f3e-4a1b.c{file:03}.snappy.parquet");
    put("spark", [&spark(0, 0), &spark(0, 1), &spark(7, 0)]); // it writes nothing for partitions without rows
    dir.write("spark/_SUCCESS", "");
    put("named", ["train-00000-of-00003.parquet", "train-00001-of-00003.parquet", "train-00002-of-00003.parquet"]);
    for folder in ["hub", "spark", "named"] {
        colourfulness(&dir, folder, "out").ok();
        assert_eq!(uids(&dir.get("out")), uids(&all), "{folder}");
    }
    std::fs::remove_file(dir.path("hub/0001.parquet")).unwrap();
    says(&colourfulness(&dir, "hub", "new").fails(2), &["hub", "part 1 is missing"]);
    std::fs::remove_file(dir.path("named/train-00002-of-00003.parquet")).unwrap();
    says(&colourfulness(&dir, "named", "new").fails(2), &["train-00002-of-00003.parquet is missing"]);
    dir.put("spark/part-00000-other.c000.snappy.parquet", &all);
    says(&colourfulness(&dir, "spark", "new").fails(2), &["different tables"]);
}

/// Whatever bit of a batch's header is wrong: a sentence, or the right rows. A panic of a crate that reads is not the end.
#[test]
fn damaged_streams_end_in_a_sentence() {
    let dir = Dir::new();
    let table = scores(&[None; 5], &[("hps", &[Some(0.25); 5], &[Some(0.5); 5])]);
    let whole = stream(&table);
    let after_schema = 8 + u32::from_le_bytes(whole[4..8].try_into().unwrap()) as usize;
    let header = u32::from_le_bytes(whole[after_schema + 4..after_schema + 8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for at in (after_schema + 8..after_schema + 8 + header).step_by(2) {
        let mut damaged = whole.clone();
        damaged[at] ^= 16;
        dir.write("damaged", damaged);
        let run = dir.tool("vote").args(["damaged", "-q", "-o", "out", "--threads", "1"]).run();
        match run.code {
            Some(0) => assert_eq!(dir.get("out").num_rows(), 5, "byte {at}"),
            Some(2) => {
                assert!(run.err.starts_with("vote: damaged") && run.err.lines().count() == 1, "{at}: {}", run.err)
            }
            code => panic!("byte {at}: exit {code:?}: {}", run.err),
        }
        refused += usize::from(run.code == Some(2));
        let _ = std::fs::remove_file(dir.path("out"));
    }
    assert!(refused > 20, "only {refused} were noticed");
}

/// A panic on the thread that reads ahead was taken for the end of the rows.
#[test]
fn a_broken_reader_is_not_the_end_of_the_rows() {
    let dir = Dir::new();
    let all = pairs(4);
    let whole = stream(&all.slice(0, 2));
    let second = stream(&all.slice(2, 2));
    let length = |at: usize, bytes: &[u8]| 8 + u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
    let schema = length(0, &second);
    let batch = &second[schema..]; // with its end mark
    let header = length(0, batch);
    let mut outcomes = [0, 0];
    for at in (8..header).step_by(7) {
        let mut damaged = [&whole[..whole.len() - 8], batch].concat();
        damaged[whole.len() - 8 + at] ^= 64;
        dir.write("damaged", damaged);
        let run = colourfulness(&dir, "damaged", "out").run();
        match run.code {
            Some(0) => assert_eq!(dir.get("out").num_rows(), 4, "byte {at}"),
            code => assert!(code == Some(2) && !dir.path("out").exists(), "byte {at}: {code:?} {}", run.err),
        }
        outcomes[usize::from(run.code == Some(2))] += 1;
        let _ = std::fs::remove_file(dir.path("out"));
    }
    assert!(outcomes[1] > 5, "{outcomes:?}");
}
