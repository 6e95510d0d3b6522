//! `report`, through the binary.
#![cfg(feature = "nets")]

#[path = "report/browser.rs"]
mod browser;
mod util;

use std::{collections::HashSet, sync::Arc};

use arrow::array::{ArrayRef, AsArray, BinaryArray, RecordBatch, UInt32Array, UInt64Array};
use base64::{Engine, engine::general_purpose::STANDARD};
use nets::image::{Rgb, decode, png};
use scraper::{ElementRef, Html, Selector};
use serde_json::Value;
use util::*;

const SIDE: usize = 16;

fn text_of(p: usize) -> String {
    format!("prompt <{p}> & a \"longer\" text that needs a second line, at the least")
}

/// Two images for each of n prompts by one model. The k-th image of prompt p has the single colour [10 p, 100 k, the model's].
fn drawn(model: &str, colour: u8, n: usize) -> RecordBatch {
    let rows: Vec<(usize, usize)> = (0..n).flat_map(|p| [(p, 0), (p, 1)]).collect();
    let column = |f: &dyn Fn(usize, usize) -> String| texts(rows.iter().map(|&(p, k)| f(p, k)));
    let picture = |&(p, k): &(usize, usize)| {
        let data = [10 * p as u8, 100 * k as u8, colour].repeat(SIDE * SIDE);
        png(&Rgb { width: SIDE, height: SIDE, data }, None).unwrap()
    };
    table(vec![
        ("prompt_id", column(&|p, _| format!("{p:016x}"))),
        ("prompt", column(&|p, _| text_of(p))),
        ("set", column(&|p, _| if p < 3 { "seen".into() } else { "unseen".into() })),
        ("image_uid", column(&|p, k| format!("{model}-{p}-{k}"))),
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

/// The colour in the middle of each cell. Images are shown 8 times as large: 128 pixels, with 8 between them.
fn cells(sheet: &Rgb, rows: usize) -> Vec<[[u8; 3]; 2]> {
    let at = |x: usize, y: usize| -> [u8; 3] { sheet.data[3 * (y * sheet.width + x)..][..3].try_into().unwrap() };
    let (left, top) = (sheet.width - 20 - 2 * 128 - 8, sheet.height - 20 - 16 - rows * 136);
    (0..rows).map(|r| [0, 1].map(|c| at(left + 136 * c + 64, top + 136 * r + 64))).collect()
}

#[test]
fn a_row_is_a_prompt_and_a_column_is_a_model() {
    let dir = two_models();
    let run = dir.tool("report").args(["--images", "a.parquet", "b.parquet", "--sheet", "s.png"]).ok();
    assert_eq!((run.text(), &run.err[..]), ("", "wrote s.png\n"));
    let sheet = decode(&dir.bytes("s.png")).unwrap();
    let expected: Vec<_> = (0..6).map(|p| [[10 * p, 0, 20], [10 * p, 0, 200]]).collect();
    assert_eq!(cells(&sheet, 6), expected);
    assert_eq!(sheet.data[..3], [0xf2; 3]);
    // Text beside the first row has dark pixels.
    let left = (sheet.height - 36 - 6 * 136) * sheet.width;
    let dark = |y: usize, x: usize| sheet.data[3 * (left + y * sheet.width + x)] < 0x60;
    assert!((0..128).any(|y| (20..220).any(|x| dark(y, x))));
    // A pipe gets the same bytes.
    let run = dir.tool("report").args(["--images", "a.parquet", "b.parquet", "--sheet", "-"]).ok();
    assert!(run.out == dir.bytes("s.png"));
}

#[test]
fn k_and_prompts_choose_the_images() {
    let dir = two_models();
    let args = ["--images", "a.parquet", "b.parquet", "--sheet", "s.png", "--k", "1", "--prompts", "3"];
    dir.tool("report").args(args).ok();
    // Two prompts from the first set and one from the second, evenly spaced.
    let expected: Vec<_> = [0, 2, 4].map(|p| [[10 * p, 100, 20], [10 * p, 100, 200]]).into();
    assert_eq!(cells(&decode(&dir.bytes("s.png")).unwrap(), 3), expected);
}

#[test]
fn an_error_names_the_file_and_the_prompt() {
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
    says(&fails(&["--images", "a.parquet", "--sheet", "s.png", "--seeds-of", "x"]), &["a.parquet", "no prompt 'x'"]);
    says(&fails(&["--images", "a.parquet"]), &["-o report.html", "--sheet"]);
    assert_eq!(dir.list(), before);
}

#[test]
fn a_sheet_of_seeds_and_a_larger_sheet() {
    let dir = two_models();
    let sheet = |more: &[&str]| {
        let args = ["--images", "a.parquet", "b.parquet", "--sheet", "s.png"];
        dir.tool("report").args(args).args(more).ok();
        decode(&dir.bytes("s.png")).unwrap()
    };
    // A row is a model, a column is an image.
    let seeds = sheet(&["--seeds-of", &text_of(4)]);
    assert_eq!(cells(&seeds, 2), [[[40, 0, 20], [40, 100, 20]], [[40, 0, 200], [40, 100, 200]]]);
    let (once, twice) = (sheet(&[]), sheet(&["--scale", "2"]));
    assert_eq!((2 * once.width, 2 * once.height), (twice.width, twice.height));
    let at = |s: &Rgb, x: usize, y: usize| s.data[3 * (y * s.width + x)..][..3].to_vec();
    let (x, y) = (once.width - 60, once.height - 120);
    assert_eq!(at(&once, x, y), at(&twice, 2 * x, 2 * y));
}

const METRICS: [&str; 3] = ["hps", "clip", "aesthetic"];

/// A scored table of these images: the scores of each metric are random around `level`.
fn judged(drawn: &RecordBatch, seed: u64, level: f32) -> RecordBatch {
    let mut table = without(drawn, "image");
    for (m, metric) in METRICS.iter().enumerate() {
        let mut noise = noise(seed + m as u64);
        let scores = floats((0..drawn.num_rows()).map(|_| Some(level + noise())));
        let schema = table.schema();
        let fields = schema.fields().iter().map(|f| f.name().as_str());
        let columns = fields.zip(table.columns().iter().cloned()).chain([(*metric, scores)]).collect();
        table = util::table(columns);
    }
    table
}

/// The number of prompts of the whole experiment; there are enough for a winner.
const N: usize = 14;

/// A line of log.jsonl.
fn step(step: u64, refreshed: bool) -> String {
    let x = step as f64;
    let line = serde_json::json!({
        "step": step, "loss": 0.69 - 0.01 * x, "implicit_acc": 0.5 + 0.01 * x, "policy_winner_mse": 0.4, "policy_loser_mse": 0.5,
        "reference_winner_mse": 0.41, "reference_loser_mse": 0.42, "mean_abs_z": 0.0, "grad_norm": 1.0, "lr": 1e-5,
        "drift": step.is_multiple_of(5).then_some(1e-4 * x), "refreshed": refreshed, "pairs_per_second": 1.0, "memory_mib": 1.0,
    });
    format!("{line}\n")
}

/// Three models with their scores and win rates, three runs, and two labels tables of the votes on 40 pairs.
fn whole_experiment() -> Dir {
    let dir = Dir::new();
    for (i, model) in ["base", "dpo", "balanced"].into_iter().enumerate() {
        let images = drawn(model, 40 * i as u8, N);
        dir.put(&format!("{model}.parquet"), &images);
        dir.put(&format!("{model}-scored.parquet"), &judged(&images, 10 * i as u64, [0.0, 0.05, 2.0][i]));
        std::fs::create_dir(dir.path(model)).unwrap();
        let log = (1..=24).map(|s| step(s, i == 2 && s % 12 == 0));
        dir.write(&format!("{model}/log.jsonl"), log.collect::<String>());
    }
    let tables = ["balanced-scored.parquet", "dpo-scored.parquet", "base-scored.parquet"];
    dir.tool("winrate").args(tables).args(["--best-of", "2", "--json", "-q", "-o", "winrate.json"]).ok();
    let mut noise = noise(3);
    let mut column = || (0..40).map(|_| Some((8.0 * noise()).floor())).collect::<Vec<_>>();
    let columns: Vec<_> = METRICS.iter().map(|m| (*m, column(), column())).collect();
    let label: Vec<_> = column().iter().map(|x| x.map(|x| if x < 4.0 { 0.0 } else { 1.0 })).collect();
    let metrics: Vec<_> = columns.iter().map(|(m, zero, one)| (*m, &zero[..], &one[..])).collect();
    dir.put("scores.parquet", &scores(&label, &metrics));
    for rule in ["majority", "human"] {
        let args = ["scores.parquet", "--rule", rule, "-o", &format!("{rule}.parquet"), "--json", "-q"];
        let run = dir.tool("vote").args(args).ok();
        dir.write(&format!("{rule}.json"), run.out);
    }
    dir
}

const WHOLE: [&str; 19] = [
    "--winrates", "winrate.json", "--images", "base.parquet", "dpo.parquet", "balanced.parquet", "--scored",
    "base-scored.parquet", "dpo-scored.parquet", "balanced-scored.parquet", "--logs", "dpo/log.jsonl",
    "balanced/log.jsonl", "--labels", "majority.parquet", "human.parquet", "--note",
    "</style><script>alert('note')</script>", "-o",
];

fn page(dir: &Dir, args: &[&str]) -> (String, Html) {
    let run = dir.tool("report").args(args).args(["r.html"]).ok();
    assert_eq!((run.text(), &run.err[..]), ("", "wrote r.html\n"));
    let text = String::from_utf8(dir.bytes("r.html")).unwrap();
    let html = Html::parse_document(&text);
    (text, html)
}

fn all<'a>(html: &'a Html, selector: &str) -> Vec<ElementRef<'a>> {
    html.select(&Selector::parse(selector).unwrap()).collect()
}

fn within<'a>(element: ElementRef<'a>, selector: &str) -> Vec<ElementRef<'a>> {
    element.select(&Selector::parse(selector).unwrap()).collect()
}

