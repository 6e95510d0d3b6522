//! Noise: the image's own, given and kept.

use super::*;

/// The noise that Euler ancestral adds follows from the image alone, or comes from a file.
#[test]
fn added_noise_is_the_image_s_own() {
    let dir = world();
    let flags = "-n 2 --scheduler euler-a --dump-latents a";
    sample(&dir, "prompts.txt", "a.parquet", flags).ok();
    for rest in ["--batch 3", "--batch 1 --threads 1", "--threads 2"] {
        sample(&dir, "prompts.txt", "b.parquet", &format!("-n 2 --scheduler euler-a {rest}")).ok();
        assert!(dir.bytes("a.parquet") == dir.bytes("b.parquet"), "{rest}");
    }
    for shard in ["1/2", "0/2"] {
        sample(&dir, "prompts.txt", "parts", &format!("-n 2 --scheduler euler-a --shard {shard}")).ok();
    }
    assert_eq!(dir.get("parts").columns(), dir.get("a.parquet").columns());
    dir.write("one.txt", "an old tree\n");
    sample(&dir, "one.txt", "c.parquet", "-n 2 --scheduler euler-a").ok();
    assert_eq!(pngs(&dir.get("c.parquet")), pngs(&dir.get("a.parquet"))[8..]);
    // From a file: other noise in the steps leads elsewhere, and each image has its own.
    let latents = Tensor::ones((2, 4, 8, 8), DType::F32, &candle_core::Device::Cpu).unwrap();
    let last = |level: f64| {
        let steps = Tensor::stack(&[&(&latents * level).unwrap(); 4], 0).unwrap();
        let second = (steps.narrow(1, 1, 1).unwrap() * 2.0).unwrap();
        let steps = Tensor::cat(&[&steps.narrow(1, 0, 1).unwrap(), &second], 1).unwrap();
        write_tensors(&dir.path("noise"), &[("latents".into(), latents.clone()), ("step_noise".into(), steps)].into());
        sample(&dir, "one.txt", "d.parquet", "-n 2 --scheduler euler-a --latents noise --dump-latents d --batch 1")
            .ok();
        tensors(&dir.path("d"))["latents"].clone()
    };
    let (one, two) = (last(0.1), last(0.2));
    let image = |x: &Tensor, i| x.narrow(0, i, 1).unwrap();
    assert!(max_abs(&image(&one, 1), &image(&two, 0)) < 1e-5);
    assert!(max_abs(&image(&one, 0), &image(&one, 1)) > 0.01);
    let error = sample(&dir, "one.txt", "e.parquet", "-n 2 --scheduler euler-a --latents noise --steps 5").fails(2);
    says(&error, &["--latents", "4 steps", "takes 5"]);
    sample(&dir, "one.txt", "e.parquet", "-n 2 --scheduler euler --latents noise --steps 5").ok();
    let flat = Tensor::zeros((4, 2, 4, 8), DType::F32, &candle_core::Device::Cpu).unwrap();
    write_tensors(&dir.path("noise"), &[("latents".into(), latents), ("step_noise".into(), flat)].into());
    let error = sample(&dir, "one.txt", "x.parquet", "-n 2 --scheduler euler-a --latents noise").fails(2);
    says(&error, &["'step_noise' has shape [4, 2, 4, 8]"]);
}

#[test]
fn an_image_follows_from_seed_prompt_and_k() {
    let dir = world();
    sample(&dir, "prompts.txt", "a.parquet", "-n 2").ok();
    dir.write("other.txt", "the sea at night\nsomething else\na robot\n");
    sample(&dir, "other.txt", "b.parquet", "-n 3").ok();
    let (a, b) = (dir.get("a.parquet"), dir.get("b.parquet"));
    for (there, here) in [(6, 0), (7, 1), (2, 6), (3, 7)] {
        assert_eq!((seeds(&a)[there], &pngs(&a)[there]), (seeds(&b)[here], &pngs(&b)[here]));
        assert_eq!(column_text(&a, "image_uid")[there], column_text(&b, "image_uid")[here]);
    }
    // Another model begins with the same noise and ends elsewhere.
    sample(&dir, "prompts.txt", "c.parquet", &format!("-n 2 --unet {}", oracle("policy").display())).ok();
    let c = dir.get("c.parquet");
    assert_eq!(seeds(&a), seeds(&c));
    assert!(pngs(&a).iter().zip(pngs(&c)).all(|(a, c)| *a != c));
    assert_ne!(column_text(&a, "image_uid")[0], column_text(&c, "image_uid")[0]);
    assert_eq!(column_text(&c, "model")[0], "policy");
}

/// The prompt of a row is its text and its set; the picture follows from the text.
#[test]
fn the_same_text_in_two_sets_is_drawn_once() {
    let dir = world();
    dir.write("more.txt", "a robot\nsomething else\nthe sea at night\n");
    let draw = |out: &str, rest: &str| {
        let base = oracle("base").display().to_string();
        let args = ["prompts.txt", "more.txt", "-o", out, "--base", &base, "--steps", "4", "-n", "2"];
        dir.tool("sample").args(args.iter().copied().chain(rest.split_whitespace())).ok().err
    };
    says(&draw("both.parquet", ""), &["16 images of 8 prompts", "4 images are copies"]);
    let both = dir.get("both.parquet");
    for (name, rows) in [("prompts.txt", 0..10), ("more.txt", 10..16)] {
        sample(&dir, name, "alone.parquet", "-n 2").ok();
        assert_eq!(dir.get("alone.parquet").columns(), both.slice(rows.start, rows.len()).columns());
    }
    let uids = column_text(&both, "image_uid");
    assert_eq!((&uids[2..4], &uids[6..8]), (&uids[10..12], &uids[14..16]));
    // However the rows are cut, and where a run continues.
    for rest in ["--batch 1", "--batch 3", "--batch 16", "--dump-latents final"] {
        draw("again.parquet", rest);
        assert!(dir.bytes("again.parquet") == dir.bytes("both.parquet"), "{rest}");
    }
    // With given noise each row is another picture, and has another name.
    draw("given.parquet", "--latents final --dump-latents last");
    let uids: std::collections::HashSet<_> = column_text(&dir.get("given.parquet"), "image_uid").into_iter().collect();
    assert_eq!(uids.len(), 16);
}

