"""Makes tests/fixtures/winrate.json: scores of three made-up models, and what SciPy says of them.

    python tests/oracle/winrate.py >tests/fixtures/winrate.json

Made with Python 3.11.7, NumPy 2.4.6, SciPy 1.17.1. Wilson's interval and the sign test are scipy.stats.binomtest's, the
bootstrap is scipy.stats.bootstrap's (percentile, paired by resampling prompts); Holm's correction is that of R's p.adjust,
cummax((m - i + 1) p_(i)).
"""
import json

import numpy as np
from scipy.stats import binomtest, bootstrap

PROMPTS, IMAGES, METRICS = 60, 3, ["hps", "clip"]
rng = np.random.default_rng(1)
level = rng.normal(size=(len(METRICS), PROMPTS, 1))  # some prompts are easy for every model
models = {}
for name, gain in {"balanced": 0.45, "dpo": 0.3, "base": 0.0}.items():
    models[name] = level + gain + 0.7 * rng.normal(size=(len(METRICS), PROMPTS, IMAGES))
    # Coarse steps under the second metric, so that some prompts tie. Quarters are exact in f32 and in f64.
    models[name][1] = np.round(models[name][1] * 2) / 2
models = {name: x.astype(np.float32).astype(np.float64) for name, x in models.items()}


def rate(a, b):
    wins, losses, n = int((a > b).sum()), int((a < b).sum()), len(a)
    interval = binomtest(wins, n).proportion_ci(method="wilson")
    p = binomtest(wins, wins + losses).pvalue
    boot = bootstrap(((a > b).astype(float),), np.mean, method="percentile", n_resamples=50_000, rng=0).confidence_interval
    return dict(wins=wins, losses=losses, ties=n - wins - losses, low=interval.low, high=interval.high, p=float(p),
                bootstrap_low=float(boot.low), bootstrap_high=float(boot.high))


def holm(rates):
    p = np.array([r["p"] for r in rates])
    order = np.argsort(p, kind="stable")
    corrected = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    for i, value in zip(order, corrected):
        rates[i]["p_holm"] = float(value)


cells = []
for a, b in [("dpo", "base"), ("balanced", "base"), ("balanced", "dpo")]:
    for m, metric in enumerate(METRICS):
        x, y = models[a][m], models[b][m]
        diff = x.mean(1) - y.mean(1)
        boot = bootstrap((diff,), np.mean, method="percentile", n_resamples=50_000, rng=0).confidence_interval
        cells.append(dict(
            a=a, b=b, metric=metric, best=rate(x.max(1), y.max(1)), mean_of_n=rate(x.mean(1), y.mean(1)),
            diff=float(diff.mean()), diff_low=float(boot.low), diff_high=float(boot.high), sd_b=float(y.std(ddof=1)),
        ))
holm([cell["best"] for cell in cells])
holm([cell["mean_of_n"] for cell in cells])
print(json.dumps(dict(metrics=METRICS, scores={k: v.tolist() for k, v in models.items()}, cells=cells)))
