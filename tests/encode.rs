//! `encode`, through the binary.
#![cfg(feature = "nets")]

mod util;

use std::collections::HashSet;

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::{concat_batches, take_record_batch},
    datatypes::{Float16Type, UInt32Type},
};
use util::{world::*, *};

/// With the small model, 16 pixels, factor 2: latents of 4 x 8 x 8.
fn encode(dir: &Dir, pairs: &str, out: &str, rest: &[&str]) -> Tool {
    let args = [pairs, "-o", out, "--resolution", "16", "-q"];
    let base = oracle("base").display().to_string();
    let base = if rest.contains(&"--base") { vec![] } else { vec!["--base", &base[..]] };
    dir.tool("encode").args(args.iter().chain(&base).chain(rest))
}

fn tables(dir: &Dir, out: &str) -> [RecordBatch; 3] {
    ["latents", "captions", "pairs"].map(|name| dir.get(&format!("{out}/{name}.parquet")))
}

fn flipped(latents: &RecordBatch) -> Vec<bool> {
    column(latents, "flipped").as_boolean().iter().map(|f: Option<bool>| f.unwrap()).collect()
}

fn row(table: &RecordBatch, name: &str, i: usize) -> Vec<f32> {
    let values = column(table, name).as_list::<i32>().value(i);
    values.as_primitive::<Float16Type>().values().iter().map(|v| v.to_f32()).collect()
}

#[test]
fn each_distinct_image_and_caption_once() {
    let dir = Dir::new();
    let table = pairs(150); // three chunks
    dir.put("pairs.parquet", &table);
    encode(&dir, "pairs.parquet", "out", &[]).ok();
    let [latents, captions, list] = tables(&dir, "out");
    let both = [column_text(&table, "image_0_uid"), column_text(&table, "image_1_uid")].concat();
    let distinct: HashSet<_> = both.iter().cloned().collect();
    let uids = column_text(&latents, "image_uid");
    assert_eq!(uids.len(), distinct.len());
    assert_eq!(uids.iter().cloned().collect::<HashSet<_>>(), distinct);
    let texts = column_text(&captions, "caption");
    let distinct: HashSet<_> = column_text(&table, "caption").into_iter().collect();
    assert!(texts[0].is_empty() && texts.len() == 1 + distinct.len(), "the empty caption, then each once");
    // Rows and order of the pairs stay.
    for name in ["caption", "image_0_uid", "image_1_uid"] {
        assert_eq!(column_text(&list, name), column_text(&table, name));
    }
    assert_eq!(column_text(&list, "pair_id"), column_text(&labels(&table, some), "pair_id"));
    assert_eq!(latents.schema().metadata()["latent_shape"], "[4,8,8]");
    assert_eq!(captions.schema().metadata()["state_shape"], "[16,8]");
    assert_eq!((row(&latents, "mean", 3).len(), row(&captions, "states", 3).len()), (256, 128));
    assert_eq!(column_i32(&latents, "original_width")[0], 64);
    assert_eq!(dir.list(), ["out", "pairs.parquet"], "nothing else is left");

    // Images shown twice, under the same uid, and the same pairs again.
    let again = concat_batches(&table.schema(), &[table.slice(0, 100), swapped(&table.slice(0, 90))]).unwrap();
    dir.put("again.parquet", &again);
    dir.put("first.parquet", &table.slice(0, 100));
    encode(&dir, "again.parquet", "again", &[]).ok();
    encode(&dir, "first.parquet", "first", &[]).ok();
    let (twice, once) = (tables(&dir, "again"), tables(&dir, "first"));
    assert_eq!((twice[0].columns(), twice[1].columns()), (once[0].columns(), once[1].columns()));
    assert_eq!(twice[2].num_rows(), 190);
}

/// The numbers are those of the VAE and the text encoder on what `train` would show them: see tests/nets.rs and
/// `from_the_cache_of_encode_as_from_pairs` in tests/train.rs.
#[test]
fn mirrored_images_stand_beside_the_plain_ones() {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(10));
    encode(&dir, "pairs.parquet", "plain", &[]).ok();
    encode(&dir, "pairs.parquet", "both", &["--augment", "pair-flip"]).ok();
    let ([plain, ..], [both, ..]) = (tables(&dir, "plain"), tables(&dir, "both"));
    assert_eq!(both.num_rows(), 2 * plain.num_rows());
    let keep: BooleanArray = flipped(&both).into_iter().map(|f| Some(!f)).collect();
    let only = arrow::compute::filter_record_batch(&both, &keep).unwrap();
    assert_eq!(only.columns(), plain.columns());
    // A mirrored picture of a mirrored picture: its own table.
    let differing = (0..plain.num_rows()).filter(|i| row(&both, "mean", 2 * i) != row(&both, "mean", 2 * i + 1));
    assert!(differing.count() > plain.num_rows() / 2, "mirroring changes most images");
    assert_eq!(flipped(&both)[..4], [false, true, false, true]);
}

