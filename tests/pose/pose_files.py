"""Small pose files of every format, made at run time. All hold `positions` (5, 3, 2) and `confidence` (5, 3)."""

import json
import pickle

import h5py
import numpy as np
import xarray as xr

KEYPOINTS = ("nose", "left ear", "tail")
RNG = np.random.default_rng(0)
POSITIONS = RNG.uniform(0, 100, (5, 3, 2))
POSITIONS[1, 2] = np.nan
CONFIDENCE = RNG.uniform(0.5, 1, (5, 3))
TABLE = np.concatenate([POSITIONS, CONFIDENCE[..., None]], -1).reshape(5, 9)
COLUMNS = [("net", k, c) for k in KEYPOINTS for c in ("x", "y", "likelihood")]


def csv_text(columns=COLUMNS, table=TABLE, labels=("scorer", "bodyparts", "coords"), sep=",", index=None):
    rows = [[label, *cells] for label, cells in zip(labels, zip(*columns, strict=True), strict=True)]
    index = range(len(table)) if index is None else index
    rows += [
        [str(i), *("" if np.isnan(v) else repr(float(v)) for v in row)] for i, row in zip(index, table, strict=True)
    ]
    return "\n".join(sep.join(row) for row in rows) + "\n"


def deeplabcut_csv(path):
    path.write_text(csv_text())


def lightning_pose(path):
    path.write_text(csv_text([("heatmap_tracker", *c[1:]) for c in COLUMNS]))


def anipose(path):
    names, cells = [], []
    for p, k in enumerate(KEYPOINTS):
        names += [f"{k}_{c}" for c in ("x", "y", "z", "error", "score", "ncams")]
        for column in (POSITIONS[:, p, 0], POSITIONS[:, p, 1], POSITIONS[:, p, 0] + 1, CONFIDENCE[:, p] * 9):
            cells.append(column)
        cells += [CONFIDENCE[:, p], np.full(5, 3.0)]
    names += ["M_00", "center_0", "fnum"]
    cells += [np.ones(5), np.zeros(5), np.arange(5.0)]
    lines = [",".join("" if np.isnan(v) else repr(float(v)) for v in row) for row in np.stack(cells, 1)]
    path.write_text("\n".join([",".join(names), *lines]))


def fixed_h5(path, columns=COLUMNS, table=TABLE):
    with h5py.File(path, "w") as file:
        group = file.create_group("df")
        group.attrs["pandas_type"] = b"frame"
        group.attrs["nblocks"] = 1
        group.attrs["block0_items_nlevels"] = len(columns[0])
        for level, words in enumerate(zip(*columns, strict=True)):
            labels = sorted(set(words))
            group[f"block0_items_level{level}"] = np.array([w.encode() for w in labels])
            group[f"block0_items_label{level}"] = np.array([labels.index(w) for w in words], dtype=np.int8)
        group["axis1"] = np.arange(len(table))
        group["block0_values"] = table
        group["block0_values"].attrs["transposed"] = np.uint8(1)


def table_h5(path, columns=COLUMNS, table=TABLE, kind=None):
    with h5py.File(path, "w") as file:
        group = file.create_group("df_with_missing")
        group.attrs["pandas_type"] = b"frame_table"
        rows = np.zeros(len(table), dtype=[("index", "<i8"), ("values_block_0", "<f8", (table.shape[1],))])
        rows["index"], rows["values_block_0"] = np.arange(len(table)), table
        data = group.create_dataset("table", data=rows, chunks=(4,))
        data.attrs["values_block_0_kind"] = np.bytes_(pickle.dumps(list(columns), protocol=0) if kind is None else kind)


def sleap_analysis(path, dims=None):
    tracks = np.full((2, 5, 3, 2), np.nan)
    tracks[0] = POSITIONS
    order = {"track": 0, "frame": 1, "node": 2, "xy": 3}
    axes = dims or ("track", "xy", "node", "frame")
    with h5py.File(path, "w") as file:
        file["tracks"] = tracks.transpose([order[d] for d in axes])
        if dims:
            file["tracks"].attrs["dims"] = json.dumps(dims)
        scores = np.stack([CONFIDENCE, CONFIDENCE * np.nan])
        file["point_scores"] = scores.transpose([order[d] for d in axes if d != "xy"])
        file["node_names"] = np.array([k.encode() for k in KEYPOINTS])
        file["track_names"] = np.array([b"mouse", b"ghost"])
        file["track_occupancy"] = np.ones((5, 2), dtype=np.uint8)


def sleap_labels(path, tracked=True, twice=False):
    # Nodes are described in another order than points are stored in.
    metadata = {
        "nodes": [{"name": k} for k in KEYPOINTS[::-1]],
        "skeletons": [{"nodes": [{"id": 2}, {"id": 1}, {"id": 0}]}],
    }
    frames = np.zeros(
        5, dtype=[("frame_id", "<u8"), ("video", "<u4"), ("frame_idx", "<u8"), ("a", "<u8"), ("b", "<u8")]
    )
    frames["frame_id"], frames["frame_idx"] = np.arange(5), np.arange(5) + 10
    instances = np.zeros(
        6 if twice else 5,
        dtype=[
            ("instance_id", "<i8"), ("instance_type", "u1"), ("frame_id", "<u8"), ("skeleton", "<u4"),
            ("track", "<i4"), ("point_id_start", "<u8"), ("point_id_end", "<u8"),
        ],
    )  # fmt: skip
    instances["instance_type"] = 1
    instances["frame_id"][:5] = np.arange(5)
    instances["track"] = 0 if tracked else -1
    instances["point_id_start"][:5] = np.arange(5) * 3
    instances["point_id_end"] = instances["point_id_start"] + 3
    kinds = [("x", "<f8"), ("y", "<f8"), ("visible", "?"), ("complete", "?"), ("score", "<f8")]
    points = np.zeros(15, dtype=kinds)
    points["x"], points["y"] = POSITIONS.reshape(15, 2).T
    points["visible"] = True
    points["score"] = CONFIDENCE.ravel()
    with h5py.File(path, "w") as file:
        file.create_group("metadata").attrs["json"] = np.bytes_(json.dumps(metadata))
        file["frames"], file["instances"], file["pred_points"] = frames, instances, points
        file["points"] = np.zeros(0, dtype=kinds[:-1])
        file["tracks_json"] = np.array([b'[0,"mouse"]'])


def dataset(new_names=False):
    k, i = ("keypoint", "individual") if new_names else ("keypoints", "individuals")
    return xr.Dataset(
        {
            "position": (("time", "space", k, i), POSITIONS.swapaxes(1, 2)[..., None]),
            "confidence": (("time", k, i), CONFIDENCE[..., None]),
        },
        coords={"time": np.arange(5) / 30, "space": ["x", "y"], k: list(KEYPOINTS), i: ["mouse"]},
        attrs={"fps": 30.0, "ds_type": "poses"},
    )


def netcdf(path):
    dataset().to_netcdf(path, engine="h5netcdf")


def netcdf_new_names(path):
    dataset(new_names=True).to_netcdf(path, engine="h5netcdf")


def npz(path):
    with path.open("wb") as file:
        np.savez(file, positions=POSITIONS, confidence=CONFIDENCE, keypoints=np.array(KEYPOINTS), fps=25.0)