fn words(element: ElementRef) -> String {
    element.text().collect::<String>().trim().to_owned()
}

/// The cell at the given heads of row and column, in the table whose title begins with `title`.
fn cell<'a>(html: &'a Html, title: &str, row: &str, column: &str) -> ElementRef<'a> {
    let titled = |table: &ElementRef| within(*table, "caption").first().is_some_and(|c| words(*c).starts_with(title));
    let tables: Vec<_> = all(html, "table").into_iter().filter(titled).collect();
    assert_eq!(tables.len(), 1, "{title}");
    let column = within(tables[0], "thead th").into_iter().position(|th| words(th) == column).unwrap();
    let rows = within(tables[0], "tbody tr").into_iter().map(|tr| within(tr, "th, td"));
    let rows: Vec<_> = rows.filter(|cells| words(cells[0]) == row).collect();
    assert_eq!(rows.len(), 1, "{title}, {row}");
    rows[0][column]
}

/// The unrounded numbers of an element.
fn numbers(element: ElementRef) -> Vec<f64> {
    within(element, "data").iter().map(|d| d.attr("value").unwrap().parse().unwrap()).collect()
}

#[test]
fn the_numbers_of_the_page_are_those_of_winrate() {
    let dir = whole_experiment();
    let (_, html) = page(&dir, &WHOLE);
    let json: Value = serde_json::from_slice(&dir.bytes("winrate.json")).unwrap();
    let comparisons = json["comparisons"].as_array().unwrap();
    assert_eq!(comparisons.len(), 3);
    let mut compared = 0;
    for c in comparisons {
        let (a, b) = (c["a"].as_str().unwrap(), c["b"].as_str().unwrap());
        for row in c["groups"].as_array().unwrap().iter().chain([&c["all"]]) {
            let group = row["name"].as_str().unwrap_or("all");
            for metric in METRICS {
                let expected = &row["metrics"][metric];
                let expected =
                    |names: &[&str]| names.iter().map(|n| expected[*n].as_f64().unwrap()).collect::<Vec<_>>();
                let cell = |title: &str| cell(&html, &title.replace("A", a).replace("B", b), group, metric);
                let rates = ["rate", "low", "high", "wins", "ties", "losses", "p_holm"];
                assert_eq!(numbers(cell("Win rate of A over B ")), expected(&rates));
                let mut means = expected(&["mean_a", "mean_b", "change_sd", "change_sd_low", "change_sd_high"]);
                means.push(row["metrics"][metric]["mean_of_n"]["rate"].as_f64().unwrap());
                assert_eq!(numbers(cell("Mean score of A · of B;")), means);
                let rate = format!("{:.1} %", 100.0 * expected(&["rate"])[0]);
                assert!(words(cell("Win rate of A over B ")).starts_with(&rate));
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 3 * 3 * METRICS.len());
    // The first table has a row per comparison, and marks who is ahead.
    let mut seen = HashSet::new();
    for (row, c) in all(&html, ".overview tbody tr").into_iter().zip(comparisons) {
        for (cell, metric) in within(row, "td.rate").into_iter().zip(METRICS) {
            let expected = &c["all"]["metrics"][metric];
            let class = expected["winner"].as_str().map_or("open", |w| if w == "a" { "ahead" } else { "behind" });
            assert!(cell.value().classes().any(|c| c == class), "{class} {}", cell.html());
            seen.insert(class);
        }
    }
    assert!(seen.contains("ahead") && seen.contains("open"), "{seen:?}");
}

#[test]
fn the_page_needs_nothing_from_outside_and_says_everything_in_words() {
    let dir = whole_experiment();
    let (text, html) = page(&dir, &WHOLE);
    for away in ["http:", "https:", "//www", "url(", "@import", "<link", "<iframe", "<object"] {
        assert!(!text.contains(away), "{away}");
    }
    let policy = all(&html, "meta[http-equiv=Content-Security-Policy]")[0].attr("content").unwrap();
    assert!(policy.starts_with("default-src 'none'; img-src data:;"), "{policy}");
    for link in all(&html, "[href], [src]") {
        let target = link.attr("href").or(link.attr("src")).unwrap();
        assert!(target.starts_with("data:image/") || target.starts_with('#'), "{target:.60}");
        if let Some(id) = target.strip_prefix('#') {
            assert_eq!(all(&html, &format!("[id='{id}']")).len(), 1, "{id}");
        }
    }
    let ids: Vec<_> = all(&html, "[id]").iter().map(|e| e.attr("id").unwrap().to_owned()).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "{ids:?}");
    // Every plot has a description, every chart its numbers, every control a label.
    let charts = all(&html, "figure.chart");
    assert_eq!(charts.len(), 3 + 1 + 2 + 2);
    for chart in charts {
        assert!(!within(chart, "details table td").is_empty(), "{}", words(chart));
    }
    for svg in all(&html, "svg:not([aria-hidden]):not(svg svg)") {
        assert!(
            svg.attr("role") == Some("img") && svg.attr("aria-label").is_some_and(|l| l.len() > 20),
            "{}",
            svg.html()
        );
    }
    for control in all(&html, "#controls select, #controls input") {
        let label = control.ancestors().filter_map(ElementRef::wrap).find(|e| e.value().name() == "label");
        assert!(label.is_some_and(|l| !words(l).is_empty()), "{}", control.html());
    }
    assert_eq!(all(&html, "html")[0].attr("lang"), Some("en"));
    // Prompts and notes stay text.
    assert_eq!((all(&html, "script").len(), all(&html, "style").len()), (1, 1));
    assert_eq!(words(all(&html, ".remark")[0]), "</style><script>alert('note')</script>");
    assert_eq!(words(all(&html, "#rows h3")[2]), text_of(2));
    assert_eq!(all(&html, "#rows img")[0].attr("alt").unwrap(), format!("base, image 0: {}", text_of(0)));
    // A second run gives the same bytes, also into a pipe.
    let again = dir.tool("report").args(WHOLE).args(["-"]).ok();
    assert!(again.out == text.as_bytes());
}

#[test]
fn the_gallery_holds_every_image_with_its_scores() {
    let dir = whole_experiment();
    let (_, html) = page(&dir, &WHOLE);
    let rows = all(&html, "#rows .row");
    let prompts: Vec<_> = rows.iter().map(|row| words(within(*row, "h3")[0])).collect();
    assert_eq!(prompts, (0..N).map(text_of).collect::<Vec<_>>());
    let tables = ["base", "dpo", "balanced"]
        .map(|m| (dir.get(&format!("{m}.parquet")), dir.get(&format!("{m}-scored.parquet"))));
    for (p, row) in rows.iter().enumerate() {
        assert_eq!(row.attr("data-set"), Some(if p < 3 { "seen" } else { "unseen" }));
        let best: Vec<Vec<f32>> = serde_json::from_str(row.attr("data-best").unwrap()).unwrap();
        let columns = within(*row, ".model");
        assert_eq!(columns.len(), 3);
        for (t, (column, (images, scored))) in columns.iter().zip(&tables).enumerate() {
            let figures = within(*column, "figure");
            assert_eq!(figures.iter().map(|f| f.attr("data-k").unwrap()).collect::<Vec<_>>(), ["0", "1"]);
            for (k, figure) in figures.iter().enumerate() {
                let image = within(*figure, "img")[0];
                let bytes = image.attr("src").unwrap().strip_prefix("data:image/png;base64,").unwrap();
                let original = util::column(images, "image").as_binary::<i32>().value(2 * p + k);
                assert!(STANDARD.decode(bytes).unwrap() == original);
                assert_eq!((image.attr("width"), image.attr("height")), (Some("16"), Some("16")));
                let found = numbers(*figure);
                let expected = METRICS.map(|m| column_f32(scored, m)[2 * p + k]);
                assert_eq!(found, expected.map(f64::from));
            }
            let highest =
                METRICS.map(|m| column_f32(scored, m)[2 * p..2 * p + 2].iter().copied().fold(f32::MIN, f32::max));
            assert_eq!(best[t], highest);
        }
    }
    // Fewer prompts are spread over the sets. Images are shown without scores too.
    let (_, html) = page(&dir, &["--images", "base.parquet", "dpo.parquet", "--prompts", "3", "-o"]);
    let prompts: Vec<_> = all(&html, "#rows h3").into_iter().map(words).collect();
    assert_eq!(prompts, [0, 2, 8].map(text_of));
    assert_eq!((all(&html, "#rows img").len(), all(&html, ".scores").len()), (12, 0));
}

#[test]
fn large_images_are_made_to_fit() {
    let dir = Dir::new();
    let mut grain = noise(1);
    let mut picture = || {
        let data = (0..256 * 256 * 3).map(|_| (255.0 * grain()) as u8).collect();
        png(&Rgb { width: 256, height: 256, data }, None).unwrap()
    };
    for model in ["base", "dpo"] {
        let mut table = drawn(model, 0, 4);
        let images: Vec<_> = (0..8).map(|_| picture()).collect();
        let image: ArrayRef = Arc::new(BinaryArray::from_iter_values(&images));
        table = world::with(&table, "image", image);
        dir.put(&format!("{model}.parquet"), &table);
    }
    let args = ["--images", "base.parquet", "dpo.parquet"];
    let mut sizes = vec![];
    for (mb, kind) in [("20", "png"), ("2", "jpeg"), ("1", "jpeg")] {
        let (text, html) = page(&dir, &[&args[..], &["--max-mb", mb, "-o"]].concat());
        assert!(text.len() <= mb.parse::<usize>().unwrap() * 1_000_000, "{}", text.len());
        let images = all(&html, "#rows img");
        assert_eq!(images.len(), 16);
        let (head, body) = images[0].attr("src").unwrap().split_once(";base64,").unwrap();
        assert_eq!(head, format!("data:image/{kind}"));
        assert_eq!(text.contains("To keep the page small"), kind == "jpeg");
        // The page states the size of the image as it was drawn.
        assert_eq!(images[0].attr("width"), Some("256"));
        sizes.push(decode(&STANDARD.decode(body).unwrap()).unwrap().width);
    }
    assert!(sizes[0] == 256 && sizes[2] < sizes[0] && sizes[2] >= 96, "{sizes:?}");
}

#[test]
fn curves_show_steps_and_refreshes() {
    let dir = whole_experiment();
    let (_, html) = page(&dir, &["--logs", "dpo/log.jsonl", "balanced/log.jsonl", "-o"]);
    let sections: Vec<_> = all(&html, "main > section").iter().map(|s| s.attr("id").unwrap().to_owned()).collect();
    assert_eq!(sections, ["training"]);
    let panels = all(&html, "#training .panel");
    let headings: Vec<_> = panels.iter().map(|p| words(within(*p, ".heading")[0])).collect();
    let expected = [
        "loss", "implicit accuracy", "drift from the base", "dpo, squared error", "dpo, policy to reference, %",
        "balanced, squared error", "balanced, policy to reference, %",
    ];
    assert_eq!(headings, expected);
    // One run has two refreshes; each panel that shows the run shows them.
    let refreshes: Vec<_> = panels.iter().map(|p| within(*p, ".refresh").len()).collect();
    assert_eq!(refreshes, [2, 2, 2, 0, 0, 2, 2]);
    assert_eq!(words(within(panels[0], ".refresh title")[0]), "balanced: reference replaced after step 12");
    // Twelve rows of two steps each: loss, accuracy, drift where it was measured, four errors.
    let rows = within(all(&html, "#training table")[0], "tbody tr");
    assert_eq!(rows.len(), 12);
    let found = numbers(rows[2]);
    let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
    let expected = [0.69 - 0.055, 0.555, 5e-4, 0.4, 0.5, 0.41, 0.42];
    assert!(found.iter().zip(expected).all(|(a, b)| close(*a, b)) && found.len() == 7, "{found:?}");
    // The policy's error of the loser is (0.5 - 0.42) / 0.42 above the reference's.
    assert!(within(panels[4], "svg")[0].attr("aria-label").unwrap().contains("loser from 19.0476 to 19.0476"));
}

/// The cell of two voters. The first column has no head.
fn heat<'a>(html: &'a Html, row: &str, column: &str) -> ElementRef<'a> {
    let column = all(html, ".heat thead th").into_iter().position(|th| words(th) == column).unwrap();
    let row = all(html, ".heat tbody tr").into_iter().find(|tr| words(within(*tr, "th")[0]) == row).unwrap();
    within(row, "td")[column]
}