#[test]
fn threads_and_batches_change_nothing() {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(70));
    encode(&dir, "pairs.parquet", "a", &["--threads", "1"]).ok();
    for rest in [&["--threads", "2"][..], &["--batch", "3"], &["--batch", "500"], &["--seed", "4"]] {
        encode(&dir, "pairs.parquet", "b", rest).ok();
        assert!(tree(&dir.path("a")) == tree(&dir.path("b")), "{rest:?}");
    }
    // From a pipe: the same rows.
    encode(&dir, "-", "piped", &[]).stdin(stream(&pairs(70))).ok();
    for (a, b) in tables(&dir, "a").iter().zip(tables(&dir, "piped")) {
        assert_eq!(a.columns(), b.columns());
    }
    let origin: serde_json::Value = serde_json::from_str(&tables(&dir, "a")[0].schema().metadata()["origin"]).unwrap();
    assert_eq!(origin["args"], serde_json::json!({"resolution": 16, "flips": false}));
    assert_eq!(origin["models"].as_object().unwrap().len(), 2);
}

#[test]
fn a_rerun_keeps_other_files_in_the_folder() {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(3));
    encode(&dir, "pairs.parquet", "cache", &[]).ok();
    dir.write("cache/labels.parquet", "a table of the user");
    std::fs::create_dir(dir.path("cache/notes")).unwrap();
    encode(&dir, "pairs.parquet", "cache", &["--augment", "pair-flip"]).ok();
    assert_eq!(flipped(&tables(&dir, "cache")[0])[..2], [false, true], "the tables are replaced");
    assert_eq!(dir.bytes("cache/labels.parquet"), b"a table of the user");
    assert!(dir.path("cache/notes").is_dir());
    // A table that encode did not make is not replaced, and neither is an input.
    std::fs::create_dir(dir.path("data")).unwrap();
    dir.put("data/pairs.parquet", &pairs(3));
    let before = tree(&dir.path("data"));
    for input in ["data/pairs.parquet", "pairs.parquet"] {
        says(&encode(&dir, input, "data", &[]).fails(2), &["data/pairs.parquet was not made by encode", "another"]);
    }
    assert!(tree(&dir.path("data")) == before);
    std::fs::create_dir(dir.path("parts")).unwrap();
    dir.put("parts/part-00000-of-00001.parquet", &pairs(3));
    for rest in [&[][..], &["--shard", "0/2"]] {
        says(&encode(&dir, "parts", "parts", rest).fails(2), &["parts is also an input"]);
    }
    assert_eq!(dir.list(), ["cache", "data", "pairs.parquet", "parts"]);
}

#[test]
fn a_killed_run_continues_to_the_same_bytes() {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(700));
    encode(&dir, "pairs.parquet", "whole", &[]).ok();
    let whole = tree(&dir.path("whole"));
    for finished in [1, 4] {
        let mut child = spawn(encode(&dir, "pairs.parquet", "out", &[]));
        let last = dir.path(&format!("out.partial/{:06}.crc32c", finished - 1));
        wait_for("a part", || last.exists());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!dir.path("out").exists());
        // Other work is refused, and what is finished stays.
        let _ = std::fs::remove_file(dir.path("out.partial/.lock"));
        let before = tree(&dir.path("out.partial"));
        let error = encode(&dir, "pairs.parquet", "out", &["--augment", "pair-flip"]).fails(2);
        says(&error, &["out.partial", "other work"]);
        dir.put("other.parquet", &pairs(699));
        says(&encode(&dir, "other.parquet", "out", &[]).fails(2), &["other work"]);
        assert!(tree(&dir.path("out.partial")) == before);
        let stamp = std::fs::metadata(&last).unwrap().modified().unwrap();
        let mut run = spawn(encode(&dir, "pairs.parquet", "out", &["--threads", "2"]));
        wait_for("the next part", || dir.path(&format!("out.partial/{finished:06}.crc32c")).exists());
        assert_eq!(std::fs::metadata(&last).unwrap().modified().unwrap(), stamp, "a finished part was made again");
        assert!(run.wait().unwrap().success());
        assert!(tree(&dir.path("out")) == whole);
        assert!(!dir.path("out.partial").exists());
        std::fs::remove_dir_all(dir.path("out")).unwrap();
    }
    // SIGTERM ends after the part at hand.
    let mut child = spawn(encode(&dir, "pairs.parquet", "out", &[]));
    wait_for("a part", || dir.path("out.partial/000000.crc32c").exists());
    std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    encode(&dir, "pairs.parquet", "out", &[]).ok();
    assert!(tree(&dir.path("out")) == whole);
    // Killed while joining: the tables that were there are joined again.
    std::fs::create_dir_all(dir.path("out.partial")).unwrap();
    encode(&dir, "pairs.parquet", "out", &[]).exits(0);
    assert!(tree(&dir.path("out")) == whole);
}

