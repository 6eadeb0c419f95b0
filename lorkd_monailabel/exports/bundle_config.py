"""The inference config of a bundle: stock transforms and expressions that do what ``Predictor`` does."""

from typing import Any

from lorkd_monailabel.exports.subject import Subject
from lorkd_monailabel.predictor import OVERLAP

# The canonical grid of ``volumes.canonical_grid``: the same field of view, its centre where it was. n voxels of s mm
# become m of t mm; a grid of no memory carries the new affine.
_GRID = (
    "$lambda x: (lambda n, s, t: (lambda m: monai.data.MetaTensor(torch.empty(1).expand(1, *map(int, m)), "
    "affine=x.affine.double().matmul(torch.from_numpy(np.vstack([np.column_stack([np.diag(t / s), "
    "(n - 1 - t / s * (m - 1)) / 2]), [0, 0, 0, 1]]))), meta={k: v for k, v in x.meta.items() if k != 'affine'}))"
    "(np.maximum(1, np.floor(n * s / t + 0.5))))"
    "(np.array(x.shape[1:], float), np.linalg.norm(np.asarray(x.affine, float)[:3, :3], axis=0), np.array(@spacing_mm, "
    "float))"
)
# Windows no longer than the image, as multiples of the stride; what is smaller is padded with its least value.
_INFERER = (
    "$lambda inputs, network, *args, **kwargs: monai.inferers.sliding_window_inference(inputs, "
    "[-(-min(w, n) // @stride) * @stride for w, n in zip(@window, inputs.shape[2:])], 1, network, overlap=@overlap, "
    "mode='gaussian', cval=float(inputs.min()), device=torch.device('cpu'))"
)


def inference_config(subject: Subject) -> dict[str, Any]:
    """Write the config for ``python -m monai.bundle run`` and for MONAI Label's bundle app."""
    image = {"keys": "image"}
    resample: list[dict[str, Any]] = [
        # under a key of its own, which the way back does not have, so that there is nothing to undo
        {"_target_": "CopyItemsd", **image, "names": "grid"},
        {"_target_": "Lambdad", "keys": "grid", "func": "@canonical_grid"},
        {
            "_target_": "ResampleToMatchd",
            **image,
            "key_dst": "grid",
            "mode": "bilinear",
            "padding_mode": "border",
            "align_corners": True,
        },
        {"_target_": "DeleteItemsd", "keys": "grid"},
    ]
    transforms = [
        {"_target_": "LoadImaged", **image, "image_only": True, "ensure_channel_first": True},
        {"_target_": "EnsureTyped", **image, "dtype": "$torch.float32"},
        {"_target_": "Orientationd", **image, "axcodes": "RAS", "labels": [["L", "R"], ["P", "A"], ["I", "S"]]},
        *(_normalise(subject, resample)),
    ]
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii') + glob.glob(@dataset_dir + '/*.nii.gz'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "spacing_mm": list(subject.expert.spacing_mm),
        "window": list(subject.window),
        "stride": subject.network.stride,
        "overlap": OVERLAP,
        "amp": False,
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device).eval()",
        "network": "$@network_def.to(@device)",
        "canonical_grid": _GRID,
        **_expressions(subject),
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False},
        "inferer": _INFERER,
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_dtype": "$np.uint16" if len(subject.expert.structures) > 255 else "$np.uint8",
                    "resample": False,
                    "separate_folder": False,
                },
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": "@amp",
        },
        "run": ["$@evaluator.run()"],
    }


def _normalise(subject: Subject, resample: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (modality,) = subject.modalities()
    image = {"keys": "image"}
    if subject.base.intensities == "sat":
        return [*resample, {"_target_": "Lambdad", **image, "func": "@normalise"}]
    if modality == "ct":
        ends = {"a_min": -500.0, "a_max": 1000.0, "b_min": -2.75, "b_max": 4.75}
        return [{"_target_": "ScaleIntensityRanged", **image, **ends, "clip": True}, *resample]
    return [
        {"_target_": "ClipIntensityPercentilesd", **image, "lower": 0.5, "upper": 99.5},
        {"_target_": "NormalizeIntensityd", **image},
        *resample,
    ]


def _expressions(subject: Subject) -> dict[str, str]:
    """SAT's intensities, which no stock transform makes: all statistics are of the box that SAT crops to."""
    if subject.base.intensities != "sat":
        return {}
    (modality,) = subject.modalities()
    limits = "(-500.0, 1000.0)" if modality == "ct" else "tuple(np.percentile(np.asarray(x), (0.5, 99.5)).tolist())"
    return {
        "reach": "$lambda found: slice(int(found.min()), int(found.max()) + 1) if len(found) else slice(None)",
        "box": "$lambda x: x[0][tuple(@reach((x[0] > 0).any(dim=b).any(dim=a).nonzero()) for a, b in "
        "((1, 2), (0, 2), (0, 1)))]",
        "limits": f"$lambda x: {limits}",
        "z_score": "$lambda x, y: (x - y.mean()) / (float(y.std(correction=0)) or 1.0)",
        "normalise": "$lambda x: (lambda y, low, high: @z_score(x.clip(low, high), y.clip(low, high)))"
        "(@box(x), *@limits(@box(x)))",
    }