#[test]
fn agreement_is_that_of_vote() {
    let dir = whole_experiment();
    let json: Value = serde_json::from_slice(&dir.bytes("majority.json")).unwrap();
    let (_, html) = page(&dir, &["--labels", "majority.parquet", "human.parquet", "-o"]);
    // The voters are three metrics, people, and the majority label itself.
    assert_eq!(all(&html, ".heat tbody tr").len(), 5);
    let pairs = json["agreement"].as_array().unwrap();
    assert_eq!(pairs.len(), 6);
    for pair in pairs {
        let (a, b) = (pair["a"].as_str().unwrap(), pair["b"].as_str().unwrap());
        let expected = [pair["share"].as_f64().unwrap(), pair["kappa"].as_f64().unwrap()];
        for (x, y) in [(a, b), (b, a)] {
            let found = numbers(heat(&html, x, y));
            let close = found.iter().zip(&expected).all(|(f, e)| (f - e).abs() < 1e-12);
            assert!(close && found.len() == 2, "{x}, {y}: {found:?}");
        }
    }
    // Labels of other pairs get their own matrix.
    dir.put("few.parquet", &dir.get("majority.parquet").slice(0, 9));
    let (_, html) = page(&dir, &["--labels", "majority.parquet", "few.parquet", "-o"]);
    assert_eq!(all(&html, ".heat table").len(), 2);
}