/// Pipes have no content hash: the parts themselves say whose they are.
#[test]
fn a_pipe_does_not_continue_the_work_of_another() {
    let dir = Dir::new();
    let table = pairs(140);
    let mut broken = stream(&table.slice(0, 128));
    broken.truncate(broken.len() - 8);
    // The first chunk is finished before the stream turns out to be cut off.
    encode(&dir, "-", "out", &[]).stdin(broken).fails(2);
    assert!(dir.path("out.partial/000000.pairs.parquet").exists() && !dir.path("out").exists());
    let error = encode(&dir, "-", "out", &[]).stdin(stream(&table.slice(1, 139))).fails(2);
    says(&error, &["other work"]);
    encode(&dir, "-", "out", &[]).stdin(stream(&table)).ok();
    assert_eq!(tables(&dir, "out")[2].num_rows(), 140);
}

#[test]
fn bad_input_is_one_sentence_and_nothing_is_written() {
    let dir = Dir::new();
    let good = pairs(12);
    let jpgs: Vec<_> = (0..12).map(|i| image(&good, "jpg_0", i)).collect();
    let jpg = |at: usize, bytes: Option<&'static [u8]>| {
        images(&(0..12).map(|i| if i == at { bytes } else { Some(&jpgs[i][..]) }).collect::<Vec<_>>())
    };
    dir.put("good", &good);
    dir.put("text", &with(&good, "jpg_0", jpg(5, Some(b"not an image"))));
    dir.put("hole", &with(&good, "jpg_0", jpg(6, None)));
    let null = arrow::array::StringArray::from_iter((0..12).map(|i| (i != 3).then_some("a cat")));
    dir.put("null", &with(&good, "caption", std::sync::Arc::new(null)));
    dir.put("no-jpg", &without(&good, "jpg_1"));
    dir.put("none", &good.slice(0, 0));
    dir.write("cut", &dir.bytes("good")[..9000]);
    dir.write("plain", "a file");
    let before = dir.list();
    let mini = mini().display().to_string();
    for (input, rest, parts) in [
        ("text", &[][..], &["text, row 5", "'jpg_0'"][..]),
        ("hole", &[], &["hole, row 6", "'jpg_0' is null"]),
        ("null", &[], &["null, row 3", "'caption' is null"]),
        ("no-jpg", &[], &["no-jpg: column 'jpg_1' is missing"]),
        ("none", &[], &["none has no rows"]),
        ("cut", &[], &["cut is not a whole table"]),
        ("good", &["--base", "absent"], &["absent/text_encoder"]),
        ("good", &["--base", &format!("{mini}/unet")], &["base/unet", "text_encoder/"]),
        ("good", &["--batch", "0"], &["--batch is 0"]),
        ("text", &["--shard", "0/2"], &["text, row 5"]),
        ("good", &["--dtype", "bf16"], &["f32"]),
    ] {
        says(&encode(&dir, input, "out", rest).fails(2), parts);
        assert_eq!(dir.list(), before, "{input} {rest:?}");
    }
    for (out, parts) in [("plain", "plain: it is not a folder"), ("-", "a folder")] {
        says(&encode(&dir, "good", out, &[]).fails(2), &[parts]);
    }
    says(&encode(&dir, "good", "plain/out", &[]).fails(2), &["plain/out"]);
    let base = oracle("base").display().to_string();
    let args = ["good", "-o", "out", "--resolution", "15", "--base", &base];
    says(&dir.tool("encode").args(args).fails(2), &["--resolution 15 is not a multiple of the VAE's 2"]);
    assert_eq!(dir.list(), before);
    // An earlier cache is replaced only by a whole one.
    encode(&dir, "good", "out", &[]).ok();
    let cache = tree(&dir.path("out"));
    encode(&dir, "text", "out", &[]).fails(2);
    assert!(tree(&dir.path("out")) == cache);
    let order = arrow::array::PrimitiveArray::<UInt32Type>::from_iter_values((0..12).rev());
    dir.put("back", &take_record_batch(&good, &order).unwrap());
    encode(&dir, "back", "out", &[]).ok();
    assert!(tree(&dir.path("out")) != cache);
}

