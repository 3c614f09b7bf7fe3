"""How well known behaviour comes back: simulated mice, and human motion capture where ``PPGEN_DATA`` is set.

``python benchmarks/recovery.py mice|mocap|gaps [--seed 0]`` prints a table and writes it to ``benchmarks/results``.
Labels are used for scoring only. Held-out sequences are the last two, fixed before anything was fitted.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from ppgen.emissions import Autoregressive
from ppgen.inference import vb
from ppgen.models import HMM

RESULTS = Path(__file__).parent / "results"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["mice", "mocap", "gaps"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table = {"mice": mice, "mocap": mocap, "gaps": gaps}[options.what](options.seed)
    text = markdown(table)
    print(text)
    (RESULTS / f"{options.what}.md").write_text(text + "\n")


def markdown(table):
    def cell(value):
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    rows = [list(table.columns), ["---"] * table.shape[1], *([cell(v) for v in row] for row in table.to_numpy(object))]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def load_mocap():
    data = np.load(Path(os.environ["PPGEN_DATA"]) / "mocap6.npz", allow_pickle=False)
    x, edges, truth = data["X"], data["doc_range"], data["TrueZ"]
    x = (x - x.mean(0)) / x.std(0)
    cut = list(zip(edges[:-1], edges[1:], strict=True))
    return {f"s{i}": x[a:b] for i, (a, b) in enumerate(cut)}, {f"s{i}": truth[a:b] for i, (a, b) in enumerate(cut)}


def scores(labels, truth):
    """Matched accuracy (Hungarian), NMI, switches, states in use."""
    found = np.concatenate([labels[name] for name in truth])
    known = np.unique(np.concatenate(list(truth.values())), return_inverse=True)[1]
    table = np.zeros((found.max() + 1, known.max() + 1))
    np.add.at(table, (found, known), 1)
    rows, columns = linear_sum_assignment(-table)
    switches = sum(int((np.diff(labels[name]) != 0).sum()) for name in truth)
    return {
        "accuracy": table[rows, columns].sum() / len(found),
        "NMI": normalized_mutual_info_score(known, found),
        "switches": switches,
        "states used": len(np.unique(found)),
    }


def modes(fit, x):
    z = fit.latents(x)["z_mode"].to_numpy()
    return {name: row[: len(x[name])] for name, row in zip(x, z, strict=True)}


def ar_hmm(features, states=20, lags=3, stickiness=1e4):
    return HMM(
        states, emission=Autoregressive(features, lags), stickiness=stickiness, hierarchical=True, learn_prior=True
    )


def per_frame(fit, x, seed):
    values = fit.log_likelihood(x, draws=100, random_seed=seed)
    return float(values.sum()) / sum(len(v) for v in x.values())


def mocap(seed):
    x, truth = load_mocap()
    rows = []
    train, held = dict(list(x.items())[:4]), dict(list(x.items())[4:])
    labels = KMeans(12, n_init=10, random_state=seed).fit_predict(np.concatenate(list(x.values())))
    parts = np.split(labels, np.cumsum([len(v) for v in x.values()])[:-1])
    rows.append({"model": "k-means, 12"} | scores(dict(zip(x, parts, strict=True)), truth))
    models = {"Gaussian HMM, 12": HMM(12, 12)}
    models |= {f"AR-HMM, {K} states, {lags} lags": ar_hmm(12, K, lags) for K in (12, 20, 30) for lags in (1, 2, 3)}
    for name, model in models.items():
        began = time.perf_counter()
        fit = vb.fit(model, x, n_init=6, random_seed=seed, progressbar=False)
        seconds = time.perf_counter() - began
        part = vb.fit(model, train, n_init=6, random_seed=seed, progressbar=False)
        rows.append(
            {"model": name}
            | scores(modes(fit, x), truth)
            | {
                "ELBO": max(fit.attrs["restart_elbos"]),
                "train nats/frame": per_frame(part, train, seed),
                "held-out nats/frame": per_frame(part, held, seed),
                "seconds": seconds,
            }
        )
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def gaps(seed):
    x, _ = load_mocap()
    rng = np.random.default_rng(seed)
    rows = []
    for what in ("20 % of entries", "2-s gaps of one channel", "1-s blackouts"):
        hidden = {name: _hide(v, what, rng) for name, v in x.items()}
        seen = {name: np.where(hidden[name], np.nan, v) for name, v in x.items()}
        lines = {name: pd.DataFrame(v).interpolate(limit_direction="both").to_numpy() for name, v in seen.items()}
        fit = vb.fit(ar_hmm(12), seen, n_init=3, random_seed=seed, progressbar=False)
        draws = fit.impute(seen, draws=200, random_seed=seed)
        error, line_error, inside = [], [], {0.5: [], 0.9: []}
        for i, name in enumerate(x):
            d = draws.isel(sequence=i).to_numpy()[:, : len(x[name])][:, hidden[name]]
            true = x[name][hidden[name]]
            error.append(d.mean(0) - true)
            line_error.append(lines[name][hidden[name]] - true)
            for level, found in inside.items():
                low, high = np.quantile(d, [(1 - level) / 2, (1 + level) / 2], axis=0)
                found.append((low <= true) & (true <= high))
        rows.append(
            {
                "hidden": what,
                "entries": sum(int(h.sum()) for h in hidden.values()),
                "RMSE": float(np.sqrt(np.mean(np.concatenate(error) ** 2))),
                "RMSE linear": float(np.sqrt(np.mean(np.concatenate(line_error) ** 2))),
                "inside 50 %": float(np.concatenate(inside[0.5]).mean()),
                "inside 90 %": float(np.concatenate(inside[0.9]).mean()),
            }
        )
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def _hide(x, what, rng):
    """Which entries to hide; interior frames only, so that every one can be interpolated."""
    hidden = np.zeros(x.shape, bool)
    T = len(x)
    if what == "20 % of entries":
        hidden[1:-1] = rng.random((T - 2, x.shape[1])) < 0.2
    elif what == "2-s gaps of one channel":
        for d in range(x.shape[1]):
            for start in range(10 + int(rng.integers(60)), T - 30, 80):
                hidden[start : start + 20, d] = True
    else:
        for start in range(20 + int(rng.integers(40)), T - 20, 50):
            hidden[start : start + 10] = True
    return hidden


def mice(seed):
    from ppgen.behavior.fitting import Settings, fit_pipeline
    from ppgen.pose.alignment import unalign
    from ppgen.pose.simulate import simulate_mice

    recordings, truth = simulate_mice(random_seed=seed)
    began = time.perf_counter()
    study = fit_pipeline(recordings, Settings(random_seed=seed), progressbar=False)
    seconds = time.perf_counter() - began
    labelled = [study.pipeline.label(recording) for recording in recordings]
    labels = {r.name: one.syllable for r, one in zip(recordings, labelled, strict=True)}
    known = {r.name: t.syllable for r, t in zip(recordings, truth, strict=True)}
    row = scores(labels, known) | {"seconds": seconds} | _calibration(labelled, truth, labels, known)
    aligned = study.pipeline.align(recordings).recordings
    x = {one.name: one.features for one in aligned}
    draws = study.pipeline.fit.impute(x, draws=100, random_seed=seed)
    inside, share = {0.5: [], 0.9: []}, []
    for i, (one, recording, t) in enumerate(zip(aligned, recordings, truth, strict=True)):
        d = draws.isel(sequence=i).to_numpy()[:, : len(recording)]
        poses = unalign(d.reshape(len(d), *one.pose.shape), one.centroid, one.heading, one.scale)
        order = [list(recording.keypoints).index(k) for k in one.keypoints]
        hidden = np.isnan(recording.positions[:, order]).any(-1) & np.isfinite(one.centroid).all(-1)[:, None]
        true = t.positions[:, order][hidden]
        share.append(hidden.mean())
        for level, found in inside.items():
            low, high = np.nanquantile(poses[:, hidden], [(1 - level) / 2, (1 + level) / 2], axis=0)
            found.append(((low <= true) & (true <= high)).ravel())
    row |= {f"keypoints inside {level:.0%}": float(np.concatenate(v).mean()) for level, v in inside.items()}
    return pd.DataFrame([row | {"points hidden": float(np.mean(share))}])


def _calibration(labelled, truth, labels, known):
    """Expected calibration error of the probability given to the matched true syllable's state, ten bins."""
    found, true = np.concatenate(list(labels.values())), np.concatenate(list(known.values()))
    K = max(one.probabilities.shape[1] for one in labelled)
    table = np.zeros((K, true.max() + 1))
    np.add.at(table, (found, true), 1)
    group = table.argmax(1)  # each state belongs to the syllable it overlaps most
    p = np.concatenate([one.probabilities for one in labelled])
    merged = np.stack([p[:, group == s].sum(1) for s in range(table.shape[1])], 1)
    confidence, right = merged.max(1), merged.argmax(1) == true
    bins = np.clip((confidence * 10).astype(int), 0, 9)
    error = sum((bins == b).mean() * abs(confidence[bins == b].mean() - right[bins == b].mean()) for b in set(bins))
    return {"mean confidence": confidence.mean(), "right (states merged)": right.mean(), "ECE": error}


if __name__ == "__main__":
    main()
