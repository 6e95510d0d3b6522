//! Batches: threads, order and abstaining pairs.

use super::*;

#[test]
fn threads_change_nothing() {
    let dir = Dir::new();
    dir.put("pairs.parquet", &pairs(12));
    dir.put("labels.parquet", &labels(&pairs(12), some));
    let base = mini().display().to_string();
    for (out, threads) in [("one", "1"), ("two", "2")] {
        let rest = format!(
            "--base {base} --resolution 64 --steps 2 --beta 2000 --train_batch_size 2 --gradient_accumulation_steps 4 --threads {threads}"
        );
        train(&dir, out, &rest).ok();
    }
    assert_same(&weights(&dir.path("one")), &weights(&dir.path("two")));
    assert_eq!(log(&dir.path("one"))[1]["loss"], log(&dir.path("two"))[1]["loss"]);
}

#[test]
fn the_split_of_a_batch_changes_rounding_only() {
    let dir = world();
    let batch = |out: &str, b: usize, k: usize| {
        let rest =
            format!("--train_batch_size {b} --gradient_accumulation_steps {k} --steps 1 --dump-gradients {out}.g");
        train(&dir, out, &rest).ok();
        (log(&dir.path(out)).remove(0), tensors(&dir.path(&format!("{out}.g"))))
    };
    let (line, whole) = batch("one", 4, 1);
    for (out, b, k) in [("two", 2, 2), ("three", 1, 4)] {
        let (other, gradients) = batch(out, b, k);
        near(other["grad_norm"].as_f64().unwrap(), line["grad_norm"].as_f64().unwrap(), 1e-2);
        for key in ["loss", "policy_winner_mse", "policy_loser_mse"] {
            near(other[key].as_f64().unwrap(), line[key].as_f64().unwrap(), 1e-6);
        }
        assert!(same_gradients(&gradients, &whole) < 1e-4);
    }
}

/// A small network takes at most four pairs at a time, and sums of gradients are added pair by pair.
#[test]
fn batches_of_four_and_more_are_the_same_to_the_last_bit() {
    let dir = world();
    for (out, b, k) in [("one", 16, 1), ("two", 8, 2), ("three", 4, 4)] {
        train(&dir, out, &format!("--train_batch_size {b} --gradient_accumulation_steps {k} --steps 3")).ok();
        assert_same(&weights(&dir.path(out)), &weights(&dir.path("one")));
        assert_eq!(log(&dir.path(out))[2]["loss"], log(&dir.path("one"))[2]["loss"]);
    }
}

#[test]
fn swapping_the_images_and_the_label_changes_nothing() {
    let dir = world();
    train(&dir, "a", "--steps 6 --refresh-every 4").ok();
    let turned = swapped(&pairs(24));
    dir.put("pairs.parquet", &turned);
    dir.put("labels.parquet", &labels(&turned, |i| (1.0 - some(i).0, some(i).1)));
    train(&dir, "b", "--steps 6 --refresh-every 4").ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("b")));
    // Swapping the label alone changes the weights.
    dir.put("labels.parquet", &labels(&turned, some));
    train(&dir, "c", "--steps 6 --refresh-every 4").ok();
    assert!(differ(&weights(&dir.path("a")), &weights(&dir.path("c"))));
}

#[test]
fn abstaining_pairs_change_nothing() {
    let dir = world();
    train(&dir, "a", "--steps 10").ok();
    // First without labels of weight 0, then without their pairs.
    let all = labels(&pairs(24), some);
    let used: Vec<_> = (0..24).filter(|i| some(*i).1 > 0.0).collect();
    let only = |t: &arrow::array::RecordBatch| {
        concat_batches(&t.schema(), &used.iter().map(|&i| t.slice(i, 1)).collect::<Vec<_>>()).unwrap()
    };
    dir.put("labels.parquet", &only(&all));
    train(&dir, "b", "--steps 10").ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("b")));
    dir.put("pairs.parquet", &only(&pairs(24)));
    train(&dir, "c", "--steps 10").ok();
    assert_same(&weights(&dir.path("a")), &weights(&dir.path("c")));
    // They are counted.
    dir.put("labels.parquet", &all);
    dir.put("pairs.parquet", &pairs(24));
    let args = ["pairs.parquet", "--labels", "labels.parquet", "--resolution", "16", "-o", "d", "--steps", "1"];
    let run = dir.tool("train").args(args).args(["--base".into(), oracle("base")]).ok();
    says(&run.err, &["20 pairs are used; 4 abstain and 0 have no label"]);
    dir.put("labels.parquet", &labels(&pairs(24), |_| (0.5, 0.0)));
    says(&train(&dir, "e", "").fails(2), &["labels.parquet", "24 abstain", "nothing to train on"]);
    dir.put("labels.parquet", &labels(&swapped(&pairs(24)), some));
    says(&train(&dir, "e", "").fails(2), &["0 abstain, 24 have none", "are these the labels of these pairs?"]);
    assert!(!dir.path("e").exists());
}
