//! The flags of `report`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use pipe::cli::{Common, named};
use pipe::place;

use crate::beside::Beside;
use crate::card::CardFlags;

/// Show what alignment changed: win rates, training, scores, votes and the images themselves
///
/// With `-o` it writes one HTML file that needs no network and no server: win rates with their intervals, all models over all
/// metrics, histograms of the scores before and after, training curves, who agrees with whom, and a gallery of the same prompts
/// drawn by every model, to sort and to filter. The page has a section for each kind of file that is named. With `--sheet` it
/// draws a contact sheet for papers: a row per prompt, a column per model. With `--card` it writes a model card: base, data, votes,
/// settings, win rates. The same files give the same bytes.
#[derive(Parser, Clone)]
#[command(name = "report", version, max_term_width = 100, after_help = EXAMPLES)]
#[command(mut_arg("seed", |seed| seed.hide(true)))] // nothing is drawn
pub struct Args {
    /// Files that `winrate --json` wrote
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub winrates: Vec<PathBuf>,
    /// Images tables of the same prompts, one per model, in the order of the columns; several of one model are named after
    /// their files
    #[arg(long, num_args = 1.., value_name = "TABLE")]
    pub images: Vec<PathBuf>,
    /// Scored tables, one per model; with --images, one for each images table
    #[arg(long, num_args = 1.., value_name = "TABLE")]
    pub scored: Vec<PathBuf>,
    /// log.jsonl of runs of `train`; a run is named after its folder, or after the model whose images table has the folder's name
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub logs: Vec<PathBuf>,
    /// Labels tables; their votes tell who agrees with whom, and the label of each table is a voter too, named after the file
    #[arg(long, help_heading = "Page", num_args = 1.., value_name = "TABLE")]
    pub labels: Vec<PathBuf>,
    /// The model that the others are compared with [default: the baseline of the first comparison, else the first table's model]
    #[arg(long, help_heading = "Page", value_name = "MODEL")]
    pub base: Option<String>,
    /// The heading of the page [default: the names of the models]
    #[arg(long, help_heading = "Page", value_name = "TEXT")]
    pub title: Option<String>,
    /// A remark below the heading
    #[arg(long, help_heading = "Page", value_name = "TEXT")]
    pub note: Option<String>,
    /// The largest size of the page, in MB of a million bytes; images are made smaller until it fits
    #[arg(long, help_heading = "Page", value_name = "MB", default_value = "20", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_mb: u32,
    /// Where the images of the page are
    #[arg(long, help_heading = "Page", value_name = "WHERE", default_value_t = ImagesIn::Page, value_parser = named::<ImagesIn>())]
    pub images_in: ImagesIn,
    /// Where to write the contact sheet, a PNG (`-`: standard output)
    #[arg(long, help_heading = "Contact sheet", value_name = "PATH", requires = "images")]
    pub sheet: Option<PathBuf>,
    /// The number of prompts that are shown, spread evenly over their sets [default: 12 on the sheet; 240 in a page that holds its images, all in others]
    #[arg(long, help_heading = "Contact sheet", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub prompts: Option<u32>,
    /// Which of a prompt's images is shown, counted from 0; the gallery holds the others too
    #[arg(long, help_heading = "Contact sheet", value_name = "K", default_value_t = 0)]
    pub k: u64,
    /// Show all images of this one prompt on the sheet: a column per image, a row per model
    #[arg(long, help_heading = "Contact sheet", value_name = "TEXT", requires = "sheet")]
    pub seeds_of: Option<String>,
    /// How many times larger to draw the sheet and its letters; 3 is sharp across a printed page
    #[arg(long, help_heading = "Contact sheet", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub scale: u8,
    #[command(flatten)]
    pub card: CardFlags,
    /// Serve the page of the run in DIR, or of the runs in its folders, on this machine's loopback address, and update it while
    /// the run continues; its address is printed
    #[arg(long, help_heading = "Page", value_name = "DIR", conflicts_with_all = ["logs", "sheet", "images_in"])]
    pub watch: Option<PathBuf>,
    /// The port of that address [default: a free one]
    #[arg(
        long,
        help_heading = "Page",
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        requires = "watch"
    )]
    pub port: u16,
    #[command(flatten)]
    pub common: Common,
}

const EXAMPLES: &str = "\
Examples:
  report --winrates winrate.json --logs policy/log.jsonl -o report.html
  report --images base.parquet policy.parquet \\
         --scored base-scored.parquet policy-scored.parquet \\
         --labels labels.parquet --winrates winrate.json \\
         --logs policy/log.jsonl -o report.html
  report --images base.parquet policy.parquet --images-in folder \\
         -o report.html
  report --watch policy
  report --images base.parquet policy.parquet --sheet sheet.png
  report --images base.parquet dpo.parquet balanced.parquet \\
         --sheet sheet.png --prompts 20 --k 3 --scale 3
  report --images base.parquet policy.parquet --sheet seeds.png \\
         --seeds-of 'a raccoon in a top hat'
  report --winrates winrate.json --images base.parquet policy.parquet \\
         --sheet policy/sheet.png --policy policy --card policy/README.md \\
         --base-model stable-diffusion-v1-5/stable-diffusion-v1-5

Exit status: 0 done, 2 trouble.";

pipe::names! {
    /// Where a page has its images.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ImagesIn {
        /// In the page, one file, where they become smaller until they fit
        Page = "page",
        /// As they were drawn, in the folder NAME-images beside NAME.html; a browser loads those that come into view
        Folder = "folder",
    }
}

impl Args {
    /// The folder for the images of the page, if they are not inside.
    pub fn beside(&self) -> Result<Option<Beside>> {
        if self.images_in == ImagesIn::Page {
            return Ok(None);
        }
        let page = self.common.output.as_deref().filter(|page| !place::is_stream(page));
        let page = page.context("--images-in folder: name the page's file with --output; the folder lies beside it")?;
        ensure!(!self.images.is_empty(), "--images-in folder: there are no images; name tables with --images");
        Beside::of(page).map(Some)
    }

    pub fn outputs(&self) -> impl Iterator<Item = &PathBuf> {
        self.sheet.iter().chain(&self.common.output).chain(&self.card.card)
    }
}
