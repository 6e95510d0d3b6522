"""Makes tests/fixtures/karras.json: where Euler ancestral and samplers on Karras' sigmas lead.

    python tests/oracle/karras.py tests/fixtures/karras.json

It needs Python's standard library only: these are the formulas of EulerDiscreteScheduler, EulerAncestralDiscreteScheduler
and DPMSolverMultistepScheduler of diffusers 0.42.1 in double precision. As in samplers.py a formula takes the place of the
denoiser. The noise that step i adds is cos((i + 1) noise).
"""

import json
import math
import sys

SD = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "steps_offset": 1}
V = SD | {"prediction_type": "v_prediction"}
N = 1000
ROOTS = [SD["beta_start"] ** 0.5 + (SD["beta_end"] ** 0.5 - SD["beta_start"] ** 0.5) * i / (N - 1) for i in range(N)]
ALPHAS_CUMPROD = [math.prod(1 - root**2 for root in ROOTS[: i + 1]) for i in range(N)]
TABLE = [((1 - a) / a) ** 0.5 for a in ALPHAS_CUMPROD]
NOISE = [-1.7, -0.4, 0.03, 0.9, 2.2]


def spaced(spacing, steps):
    if spacing == "linspace":
        return [(N - 1) * i / (steps - 1) for i in reversed(range(steps))]
    if spacing == "leading":
        return [i * (N // steps) + 1 for i in reversed(range(steps))]
    return [round(N - i * N / steps) - 1 for i in range(steps)]


def interpolate(t):
    low = min(int(t), N - 2)
    return TABLE[low] + (TABLE[low + 1] - TABLE[low]) * (t - low)


def sigma_to_t(sigma):
    low = max(i for i in range(N - 1) if i == 0 or TABLE[i] <= sigma)
    w = (math.log(TABLE[low]) - math.log(sigma)) / (math.log(TABLE[low]) - math.log(TABLE[low + 1]))
    return low + min(max(w, 0), 1)


def to_karras(sigma_max, sigma_min, steps, rho=7):
    return [(sigma_max ** (1 / rho) + i / (steps - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho for i in range(steps)]


def answer(x, t):
    return math.sin(x + t / 100) - x / 4


def x0_of(v, x, sigma, said):
    """diffusers' pred_original_sample, where x = x0 + sigma eps."""
    return said * -sigma / (sigma**2 + 1) ** 0.5 + x / (sigma**2 + 1) if v else x - sigma * said


def euler(v, sigmas, timesteps, x, ancestral):
    start = x
    for i, (t, sigma, to) in enumerate(zip(timesteps, sigmas, sigmas[1:])):
        x0 = x0_of(v, x, sigma, answer(x / (sigma**2 + 1) ** 0.5, t))
        up = (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5 if ancestral else 0
        down = (to**2 - up**2) ** 0.5
        x += (x - x0) / sigma * (down - sigma) + up * math.cos((i + 1) * start / INITIAL)
    return x


def dpmpp(v, sigmas, timesteps, x):
    before = None
    for i, (t, sigma, to) in enumerate(zip(timesteps, sigmas, sigmas[1:])):
        alpha, alpha_to = (sigma**2 + 1) ** -0.5, (to**2 + 1) ** -0.5
        x0 = x0_of(v, x / alpha, sigma, answer(x, t))
        d = x0
        if before is not None and to > 0:
            h, h0 = math.log(sigma / to), math.log(sigmas[i - 1] / sigma)
            d = x0 + 0.5 * (x0 - before) * h / h0
        x = to * alpha_to / (sigma * alpha) * x - alpha_to * (to / sigma - 1) * d
        before = x0
    return x


cases = []
for config, scheduler, karras, spacing, steps in [
    ("sd", "euler-a", False, "linspace", 2), ("sd", "euler-a", False, "linspace", 20), ("sd", "euler-a", False, "leading", 20),
    ("sd", "euler-a", False, "trailing", 8), ("sd", "euler-a", True, "linspace", 20), ("v", "euler-a", False, "linspace", 7),
    ("sd", "euler", True, "linspace", 3), ("sd", "euler", True, "leading", 20), ("v", "euler", True, "trailing", 7),
    ("sd", "dpmpp", True, "linspace", 20), ("sd", "dpmpp", True, "trailing", 8), ("v", "dpmpp", True, "leading", 7),
]:
    timesteps = spaced(spacing, steps)
    sigmas = [interpolate(t) for t in timesteps]
    if karras:
        ends = (TABLE[-1], TABLE[0]) if scheduler == "dpmpp" else (sigmas[0], sigmas[-1])
        sigmas = to_karras(*ends, steps)
        timesteps = [sigma_to_t(sigma) for sigma in sigmas]
        if scheduler == "dpmpp":
            timesteps = [round(t) for t in timesteps]
    sigmas.append(0.0)
    INITIAL = 1.0 if scheduler == "dpmpp" else (sigmas[0] ** 2 + 1) ** 0.5 if spacing == "leading" else sigmas[0]
    v = config == "v"
    if scheduler == "dpmpp":
        end = [dpmpp(v, sigmas, timesteps, x) for x in NOISE]
    else:
        end = [euler(v, sigmas, timesteps, x * INITIAL, scheduler == "euler-a") for x in NOISE]
    cases.append({"config": config, "scheduler": scheduler, "karras": karras, "spacing": spacing, "steps": steps, "init_noise_sigma": INITIAL, "timesteps": timesteps, "end": end})

if __name__ == "__main__":
    lines = ",\n".join(json.dumps(case) for case in cases)
    open(sys.argv[1], "w").write(f'{{"configs": {json.dumps({"sd": SD, "v": V})},\n"noise": {NOISE},\n"cases": [\n{lines}\n]}}\n')
