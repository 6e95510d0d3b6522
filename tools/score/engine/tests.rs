//! The engine with made-up scorers of both kinds.

use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use nets::image::{Rgb, png};
use nets::scorer::{Joint, Scorer, Towers};

use super::*;
use crate::panel::Presence;

/// What the scorers were asked, by the images' first bytes.
type Asked = Arc<Mutex<(Vec<u8>, Vec<(u8, String)>)>>;

/// Reads an image's first byte and a caption's length together.
struct Reader(Asked);

impl Joint for Reader {
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        let first = |p: &&Picture| p.rgb.data[0];
        self.0.lock().unwrap().0.extend(pictures.iter().map(first));
        Ok(pictures.iter().map(|p| vec![f32::from(first(p)); 5]).collect())
    }

    fn scores(&self, images: &[&[f32]], captions: &[&str]) -> Result<Vec<f32>> {
        assert_eq!(images.len(), captions.len());
        let asked = images.iter().zip(captions).map(|(image, caption)| (image[4] as u8, (*caption).to_owned()));
        self.0.lock().unwrap().1.extend(asked);
        Ok(images.iter().zip(captions).map(|(image, caption)| joint(image[0] as u8, caption)).collect())
    }
}

fn joint(image: u8, caption: &str) -> f32 {
    (f32::from(image) + 0.1).ln() * (caption.len() as f32).sqrt()
}

/// An image's first byte, whatever the caption.
struct First;

impl Towers for First {
    fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
        Ok(pictures.iter().map(|p| vec![f32::from(p.rgb.data[0])]).collect())
    }

    fn score(&self, image: &[f32], _caption: &[f32]) -> f32 {
        image[0]
    }
}

/// Pairs of images whose first bytes are these, with their captions; a first byte of 0 is an image that cannot be read.
fn rows(pairs: &[(u8, u8, &str)]) -> Rows {
    let file = |first: u8| match first {
        0 => b"no image".to_vec(),
        _ => png(&Rgb { width: 1, height: 1, data: vec![first, 1, 2] }, None).unwrap(),
    };
    let images = |side: fn(&(u8, u8, &str)) -> u8| -> ArrayRef {
        Arc::new(BinaryArray::from_iter_values(pairs.iter().map(|p| file(side(p)))))
    };
    let captions: ArrayRef = Arc::new(StringArray::from_iter_values(pairs.iter().map(|p| p.2)));
    let columns = [("caption", captions), ("jpg_0", images(|p| p.0)), ("jpg_1", images(|p| p.1))];
    Rows { table: "pairs".into(), first: 0, batch: RecordBatch::try_from_iter(columns).unwrap() }
}

fn member(name: &'static str, model: impl Fn() -> Model + Send + Sync + 'static) -> Member {
    Member::new(name, move || Ok(Scorer { id: name.into(), preprocess: None, model: model() })).unwrap()
}

fn engine(asked: &Asked, batch: usize, parallel: Parallel, presence: Presence) -> Engine {
    let asked = asked.clone();
    let members = vec![
        member("first", || Model::Towers(Box::new(First))),
        member("reader", move || Model::Joint(Box::new(Reader(asked.clone())))),
    ];
    let panel = Panel::of(members, presence);
    Engine::new(panel, Kind::Pairs, &std::env::temp_dir(), batch, parallel, Bad::Skip).unwrap()
}

#[test]
fn a_joint_scorer_sees_each_image_once_and_each_pair_once_in_any_batch_and_on_any_threads() {
    let pairs =
        [(7, 9, "a cat"), (9, 7, "a cat"), (7, 200, "a dog!"), (0, 30, "a dog!"), (30, 31, ""), (7, 7, "a cat")];
    let table = rows(&pairs);
    let places: Vec<(u8, &str)> = pairs.iter().flat_map(|p| [(p.0, p.2), (p.1, p.2)]).collect();
    let score = |of: fn(u8, &str) -> f32| -> Vec<Option<f32>> {
        places.iter().map(|&(image, caption)| (image > 0).then(|| of(image, caption))).collect()
    };
    let expected = [score(|image, _| f32::from(image)), score(joint)];
    let distinct = |mut all: Vec<(u8, String)>| {
        all.sort();
        all.dedup();
        all
    };
    for (batch, parallel, threads, presence) in [
        (1, Parallel::Batches, 1, Presence::All),
        (1, Parallel::Batches, 3, Presence::InTurns),
        (2, Parallel::Decoding, 2, Presence::All),
        (4, Parallel::Batches, 2, Presence::InTurns),
        (100, Parallel::Decoding, 1, Presence::All),
    ] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let asked = Asked::default();
        let mut engine = engine(&asked, batch, parallel, presence);
        let mut score = |rows: &Rows| pool.install(|| engine.score(rows)).unwrap();
        assert_eq!(score(&table), expected, "batches of {batch}");
        assert_eq!(score(&table), expected, "batches of {batch}, again");
        // An image that is known, with a caption that is not.
        assert_eq!(score(&rows(&[(31, 9, "new")]))[1], [Some(joint(31, "new")), Some(joint(9, "new"))]);
        let (mut images, scored) = asked.lock().unwrap().clone();
        images.sort();
        assert_eq!(images, [7, 9, 30, 31, 200], "batches of {batch}");
        let more = [(31, "new"), (9, "new")];
        let all = places.iter().filter(|p| p.0 > 0).chain(&more).map(|(i, c)| (*i, (*c).to_owned()));
        assert_eq!(scored.len(), distinct(scored.clone()).len(), "batches of {batch}");
        assert_eq!(distinct(scored), distinct(all.collect()), "batches of {batch}");
        assert_eq!((engine.counts.images_embedded, engine.counts.undecodable), (5, 2));
    }
}

