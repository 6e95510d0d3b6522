//! The report as a whole: reads what was named, and puts a section of each into the page.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use maud::{Markup, html};
use pipe::{origin, table::Inputs, text};

use crate::{
    Args,
    agreement::Matrix,
    bars,
    cast::Cast,
    curves::{self, Run},
    drawn::Drawn,
    embed::LADDER,
    gallery::Gallery,
    histograms,
    made::{self, Made},
    page::{Head, Section, page},
    plot::list,
    profile,
    scored::Scored,
    winrates::Winrates,
};

/// Prompts in the gallery: more than anybody looks at, and few enough for images that can be judged.
const PROMPTS: usize = 240;

/// The page.
///
/// # Errors
/// A file that cannot be read or that does not fit the others; nothing to show; a page that cannot be kept small enough.
pub fn html(args: &Args, tables: &[Drawn]) -> Result<String> {
    let winrates = args.winrates.iter().map(|path| Winrates::read(path)).collect::<Result<Vec<_>>>()?;
    let mut scored = Scored::read_all(&args.scored)?;
    let runs = runs(args, tables, &scored)?;
    let mut matrices = args.votes.iter().map(|path| Matrix::stored(path)).collect::<Result<Vec<_>>>()?;
    matrices.extend(Matrix::counted(&args.labels)?);
    let cast = cast(args, &winrates, tables, &scored, &runs)?;
    scored.sort_by_key(|s| Some(s.model.as_str()) != cast.baseline());

    let mut sections = vec![];
    let mut add = |id, title, body: Markup| sections.push(Section { id, title, body });
    if !winrates.is_empty() {
        let found = winrates.iter().find(|w| !w.comparisons.is_empty());
        let results = html! {
            @if let Some(w) = found { (w.findings()) }
            @for w in &winrates { (w.overview()) (w.overview_of_seeds()) }
        };
        add("results", "Results", results);
        add("winrates", "Win rates", html! { @for w in &winrates { (bars::section(w, &cast)) } });
    }
    let profiles: Vec<Markup> = winrates.iter().filter_map(|w| profile::section(w, &cast)).collect();
    if !profiles.is_empty() {
        add("models", "Models over metrics", html! { @for profile in &profiles { (profile) } });
    }
    if !scored.is_empty() {
        add("scores", "Scores before and after", histograms::section(&scored, &cast));
    }
    if !runs.is_empty() {
        add("training", "Training", curves::section(&runs, &cast));
    }
    if !matrices.is_empty() {
        add("agreement", "Who agrees with whom", html! { @for m in &matrices { (m.section()) } });
    }
    let made = made(args)?;
    ensure!(
        !sections.is_empty() || !tables.is_empty(),
        "there is nothing to report; name at least one of --winrates, --images, --scored, --logs, --labels, --votes"
    );

    let head = head(args, &cast, &winrates, tables, &scored);
    let finish = |gallery: Option<Markup>| {
        let mut sections = sections.clone();
        sections.extend(gallery.map(|body| Section { id: "images", title: "Images", body }));
        if !made.is_empty() {
            sections.push(Section { id: "made", title: "How it was made", body: made::section(&made) });
        }
        page(&head, &sections)
    };
    let most = args.max_mb as usize * 1_000_000;
    if tables.is_empty() {
        let html = finish(None);
        ensure!(html.len() <= most, "the page takes {} bytes, more than --max-mb {} allows", html.len(), args.max_mb);
        return Ok(html);
    }
    let gallery = Gallery::new(tables, &scored, args.prompts.map_or(PROMPTS, |n| n as usize), args.k)?;
    for fit in LADDER {
        if gallery.guess(fit)? <= most {
            let html = finish(Some(gallery.section(fit, &cast)?));
            if html.len() <= most {
                return Ok(html);
            }
        }
    }
    bail!("the page cannot be kept below {} MB; show fewer --prompts, or allow more with --max-mb", args.max_mb)
}

