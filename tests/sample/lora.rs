//! Adapters under the names of kohya's scripts for SDXL, which are those of its first code.

use std::collections::BTreeMap;

use candle_core::Device;

use super::*;

/// The modules of the small SDXL model, and their names in files of kohya's scripts as diffusers reads them
/// (`tests/oracle/kohya.py`).
fn names() -> BTreeMap<String, String> {
    serde_json::from_slice(&std::fs::read(fixture("sample/kohya.json")).unwrap()).unwrap()
}

/// Small random numbers.
fn random(dims: Vec<usize>, next: &mut impl FnMut() -> f32) -> Tensor {
    let all = (0..dims.iter().product()).map(|_| 0.2 * (next() - 0.5)).collect::<Vec<_>>();
    Tensor::from_vec(all, dims, &Device::Cpu).unwrap()
}

#[test]
fn kohya_s_names_of_sdxl_mean_what_diffusers_means() {
    let (dir, sdxl) = (world(), fixture("sample/sdxl"));
    let weights = |part: &str| {
        let file = if part == "unet" { "diffusion_pytorch_model" } else { "model" };
        tensors(&sdxl.join(part).join(format!("{file}.fp16.safetensors")))
    };
    let parts: BTreeMap<_, _> = ["unet", "text_encoder", "text_encoder_2"].map(|part| (part, weights(part))).into();
    let (mut kohya, mut peft, mut both, mut next) = (Tensors::new(), Tensors::new(), Tensors::new(), noise(3));
    for (module, name) in names() {
        let (part, inner) = module.split_once('.').unwrap();
        let older = inner.strip_prefix("text_model.").unwrap_or(inner);
        let weight = [inner, older].iter().find_map(|name| parts[part].get(&format!("{name}.weight")));
        let dims = weight.unwrap_or_else(|| panic!("{module}")).dims().to_vec();
        let a = random([&[2], &dims[1..]].concat(), &mut next);
        let b = random([&[dims[0], 2][..], &vec![1; dims.len() - 2]].concat(), &mut next);
        for (end, tensor) in [("A", &a), ("B", &b)] {
            peft.insert(format!("{module}.lora_{end}.weight"), tensor.clone());
        }
        let flat = format!("lora_{part}_{}", inner.replace('.', "_"));
        for (end, tensor) in [("down", &a), ("up", &b)] {
            kohya.insert(format!("{name}.lora_{end}.weight"), tensor.clone());
            if part == "unet" {
                both.insert(format!("{flat}.lora_{end}.weight"), tensor.clone());
            }
        }
    }
    let draw = |name: &str, adapters: &Tensors| {
        write_tensors(&dir.path(name), adapters);
        let rest = format!("--base {} --steps 2 --lora {name}", sdxl.display());
        sample(&dir, "prompts.txt", "drawn", &rest).ok();
        pngs(&dir.get("drawn")).iter().map(|png| pixels(png).2).collect::<Vec<_>>()
    };
    let drawn = draw("kohya", &kohya);
    assert!(drawn == draw("peft", &peft));
    // Each part counts.
    for part in ["lora_unet_input", "lora_unet_middle", "lora_unet_output", "lora_te1_", "lora_te2_"] {
        let rest = kohya.iter().filter(|(name, _)| !name.starts_with(part)).map(|(n, t)| (n.clone(), t.clone()));
        assert!(drawn != draw("rest", &rest.collect()), "{part}");
    }
    // Some files hold the UNet's adapters under both names; they are added once, and must be the same.
    both.extend(kohya.clone());
    assert!(drawn == draw("both", &both));
    let name = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight";
    both.insert(name.into(), (&both[name] * 2.0).unwrap());
    write_tensors(&dir.path("both"), &both);
    let error = sample(&dir, "prompts.txt", "drawn", &format!("--base {} --lora both", sdxl.display())).fails(2);
    says(&error, &["both holds two different adapters of 'mid_block.attentions.0.proj_in'"]);
}