#[test]
fn a_score_that_is_not_a_number_names_row_and_metric() {
    struct Damaged;
    impl Towers for Damaged {
        fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
            First.image_features(pictures)
        }
        fn score(&self, image: &[f32], _caption: &[f32]) -> f32 {
            if image[0] == 5.0 { f32::NAN } else { image[0] }
        }
    }
    let mut engine = engine(&Asked::default(), 2, Parallel::Batches, Presence::All);
    engine.panel.members[0] = member("first", || Model::Towers(Box::new(Damaged)));
    let error = engine.score(&rows(&[(4, 6, "x"), (6, 5, "x")])).unwrap_err().to_string();
    assert!(error.contains("row 1") && error.contains("'jpg_1': first gives NaN"), "{error}");
}

#[test]
fn scorers_that_take_turns_are_never_in_memory_together_and_the_last_stays_for_the_next_part() {
    /// Counts the scorers in memory, and every opening.
    struct Counted(&'static Counter);
    #[derive(Default)]
    struct Counter(Mutex<(usize, usize, Vec<&'static str>)>);
    impl Towers for Counted {
        fn image_features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>> {
            First.image_features(pictures)
        }
        fn score(&self, image: &[f32], caption: &[f32]) -> f32 {
            First.score(image, caption)
        }
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.0.lock().unwrap().0 -= 1;
        }
    }
    for (presence, most, opened) in
        [(Presence::All, 3, vec!["a", "b", "c"]), (Presence::InTurns, 1, vec!["a", "b", "c", "b", "a", "b", "c"])]
    {
        let counter: &'static Counter = Box::leak(Box::default());
        let mut members = vec![];
        for name in ["a", "b", "c"] {
            members.push(member(name, move || {
                let mut counts = counter.0.lock().unwrap();
                counts.0 += 1;
                counts.1 = counts.1.max(counts.0);
                counts.2.push(name);
                Model::Towers(Box::new(Counted(counter)))
            }));
        }
        let panel = Panel::of(members, presence);
        {
            let mut counts = counter.0.lock().unwrap();
            counts.1 = counts.0; // they were opened together
        }
        let folder = std::env::temp_dir();
        let mut engine = Engine::new(panel, Kind::Pairs, &folder, 2, Parallel::Batches, Bad::Skip).unwrap();
        for part in [[(3, 4, "x"), (0, 9, "y")], [(5, 3, "x"), (7, 8, "z")]] {
            let scores = engine.score(&rows(&part)).unwrap();
            let expected: Vec<_> =
                part.iter().flat_map(|p| [p.0, p.1]).map(|i| (i > 0).then_some(f32::from(i))).collect();
            assert_eq!(scores, vec![expected; 3]);
        }
        let counts = counter.0.lock().unwrap();
        assert_eq!((counts.1, &counts.2), (most, &opened), "{presence:?}");
        assert_eq!((engine.counts.images_embedded, engine.counts.undecodable), (6, 1));
    }
}

#[test]
fn a_model_that_is_replaced_while_another_has_its_turn_is_refused() {
    let opened = Mutex::new(0);
    let replaced = Member::new("replaced", move || {
        let mut opened = opened.lock().unwrap();
        *opened += 1;
        Ok(Scorer { id: format!("{opened}"), preprocess: None, model: Model::Towers(Box::new(First)) })
    });
    let members = vec![replaced.unwrap(), member("other", || Model::Towers(Box::new(First)))];
    let panel = Panel::of(members, Presence::InTurns);
    let mut engine = Engine::new(panel, Kind::Pairs, &std::env::temp_dir(), 2, Parallel::Batches, Bad::Refuse).unwrap();
    let error = engine.score(&rows(&[(4, 6, "x")])).unwrap_err().to_string();
    assert!(error.contains("'replaced' was replaced"), "{error}");
}
