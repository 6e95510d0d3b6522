//! `report`, through the binary.
#![cfg(feature = "nets")]

mod util;

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, UInt32Array, UInt64Array};
use nets::image::{Rgb, decode, png};
use util::*;

const SIDE: usize = 16;

/// Two images each of n prompts by one model; the k-th image of prompt p has one colour, [p, k, the model's].
fn drawn(model: &str, colour: u8, n: usize) -> RecordBatch {
    let rows: Vec<(usize, usize)> = (0..n).flat_map(|p| [(p, 0), (p, 1)]).collect();
    let column = |f: &dyn Fn(usize, usize) -> String| texts(rows.iter().map(|&(p, k)| f(p, k)));
    let picture = |&(p, k): &(usize, usize)| {
        let data = [10 * p as u8, 100 * k as u8, colour].repeat(SIDE * SIDE);
        png(&Rgb { width: SIDE, height: SIDE, data }).unwrap()
    };
    table(vec![
        ("prompt_id", column(&|p, _| format!("{p:016x}"))),
        ("prompt", column(&|p, _| format!("prompt <{p}> & a longer text that needs a second line, at the least"))),
        ("set", column(&|p, _| if p < 3 { "seen".into() } else { "unseen".into() })),
        ("k", Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.1 as u32)))),
        ("seed", Arc::new(UInt64Array::from_iter_values(rows.iter().map(|r| (100 * r.0 + r.1) as u64)))),
        ("model", column(&|_, _| model.into())),
        ("image", Arc::new(BinaryArray::from_iter_values(rows.iter().map(picture))) as ArrayRef),
    ])
}

fn two_models() -> Dir {
    let dir = Dir::new();
    dir.put("a.parquet", &drawn("base", 20, 6));
    dir.put("b.parquet", &drawn("BalancedDPO", 200, 6));
    dir
}

/// The colour in the middle of every cell: pictures are shown 8 times as large, 128 pixels with 8 between them.
fn cells(sheet: &Rgb, rows: usize) -> Vec<[[u8; 3]; 2]> {
    let at = |x: usize, y: usize| -> [u8; 3] { sheet.data[3 * (y * sheet.width + x)..][..3].try_into().unwrap() };
    let (left, top) = (sheet.width - 20 - 2 * 128 - 8, sheet.height - 20 - 16 - rows * 136);
    (0..rows).map(|r| [0, 1].map(|c| at(left + 136 * c + 64, top + 136 * r + 64))).collect()
}

#[test]
fn one_prompt_a_row_and_one_model_a_column() {
    let dir = two_models();
    let run = dir.tool("report").args(["--images", "a.parquet", "b.parquet", "--sheet", "s.png"]).ok();
    assert_eq!((run.text(), &run.err[..]), ("", ""));
    let sheet = decode(&dir.bytes("s.png")).unwrap();
    let expected: Vec<_> = (0..6).map(|p| [[10 * p, 0, 20], [10 * p, 0, 200]]).collect();
    assert_eq!(cells(&sheet, 6), expected);
    assert_eq!(sheet.data[..3], [0xf2; 3]);
    // Something is written beside the first row: dark pixels.
    let left = (sheet.height - 36 - 6 * 136) * sheet.width;
    let dark = |y: usize, x: usize| sheet.data[3 * (left + y * sheet.width + x)] < 0x60;
    assert!((0..128).any(|y| (20..220).any(|x| dark(y, x))));
    // The same again, to a pipe.
    let run = dir.tool("report").args(["--images", "a.parquet", "b.parquet", "--sheet", "-"]).ok();
    assert!(run.out == dir.bytes("s.png"));
}

#[test]
fn k_and_prompts_choose() {
    let dir = two_models();
    let args = ["--images", "a.parquet", "b.parquet", "--sheet", "s.png", "--k", "1", "--prompts", "3"];
    dir.tool("report").args(args).ok();
    // Two of the first set's three prompts, one of the second's, evenly spaced.
    let expected: Vec<_> = [0, 2, 4].map(|p| [[10 * p, 100, 20], [10 * p, 100, 200]]).into();
    assert_eq!(cells(&decode(&dir.bytes("s.png")).unwrap(), 3), expected);
}

#[test]
fn what_is_wrong_is_named() {
    let dir = two_models();
    dir.put("five.parquet", &drawn("other", 1, 5));
    dir.put("bare.parquet", &without(&drawn("other", 1, 6), "image"));
    let mut bad = drawn("other", 1, 6);
    let at = bad.schema().index_of("image").unwrap();
    let image: ArrayRef = Arc::new(BinaryArray::from_iter_values(vec![b"\x89PNG\r\n\x1a\nnothing"; 12]));
    let columns = bad.columns().iter().enumerate().map(|(i, c)| if i == at { image.clone() } else { c.clone() });
    bad = RecordBatch::try_new(bad.schema(), columns.collect()).unwrap();
    dir.put("bad.parquet", &bad);
    let before = dir.list();
    let fails = |args: &[&str]| dir.tool("report").args(args).fails(2);
    let with = |table: &str| fails(&["--images", "a.parquet", table, "--sheet", "s.png"]);
    says(&with("five.parquet"), &["prompt <5>", "in a.parquet but not in five.parquet"]);
    says(&with("bare.parquet"), &["bare.parquet", "'image' is missing", "`sample`"]);
    says(&with("bad.parquet"), &["bad.parquet, row 0", "PNG"]);
    says(&with("none.parquet"), &["cannot read none.parquet"]);
    says(&fails(&["--images", "a.parquet", "--sheet", "s.png", "--k", "2"]), &["a.parquet", "no image k = 2"]);
    for args in [&["--images", "a.parquet"][..], &["--images", "a.parquet", "--sheet", "s.png", "-o", "r.html"]] {
        says(&fails(args), &["no HTML report yet", "--sheet"]);
    }
    assert_eq!(dir.list(), before);
}