fn runs(args: &Args, tables: &[Drawn], scored: &[Scored]) -> Result<Vec<Run>> {
    let mut runs = args.logs.iter().map(|path| Run::read(path)).collect::<Result<Vec<_>>>()?;
    // Images in BalancedDPO-0.parquet may be called BalancedDPO; the run in the folder BalancedDPO-0 that drew them is then called so too.
    let drawn = tables.iter().map(|t| (&t.table, &t.model));
    let called: Vec<_> = drawn.chain(scored.iter().map(|s| (&s.table, &s.model))).collect();
    for run in &mut runs {
        let of_run = |table: &str| Path::new(table).file_stem().is_some_and(|stem| *stem == *run.name);
        if let Some((_, model)) = called.iter().find(|(table, _)| of_run(table)) {
            run.name = (*model).clone();
        }
    }
    let names: Vec<String> = runs.iter().map(|r| r.name.clone()).collect();
    for (run, path) in runs.iter_mut().zip(&args.logs) {
        // Runs in folders of the same name keep their whole paths.
        if names.iter().filter(|n| **n == run.name).count() > 1 {
            run.name = path.display().to_string();
        }
    }
    Ok(runs)
}

fn cast(args: &Args, winrates: &[Winrates], tables: &[Drawn], scored: &[Scored], runs: &[Run]) -> Result<Cast> {
    let drawn = tables.iter().map(|t| t.model.as_str());
    let judged = scored.iter().map(|s| s.model.as_str());
    let compared = winrates.iter().flat_map(Winrates::models);
    let trained = runs.iter().map(|r| r.name.as_str());
    let known: Vec<&str> = drawn.chain(judged).chain(compared).chain(trained).collect();
    if let Some(base) = args.base.as_deref().filter(|base| !known.contains(base)) {
        let mut models = Cast::new(None, known).names().to_vec();
        models.sort();
        bail!("--base: there is no model '{base}' (there are: {})", models.join(", "));
    }
    let first = || tables.first().map(|t| t.model.as_str()).or(scored.first().map(|s| s.model.as_str()));
    let last = winrates.first().and_then(|w| w.models().next());
    let base = args.base.as_deref().or(last).or_else(first);
    Ok(Cast::new(base, known))
}

fn head(args: &Args, cast: &Cast, winrates: &[Winrates], tables: &[Drawn], scored: &[Scored]) -> Head {
    let mut models: Vec<&str> = tables.iter().map(|t| t.model.as_str()).collect();
    if models.is_empty() {
        models = scored.iter().map(|s| s.model.as_str()).collect();
    }
    if models.is_empty() {
        models = cast.names().iter().map(String::as_str).collect();
    }
    let others: Vec<&str> = models.iter().copied().filter(|m| Some(*m) != cast.baseline()).collect();
    let title = match (cast.baseline(), &others[..]) {
        (Some(base), [_, ..]) if models.len() > others.len() => format!("{} against {base}", list(&others)),
        (_, [_, ..]) => list(&others),
        (base, []) => base.unwrap_or("Labels").to_owned(),
    };
    let prompts = winrates.first().and_then(Winrates::prompts).map(|n| n as usize);
    let prompts = prompts.or(tables.first().map(|t| t.prompts.len())).or(scored.first().map(Scored::prompts));
    let metrics = winrates.first().map(|w| w.metrics.len()).or(scored.first().map(|s| s.metrics.len()));
    let images = scored.iter().map(Scored::images).sum::<usize>();
    let count = |n: usize| text::thousands(n);
    let facts = [
        ("models", (!models.is_empty()).then(|| count(models.len()))),
        ("prompts", prompts.map(count)),
        ("images scored", (images > 0).then(|| count(images))),
        ("metrics", metrics.map(count)),
        ("baseline", cast.baseline().map(str::to_owned)),
    ];
    Head {
        title: args.title.clone().unwrap_or(title),
        note: args.note.clone(),
        facts: facts.into_iter().filter_map(|(what, value)| Some((what, value?))).collect(),
    }
}

fn made(args: &Args) -> Result<Vec<Made>> {
    let tables = args.images.iter().chain(&args.scored).chain(&args.labels);
    let one = |path: &PathBuf| {
        let inputs = Inputs::open(std::slice::from_ref(path))?;
        let text = inputs.schema().metadata().get(origin::KEY);
        let origin = text.and_then(|text| origin::Origin::from_json(text));
        Ok(Made { table: path.display().to_string(), origin })
    };
    tables.map(one).collect()
}
