//! Assembles the page: reads the files that the command line names, and makes a section of each kind.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use maud::{Markup, html};
use pipe::{text, winrates::Winrates};

use crate::beside::Beside;
use crate::curves::{self, Run};
use crate::model_table::{ModelTable, stem};
use crate::page::{Head, Section, page};
use crate::pictures::Pictures;
use crate::{
    agreement::Matrix, args::Args, bars, embed::LADDER, gallery::Gallery, histograms, images::ModelImages,
    models::Models, origins, profile, results, table::list, winrates,
};

/// The default number of prompts in the gallery: few enough for images that are large enough to judge.
const PROMPTS: usize = 240;

/// `beside`: where the images are, if not in the page.
pub fn html(args: &Args, images: &[ModelImages], beside: Option<&Beside>) -> Result<String> {
    let winrates = args.winrates.iter().map(|path| winrates::read(path)).collect::<Result<Vec<_>>>()?;
    let mut scores = ModelTable::read_scored(&args.scored)?;
    let mut runs = args.logs.iter().map(|path| Run::read(path)).collect::<Result<Vec<_>>>()?;
    let matrices = Matrix::read_all(&args.labels)?;
    name_runs(&mut runs, &args.logs, &tables(images, &scores));
    let models = models(args.base.as_deref(), &tables(images, &scores), &winrates, &runs)?;
    scores.sort_by_key(|s| Some(s.model.as_str()) != models.baseline());

    let mut sections = vec![];
    let mut add = |id, title, body| sections.push(Section { id, title, body });
    if !winrates.is_empty() {
        add("results", "Results", results::section(&winrates));
        add("winrates", "Win rates", html! { @for file in &winrates { (bars::section(file, &models)) } });
    }
    let profiles: Vec<Markup> = winrates.iter().filter_map(|file| profile::section(file, &models)).collect();
    if !profiles.is_empty() {
        add("models", "Models over metrics", html! { @for profile in &profiles { (profile) } });
    }
    if !scores.is_empty() {
        add("scores", "Scores before and after", histograms::section(&scores, &models));
    }
    if !runs.is_empty() {
        add("training", "Training", curves::section(&runs, &models));
    }
    let pictures = args.logs.iter().zip(&runs).filter_map(|(log, run)| Pictures::read(log, &run.name).transpose());
    let pictures = pictures.map(|pictures| pictures?.section()).collect::<Result<Vec<_>>>()?;
    if !pictures.is_empty() {
        add("pictures", "Pictures while training", html! { @for run in &pictures { (run) } });
    }
    if !matrices.is_empty() {
        add("agreement", "Who agrees with whom", html! { @for matrix in &matrices { (matrix.section()) } });
    }
    ensure!(
        !sections.is_empty() || !images.is_empty(),
        "there is nothing to report; name at least one of --winrates, --images, --scored, --logs, --labels"
    );
    let made = origins::section(args.images.iter().chain(&args.scored).chain(&args.labels))?;
    let made = made.map(|body| Section { id: "made", title: "How it was made", body });
    let head = Head { loads_images: beside.is_some(), ..head(args, &models, &winrates, images, &scores) };
    let finish = |gallery: Option<Section>| page(&head, sections.iter().chain(&gallery).chain(&made));

    let most = args.max_mb as usize * 1_000_000;
    if images.is_empty() {
        let html = finish(None);
        ensure!(html.len() <= most, "the page takes {} bytes, more than --max-mb {} allows", html.len(), args.max_mb);
        return Ok(html);
    }
    let most_prompts = if beside.is_some() { usize::MAX } else { PROMPTS };
    let prompts = args.prompts.map_or(most_prompts, |n| n as usize);
    let gallery = Gallery::new(images, &scores, prompts, args.k, &models, beside)?;
    for fit in LADDER.into_iter().filter(|fit| beside.is_none() || fit.is_unchanged()) {
        if gallery.estimate(fit)? <= most {
            let html = finish(Some(Section { id: "images", title: "Images", body: gallery.section(fit)? }));
            if html.len() <= most {
                return Ok(html);
            }
        }
    }
    bail!("the page cannot be kept below {} MB; show fewer --prompts, or allow more with --max-mb", args.max_mb)
}

fn tables<'a>(images: &'a [ModelImages], scores: &'a [ModelTable]) -> Vec<&'a ModelTable> {
    images.iter().map(|t| &t.table).chain(scores).collect()
}

/// Images in `BalancedDPO-0.parquet` may be of the model `BalancedDPO`; the run in the folder `BalancedDPO-0`, which made that
/// model, is then called so too. Runs in folders of the same name are called after their whole paths.
fn name_runs(runs: &mut [Run], logs: &[PathBuf], tables: &[&ModelTable]) {
    for run in &mut *runs {
        if let Some(table) = tables.iter().find(|t| stem(&t.file) == run.name) {
            run.name.clone_from(&table.model);
        }
    }
    let names: Vec<String> = runs.iter().map(|r| r.name.clone()).collect();
    for (run, path) in runs.iter_mut().zip(logs) {
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            run.name = path.display().to_string();
        }
    }
}

/// All models. The baseline is `base`, else that of the first comparison, else the first table's model.
fn models(base: Option<&str>, tables: &[&ModelTable], winrates: &[Winrates], runs: &[Run]) -> Result<Models> {
    let tables = tables.iter().map(|t| t.model.as_str());
    let compared = winrates.iter().flat_map(winrates::models);
    let known: Vec<&str> = tables.clone().chain(compared).chain(runs.iter().map(|r| r.name.as_str())).collect();
    if let Some(base) = base.filter(|base| !known.contains(base)) {
        let mut names = Models::new(None, known).names().to_vec();
        names.sort();
        bail!("--base: there is no model '{base}' (there are: {})", names.join(", "));
    }
    let compared = winrates.first().and_then(|w| winrates::models(w).next());
    Ok(Models::new(base.or(compared).or(tables.clone().next()), known))
}

fn head(args: &Args, models: &Models, winrates: &[Winrates], images: &[ModelImages], scores: &[ModelTable]) -> Head {
    let tables = tables(images, scores);
    let shown = match &tables[..] {
        [] => Models::new(None, models.names().iter().map(String::as_str)),
        _ => Models::new(None, tables.iter().map(|t| t.model.as_str())),
    };
    let (base, others): (Vec<_>, Vec<_>) = shown.names().iter().partition(|m| Some(m.as_str()) == models.baseline());
    let title = match (&base[..], &others[..]) {
        ([], []) => models.baseline().unwrap_or("Labels").to_owned(),
        ([base], [_, ..]) => format!("{} against {base}", list(&others)),
        _ => list(shown.names()),
    };
    let scored = scores.iter().map(|t| t.images().count()).sum::<usize>();
    let prompts = winrates.first().and_then(winrates::prompts).or(tables.first().map(|t| t.prompts.len()));
    let metrics = winrates.first().map(|w| &w.metrics).or(scores.first().map(|s| &s.metrics));
    let facts = [
        ("models", Some(shown.names().len())),
        ("prompts", prompts),
        ("images scored", Some(scored)),
        ("metrics", metrics.map(Vec::len)),
    ];
    let known = facts.into_iter().filter_map(|(name, n)| Some((name, text::thousands(n.filter(|n| *n > 0)?))));
    let baseline = models.baseline().map(|base| ("baseline", base.to_owned()));
    let facts = known.chain(baseline).collect();
    Head { title: args.title.clone().unwrap_or(title), note: args.note.clone(), loads_images: false, facts }
}