#[test]
fn files_that_do_not_fit_each_other_are_refused() {
    let dir = whole_experiment();
    let scored = dir.get("dpo-scored.parquet");
    dir.put("other.parquet", &world::with(&scored, "image_uid", texts((0..2 * N).map(|i| format!("x{i}")))));
    dir.put("short.parquet", &scored.slice(0, 2 * N - 1));
    dir.put("fewer.parquet", &without(&scored, "clip"));
    dir.put("bare.parquet", &METRICS.iter().fold(scored, |t, m| without(&t, m)));
    dir.write("empty-log.jsonl", "");
    dir.write("bad.jsonl", step(1, false) + "{\"step\": 2}\n");
    dir.write("bad.json", "{\"best_of\": 5}");
    let mut json: Value = serde_json::from_slice(&dir.bytes("winrate.json")).unwrap();
    json["comparisons"][0]["all"]["metrics"].as_object_mut().unwrap().remove("clip");
    dir.write("lacks.json", json.to_string());
    let before = dir.list();
    let fails = |args: &[&str]| dir.tool("report").args(args).args(["-o", "r.html"]).fails(2);
    let images =
        |scored: &str| fails(&["--images", "base.parquet", "dpo.parquet", "--scored", "base-scored.parquet", scored]);
    says(&images("other.parquet"), &["other.parquet", "other images than dpo.parquet", "k = 0 of prompt"]);
    says(&images("short.parquet"), &["dpo.parquet has image k = 1", "short.parquet has no score"]);
    says(&images("fewer.parquet"), &["fewer.parquet", "hps, aesthetic", "base-scored.parquet", "hps, clip, aesthetic"]);
    says(&images("bare.parquet"), &["bare.parquet has no metric"]);
    says(&images("balanced-scored.parquet"), &["dpo.parquet is of model 'dpo'", "base, balanced"]);
    says(&images("none.parquet"), &["cannot read none.parquet"]);
    says(&fails(&["--images", "base.parquet", "base.parquet"]), &["both called 'base'", "--name"]);
    says(&fails(&["--scored", "base.parquet"]), &["base.parquet has no metric", "`score`"]);
    says(&fails(&["--images", "base-scored.parquet"]), &["'image' is missing", "`sample`"]);
    says(&fails(&["--labels", "scores.parquet"]), &["scores.parquet", "'target' is missing", "`vote`"]);
    says(&fails(&["--logs", "empty-log.jsonl"]), &["empty-log.jsonl has no lines"]);
    says(&fails(&["--logs", "bad.jsonl"]), &["bad.jsonl, line 2", "`loss`"]);
    says(&fails(&["--winrates", "bad.json"]), &["bad.json", "`winrate --json", "`metrics`"]);
    says(&fails(&["--winrates", "lacks.json"]), &["lacks.json: dpo vs base, all: metric 'clip' is missing"]);
    says(&fails(&["--winrates", "winrate.json", "--base", "x"]), &["no model 'x'", "balanced, base, dpo"]);
    says(&fails(&[]), &["nothing to report", "--winrates"]);
    assert_eq!(dir.list(), before);
}