#[test]
fn shards_put_together_are_the_whole() {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(150));
    encode(&dir, "pairs.parquet", "whole", &[]).ok();
    for shard in ["2/3", "0/3", "1/3"] {
        encode(&dir, "pairs.parquet", "parts", &["--shard", shard]).ok();
    }
    let files: Vec<_> = tree(&dir.path("parts")).into_keys().map(|p| p.display().to_string()).collect();
    let names = |t: &str| [0, 1, 2].map(|i| format!("{t}.parquet/part-{i:05}-of-00003.parquet"));
    assert_eq!(files, [names("captions"), names("latents"), names("pairs")].concat());
    let (whole, parts) = (tables(&dir, "whole"), tables(&dir, "parts"));
    assert_eq!(whole[2].columns(), parts[2].columns());
    // An image of pairs in two shards stands in both, with the same numbers.
    for (table, key, value) in [(0, "image_uid", "mean"), (0, "image_uid", "logvar"), (1, "caption", "states")] {
        let once = column_text(&whole[table], key);
        let again = column_text(&parts[table], key);
        assert!(once.iter().all(|k| again.contains(k)));
        for (i, k) in again.iter().enumerate() {
            let there = once.iter().position(|o| o == k).unwrap();
            assert_eq!(row(&parts[table], value, i), row(&whole[table], value, there), "{k}");
        }
    }
    // Over a whole cache no parts are written, and the other way round.
    let error = encode(&dir, "pairs.parquet", "whole", &["--shard", "0/3"]).fails(2);
    says(&error, &["whole/pairs.parquet is a whole table"]);
    says(&encode(&dir, "pairs.parquet", "parts", &[]).fails(2), &["parts/pairs.parquet", "it is a folder"]);
}

#[test]
fn the_size_that_the_unet_was_made_for_is_the_default() {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(2));
    let base = oracle("base");
    let run = dir.tool("encode").args(["pairs.parquet", "-o", "out", "--json", "--base"]).arg(&base).ok();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(base.join("unet/config.json")).unwrap()).unwrap();
    let side = 2 * config["sample_size"].as_u64().unwrap();
    assert_eq!(run.json()["resolution"], side);
    assert_eq!(run.json()["pairs"], 2);
    let latents = dir.get("out/latents.parquet");
    assert_eq!(latents.schema().metadata()["latent_shape"], format!("[4,{0},{0}]", side / 2));
}

/// A cache is replaced as a whole, and what else lies in its folder stays there.
#[test]
fn a_new_cache_takes_the_place_of_the_old_one() {
    let dir = Dir::new();
    dir.put("few.parquet", &pairs(3));
    dir.put("more.parquet", &pairs(8));
    encode(&dir, "few.parquet", "out", &[]).ok();
    encode(&dir, "more.parquet", "right", &[]).ok();
    dir.write("out/notes.txt", "mine");
    std::fs::create_dir(dir.path("out/policy")).unwrap();
    dir.write("out/policy/weights", "mine too");
    encode(&dir, "more.parquet", "out", &[]).ok();
    assert!(tables(&dir, "out") == tables(&dir, "right"));
    assert_eq!((dir.bytes("out/notes.txt"), dir.bytes("out/policy/weights")), (b"mine".to_vec(), b"mine too".to_vec()));
    assert_eq!(dir.list(), ["few.parquet", "more.parquet", "out", "right"]);
    // Hours of another base's work are not replaced.
    let other = dir.path("other");
    copy(&oracle("base"), &other);
    let weights = other.join("vae/diffusion_pytorch_model.safetensors");
    let changed: Tensors = tensors(&weights).into_iter().map(|(name, t)| (name, (t * 1.5).unwrap())).collect();
    write_tensors(&weights, &changed);
    let error = encode(&dir, "few.parquet", "out", &["--base", other.to_str().unwrap()]).fails(2);
    says(&error, &["out", "other models", "choose another folder"]);
    assert!(tables(&dir, "out") == tables(&dir, "right"));
}
