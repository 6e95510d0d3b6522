//! The pictures of diffusers, by every sampler and model.

use super::*;

#[test]
fn ddim_gives_the_images_of_diffusers() {
    let dir = Dir::new();
    let expected = tensors(&oracle("expected.safetensors"));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(oracle("expected.json")).unwrap()).unwrap();
    let prompts: Vec<_> = json["prompts"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    dir.write("prompts.json", serde_json::to_vec(&prompts).unwrap());
    write_tensors(&dir.path("noise"), &[("latents".into(), expected["sample.noise"].clone())].into());
    let rest = "--steps 10 --guidance 7.5 --latents noise --dump-latents final";
    sample(&dir, "prompts.json", "out.parquet", rest).ok();
    let far = max_abs(&tensors(&dir.path("final"))["latents"], &expected["sample.latents"]);
    assert!(far < 1e-3, "{far}");
    let images = expected["sample.image_u8"].chunk(2, 0).unwrap();
    for (png, image) in pngs(&dir.get("out.parquet")).iter().zip(images) {
        same_picture(png, &image.flatten_all().unwrap().to_vec1::<u8>().unwrap());
    }
}

#[test]
#[ignore = "needs ../shared/parity/given"]
fn every_sampler_gives_the_images_of_the_parity_kit() {
    let kit = parity("");
    let settings = std::fs::read_to_string(kit.join("expected/sample.json")).unwrap();
    let settings: serde_json::Value = serde_json::from_str(&settings.replace("Infinity", "0")).unwrap();
    let dir = Dir::new();
    for (case, settings) in settings.as_object().unwrap() {
        let (model, scheduler) = case.rsplit_once('_').unwrap();
        let expected = tensors(&kit.join(format!("expected/sample/{case}.safetensors")));
        dir.write("prompts.json", serde_json::to_vec(&[&settings["prompt"]]).unwrap());
        write_tensors(&dir.path("noise"), &[("latents".into(), expected["noise"].clone())].into());
        let rest = format!(
            "--base {} --scheduler {} --steps {} --guidance {} --latents noise --dump-latents final",
            kit.join("models").join(model).display(),
            scheduler.trim_end_matches("2m"),
            settings["steps"],
            settings["guidance"]
        );
        sample(&dir, "prompts.json", "out.parquet", &rest).ok();
        let far = max_abs(&tensors(&dir.path("final"))["latents"], &expected["latents"]);
        println!("{case}: latents off by {far:.1e}");
        assert!(far < 1e-3, "{case}: {far}");
        let image = expected["image_u8"].squeeze(0).unwrap().permute((1, 2, 0)).unwrap();
        same_picture(&pngs(&dir.get("out.parquet"))[0], &image.flatten_all().unwrap().to_vec1::<u8>().unwrap());
    }
}

/// Euler ancestral, Karras' sigmas and other spacings on SD 1.5, 2.1 and SDXL.
#[test]
#[ignore = "needs ../shared/parity/given"]
fn further_samplers_give_the_latents_of_the_parity_kit() {
    let kit = parity("");
    // Python writes infinities, which JSON does not have.
    let text = std::fs::read_to_string(kit.join("expected/flow.json")).unwrap().replace("-Infinity", "null");
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let dir = Dir::new();
    let noise = kit.join("expected/flow/samplers_noise.safetensors").display().to_string();
    for (case, settings) in all["samplers"].as_object().unwrap() {
        let (model, name) = case.split_once('_').unwrap();
        let expected =
            &tensors(&kit.join("expected").join(settings["file"].as_str().unwrap()))[&format!("{name}.latents")];
        dir.write("prompts.json", serde_json::to_vec(&[&settings["prompt"]]).unwrap());
        let scheduler = if name.starts_with("euler_a") { "euler-a" } else { name.split('_').next().unwrap() };
        let rest = format!(
            "--base {} --scheduler {scheduler} --steps {} --guidance {} --spacing {} {} --latents {noise} --dump-latents final",
            kit.join("models").join(model).display(),
            settings["steps"],
            settings["guidance"],
            settings["config"]["timestep_spacing"].as_str().unwrap(),
            if name.contains("karras") { "--karras" } else { "" },
        );
        sample(&dir, "prompts.json", "out.parquet", &rest).ok();
        let far = max_abs(&tensors(&dir.path("final"))["latents"], expected);
        println!("{case}: latents off by {far:.1e}");
        assert!(far < 2e-4, "{case}: {far}");
    }
}

/// `tests/oracle/sample.py`: SD 2.1 and SDXL in their own layouts, all samplers, negative prompts, other sizes told.
#[test]
fn sd21_and_sdxl_give_the_images_of_diffusers_pipelines() {
    let dir = Dir::new();
    let expected = tensors(&fixture("sample/expected.safetensors"));
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("sample/cases.json")).unwrap()).unwrap();
    dir.write("prompts.json", serde_json::to_vec(&json["prompts"]).unwrap());
    for case in json["cases"].as_array().unwrap() {
        let (model, i) = (case["model"].as_str().unwrap(), &case["case"]);
        let rest = format!(
            "--base {} --scheduler {} --steps {} --guidance {} --latents {} --dump-latents final",
            fixture("sample").join(model).display(),
            case["scheduler"].as_str().unwrap(),
            case["steps"],
            case["guidance"],
            fixture("sample/noise.safetensors").display()
        );
        let mut tool = sample(&dir, "prompts.json", "out.parquet", &rest);
        if let Some(negative) = case["negative"].as_str() {
            tool = tool.args(["--negative", negative]);
        }
        if let Some(ids) = case["time_ids"].as_array() {
            tool = tool.args(["--time-ids", &ids.iter().map(|i| i.to_string()).collect::<Vec<_>>().join(",")]);
        }
        tool.ok();
        let far = max_abs(&tensors(&dir.path("final"))["latents"], &expected[&format!("{model}.{i}.latents")]);
        assert!(far < 2e-4, "{case}: {far}");
        let Some(images) = expected.get(&format!("{model}.{i}.image_u8")) else { continue };
        for (png, image) in pngs(&dir.get("out.parquet")).iter().zip(images.chunk(2, 0).unwrap()) {
            same_picture(png, &image.flatten_all().unwrap().to_vec1::<u8>().unwrap());
        }
    }
}

/// Guidance 1 is the conditional answer alone; by the formula of guidance g it is also what g -> 1 leads to.
#[test]
fn guidance_1_is_no_guidance() {
    let dir = world();
    let last = |name: &str, guidance: &str| -> Tensor {
        let rest = format!("--guidance {guidance} --dump-latents {name}");
        sample(&dir, "prompts.txt", "x.parquet", &rest).ok();
        tensors(&dir.path(name))["latents"].clone()
    };
    let (one, nearly, strong) = (last("a", "1"), last("b", "1.00001"), last("c", "7.5"));
    assert!(max_abs(&one, &nearly) < 1e-2, "{}", max_abs(&one, &nearly));
    assert!(max_abs(&one, &strong) > 0.1);
}