/// The output of `winrate --seeds` becomes a table and bars with all its numbers. There is no finding, since no winner is named.
#[test]
fn pooled_seeds_are_a_table_and_bars() {
    let dir = Dir::new();
    let mut tables = vec![];
    for (i, model) in ["balanced", "dpo", "base"].into_iter().enumerate() {
        for seed in 0..if model == "base" { 1 } else { 2 } {
            let name = format!("{model}-{seed}.parquet");
            dir.put(&name, &judged(&drawn(model, 0, N), 10 * i as u64 + seed, [0.3, 0.05, 0.0][i]));
            tables.push(name);
        }
    }
    let seeds = ["--seeds", "--best-of", "2", "--held-out", "clip", "--json", "-q", "-o", "seeds.json"];
    dir.tool("winrate").args(&tables).args(seeds).ok();
    let mut json: Value = serde_json::from_slice(&dir.bytes("seeds.json")).unwrap();
    let (_, html) = page(&dir, &["--winrates", "seeds.json", "-o"]);
    let pooled = json["seeds"].as_array().unwrap();
    assert_eq!(pooled.len(), 3);
    let overview = all(&html, ".overview tbody tr");
    for (row, p) in overview.iter().zip(pooled) {
        let (a, b) = (p["a"].as_str().unwrap(), p["b"].as_str().unwrap());
        let cells: Vec<_> = within(*row, "th, td").into_iter().map(words).collect();
        assert_eq!(cells[..3], [format!("{a} vs {b}"), "2".into(), N.to_string()]);
        for (m, metric) in METRICS.iter().enumerate() {
            let cell = &p["metrics"][metric];
            let number = |name: &str| cell[name].as_f64().unwrap();
            let [rate, low, high] = ["rate", "low", "high"].map(|name| 100.0 * number(name));
            assert_eq!(cells[3 + m], format!("{rate:.1} % [{low:.1}, {high:.1}]"));
            let head = if *metric == "clip" { "clip (held out)" } else { metric };
            let found = self::cell(&html, &format!("Win rate over {b}, mean of the seeds"), a, head);
            let rates = cell["rates"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap());
            let names = ["change_sd", "change_sd_low", "change_sd_high"];
            let expected = ["rate", "low", "high"].map(number).into_iter().chain(rates).chain(names.map(number));
            assert_eq!(numbers(found), expected.collect::<Vec<_>>());
        }
    }
    assert_eq!(words(all(&html, ".overview thead th")[4]), "clip (held out)");
    // A chart per baseline, a panel per metric, a bar per model, a point per seed.
    let charts: Vec<_> = all(&html, "#winrates h3").into_iter().map(words).collect();
    assert_eq!(charts, ["Models against base", "Models against dpo"]);
    assert_eq!(all(&html, "#winrates rect.bar").len(), 3 * (2 + 1));
    assert_eq!(all(&html, "#winrates circle").len(), 2 * 3 * (2 + 1));
    assert!(all(&html, ".findings").is_empty());
    let facts = words(all(&html, "header")[0]);
    says(&facts, &["dpo and balanced against base", "14"]);
    // Comparisons of single tables can stand beside them.
    dir.tool("winrate")
        .args(["balanced-0.parquet", "base-0.parquet", "--best-of", "2", "--json", "-q", "-o", "one.json"])
        .ok();
    let (_, html) = page(&dir, &["--winrates", "seeds.json", "one.json", "-o"]);
    assert_eq!((all(&html, ".overview").len(), all(&html, ".findings").len()), (2, 1));
    // A file without either is refused.
    json["seeds"] = Value::Array(vec![]);
    dir.write("none.json", json.to_string());
    let error = dir.tool("report").args(["--winrates", "none.json", "-o", "r.html"]).fails(2);
    says(&error, &["none.json holds no comparison"]);
    let lacks = String::from_utf8(dir.bytes("seeds.json")).unwrap().replacen(r#""clip":{"#, r#""blip":{"#, 99);
    dir.write("lacks.json", lacks);
    says(
        &dir.tool("report").args(["--winrates", "lacks.json", "-o", "r.html"]).fails(2),
        &["lacks.json", "'clip' is missing"],
    );
}

/// The run in the folder dpo-0 made the model of the table dpo-0, which is called dpo: both have one name and one colour.
#[test]
fn a_run_is_called_after_its_model() {
    let dir = Dir::new();
    let mut args = vec!["--images".to_owned()];
    let mut logs = vec!["--logs".to_owned()];
    for (name, model) in [("base", "base"), ("dpo-0", "dpo"), ("balanced-0", "balanced")] {
        dir.put(&format!("{name}.parquet"), &drawn(model, 9, 2));
        args.push(format!("{name}.parquet"));
        std::fs::create_dir(dir.path(name)).unwrap();
        dir.write(&format!("{name}/log.jsonl"), (1..=24).map(|s| step(s, false)).collect::<String>());
        logs.push(format!("{name}/log.jsonl"));
    }
    logs.remove(1);
    args.extend(logs);
    args.push("-o".into());
    let names = |args: &[String]| -> Vec<String> {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (_, html) = page(&dir, &args);
        all(&html, "#training .legend").into_iter().take(1).flat_map(|l| within(l, "li")).map(words).collect()
    };
    assert_eq!(names(&args), ["dpo", "balanced"]);
    // Without images, a run is called after its folder.
    assert_eq!(names(&args[4..]), ["dpo-0", "balanced-0"]);
}