#[test]
fn latents_in_and_out() {
    let dir = world();
    sample(&dir, "prompts.txt", "a.parquet", "-n 2 --dump-latents a --batch 3").ok();
    let last = tensors(&dir.path("a"))["latents"].clone();
    assert_eq!((last.dims(), last.dtype()), (&[10, 4, 8, 8][..], DType::F32));
    // Another size: rows in the order prompt, then k.
    let mut next = noise(3);
    let mut numbers = |n: usize| (0..n).map(|_| 3.0 * (next() - 0.5)).collect::<Vec<f32>>();
    let given = Tensor::from_vec(numbers(10 * 4 * 6 * 10), (10, 4, 6, 10), &candle_core::Device::Cpu).unwrap();
    write_tensors(&dir.path("noise"), &[("latents".into(), given.clone())].into());
    sample(&dir, "prompts.txt", "b.parquet", "-n 2 --latents noise --dump-latents b").ok();
    let b = dir.get("b.parquet");
    assert_eq!((pixels(&pngs(&b)[0]).0, pixels(&pngs(&b)[0]).1), (12, 20));
    assert_eq!(tensors(&dir.path("b"))["latents"].dims(), [10, 4, 6, 10]);
    let ninth = given.narrow(0, 8, 1).unwrap(); // of the second part
    write_tensors(&dir.path("noise"), &[("latents".into(), ninth)].into());
    dir.write("one.txt", "an old tree\n");
    sample(&dir, "one.txt", "c.parquet", "--latents noise").ok();
    assert_eq!(pngs(&dir.get("c.parquet"))[0], pngs(&b)[8]);
    // What does not fit.
    std::fs::create_dir(dir.path("folder")).unwrap();
    for (rest, parts) in [
        ("--latents noise", &["--latents holds 1 rows", "5 images"][..]),
        ("--latents noise --height 16", &["--latents decides the size"]),
        ("--latents noise --shard 0/2", &["do not go with --shard"]),
        ("--latents prompts.txt", &["prompts.txt is a text"]),
        ("--latents absent", &["absent"]),
        ("--dump-latents prompts.txt/x", &["prompts.txt is not a folder"]),
        ("--dump-latents folder", &["cannot write folder: it is a folder"]),
    ] {
        says(&sample(&dir, "prompts.txt", "x.parquet", rest).fails(2), parts);
    }
    let flat = Tensor::zeros((5, 4), DType::F32, &candle_core::Device::Cpu).unwrap();
    write_tensors(&dir.path("noise"), &[("latents".into(), flat.clone())].into());
    says(&sample(&dir, "prompts.txt", "x.parquet", "--latents noise").fails(2), &["'latents' has shape [5, 4]"]);
    write_tensors(&dir.path("noise"), &[("other".into(), flat)].into());
    says(&sample(&dir, "prompts.txt", "x.parquet", "--latents noise").fails(2), &["tensor 'latents' is missing"]);
    let three = Tensor::zeros((5, 3, 8, 8), DType::F32, &candle_core::Device::Cpu).unwrap();
    write_tensors(&dir.path("noise"), &[("latents".into(), three)].into());
    says(&sample(&dir, "prompts.txt", "x.parquet", "--latents noise").fails(2), &["3 channels, the denoiser takes 4"]);
    assert!(!dir.path("x.parquet").exists() && !dir.path("x.parquet.partial").exists());
}

#[test]
fn noise_that_is_no_number_is_refused() {
    let dir = world();
    for (place, value) in [(0, f32::NAN), (7, f32::INFINITY), (255, f32::NEG_INFINITY)] {
        let mut noise = vec![0.5f32; 5 * 4 * 64];
        noise[place] = value;
        let noise = Tensor::from_vec(noise, (5, 4, 8, 8), &candle_core::Device::Cpu).unwrap();
        write_tensors(&dir.path("noise"), &[("latents".into(), noise)].into());
        let error = sample(&dir, "prompts.txt", "out", "--latents noise").fails(2);
        says(&error, &["noise", "'latents'", &format!("value {place}")]);
    }
    assert_eq!(dir.list(), ["noise", "prompts.txt"]);
}

#[test]
fn its_own_noise_can_be_kept_and_given_back() {
    let dir = world();
    sample(&dir, "prompts.txt", "a.parquet", "-n 2 --dump-noise noise --dump-latents a").ok();
    let noise = &tensors(&dir.path("noise"))["latents"];
    assert_eq!(noise.dims(), [10, 4, 8, 8]);
    sample(&dir, "prompts.txt", "b.parquet", "-n 2 --latents noise --dump-latents b").ok();
    assert_eq!(max_abs(&tensors(&dir.path("a"))["latents"], &tensors(&dir.path("b"))["latents"]), 0.0);
    let error = sample(&dir, "prompts.txt", "parts", "--dump-noise noise --shard 0/2").fails(2);
    says(&error, &["--dump-noise", "--shard"]);
}
