"""Makes tests/fixtures/samplers.json: where diffusers' schedulers lead, under many configs and numbers of steps.

    OMP_NUM_THREADS=1 python tests/oracle/samplers.py tests/fixtures/samplers.json

Made with Python 3.11, torch 2.15.0, diffusers 0.42.1. The UNet is a formula, sin(x + t / 100) - x / 4 for its answer to x at
timestep t, so that only the scheduler is compared. Each case begins with the same five numbers as standard normal noise and
has `timesteps`, `init_noise_sigma` and the numbers after the last step.
"""

import json
import sys
import warnings

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler

warnings.filterwarnings("ignore")
CLASSES = {"ddim": DDIMScheduler, "pndm": PNDMScheduler, "dpmpp": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}
ALL = list(CLASSES)
SD = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None, "clip_sample": False}
SD15 = SD | {"skip_prk_steps": True}
SDXL = SD15 | {"interpolation_type": "linear", "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False, "prediction_type": "epsilon"}
SD21 = SD | {"prediction_type": "v_prediction"}
ZERO = SD15 | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
# name, config, schedulers, steps. The first five are published: SD 1.5, SDXL base, SD 2.1, SDXL Turbo, a zero-SNR fine-tune.
GRID = [
    ("sd15", SD15, ALL, [1, 2, 3, 4, 7, 20, 50]),
    ("sdxl", SDXL, ALL, [1, 2, 7, 20, 30, 50]),
    ("sd21", SD21, ALL, [4, 5, 7, 14, 15, 20, 50]),  # pndm begins with Runge-Kutta's steps
    ("turbo", SDXL | {"timestep_spacing": "trailing"}, ALL, [1, 2, 4, 7, 48]),
    ("zero_snr", ZERO, ["ddim", "dpmpp", "euler"], [1, 2, 7, 20, 48]),
    ("linspace", SD15 | {"timestep_spacing": "linspace"}, ALL, [1, 2, 3, 7, 20]),
    ("defaults", {}, ALL, [4, 10]),
    ("to_one", SD15 | {"set_alpha_to_one": True}, ["ddim", "pndm"], [3, 20]),
    ("clipped", SD15 | {"clip_sample": True, "clip_sample_range": 0.8}, ["ddim"], [3, 20]),
    ("sigma_min", SD15 | {"final_sigmas_type": "sigma_min"}, ["dpmpp", "euler"], [3, 14, 20]),
    ("sigma_min_euler", SD15 | {"final_sigmas_type": "sigma_min", "euler_at_final": True}, ["dpmpp"], [20]),
    ("sigma_min_second", SD15 | {"final_sigmas_type": "sigma_min", "lower_order_final": False}, ["dpmpp"], [3, 20]),
    ("zero_snr_linspace", ZERO | {"timestep_spacing": "linspace"}, ["ddim", "dpmpp", "euler"], [3, 20]),
    ("trained_betas", {"trained_betas": [0.1 * (i + 1) / 12 for i in range(12)], "num_train_timesteps": 12, "skip_prk_steps": True, "clip_sample": False}, ALL, [1, 2, 3, 5]),
]
NOISE = torch.tensor([[-1.7, -0.4, 0.03, 0.9, 2.2]])


def answer(x, t):
    return torch.sin(x + t / 100) - x / 4


cases = []
for name, config, schedulers, all_steps in GRID:
    for scheduler in schedulers:
        for steps in all_steps:
            s = CLASSES[scheduler].from_config(config)
            s.set_timesteps(steps)
            x = NOISE * s.init_noise_sigma
            for t in s.timesteps:
                x = s.step(answer(s.scale_model_input(x, t), t.float()), t, x).prev_sample
            assert x.isfinite().all(), (name, scheduler, steps)
            cases.append({"config": name, "scheduler": scheduler, "steps": steps, "init_noise_sigma": float(s.init_noise_sigma), "timesteps": [float(t) for t in s.timesteps], "end": x[0].tolist()})
lines = ",\n".join(json.dumps(c) for c in cases)
configs = json.dumps({name: config for name, config, _, _ in GRID}, indent=1)
open(sys.argv[1], "w").write(f'{{"configs": {configs},\n"noise": {json.dumps(NOISE[0].tolist())},\n"cases": [\n{lines}\n]}}\n')
print(len(cases), "cases, largest", max(max(map(abs, c["end"])) for c in cases))
