"""Measure what a request by text costs over the bare forward passes of its windows, and what a new department adds.

    python -m train.bench.overhead IMAGE [--text "liver; spleen; left kidney"] [--voxels 33e6] [--output FOLDER]

A request reads the image, segments and writes the label map. A server has the image at hand where it was asked about
it before, or where a client was given it, or sent it: then it was read ahead. The forward passes take its windows as a
request does, several at once and side by side; next to them stands what they take with each layer on all cores, and
one after the other. A first request finds its department not fused yet, in a process that has served another. --voxels
enlarges the image first, for there are larger ones in hospitals. The process is tuned as the server's is.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorkd_monailabel.commands.options import store_folder
from lorkd_monailabel.cores import spread
from lorkd_monailabel.devices import has_fast_bf16
from lorkd_monailabel.label_maps import write_label_map
from lorkd_monailabel.masks import masks_of, that_show_something
from lorkd_monailabel.memory import announced
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.process import tune
from lorkd_monailabel.prompts import Target, resolve
from lorkd_monailabel.resampling import resample
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.last_volume import LastVolume
from lorkd_monailabel.volume_files import VolumeFile, read_volume_file, write_nifti
from lorkd_monailabel.volumes import Grid, Volume, canonical_grid, canonical_image, read_volume
from train.bench.command import add_options, apply
from train.bench.report import write_report
from train.bench.timing import Way, measure

TEXT = "liver; spleen; left kidney"
FLOOR = "forward passes"
TOGETHER = "each layer on all cores"
SINGLY = "window after window"
QUICK_VOXELS = 20_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.bench.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a CT that shows what the text names")
    parser.add_argument("--text", default=TEXT, help=f"structures of one department (default: {TEXT})")
    parser.add_argument("--store", type=Path, help="of experts (default: the one of this package)")
    parser.add_argument("--voxels", type=float, default=0, help="enlarge the image to about as many")
    add_options(parser, rounds=5)
    options = parser.parse_args(argv)
    try:
        tune()
        apply(options)
        targets, refused = resolve(options.text)
        departments = {target.structure.department for target in targets}
        if refused or len(departments) != 1:
            raise ValueError(f"{options.text!r} must name structures of one department; try {TEXT!r}")
        store = ExpertStore(store_folder(options.store))
        voxels = QUICK_VOXELS if options.quick else int(options.voxels)
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "image.nii.gz"
            case = resized(options.image, image, voxels)
            ways = ways_of(image, targets, store, device=options.device, rounds=options.rounds)
            results = measure(case, "time", ways, floor=FLOOR, rounds=options.rounds, device=options.device)
        print(f"\n## overhead\n\n{write_report(results, options.output, 'overhead', device=options.device)}")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def resized(path: Path, out: Path, voxels: int) -> str:
    """Write an image as .nii.gz with about so many voxels, 0 for as many as it has, and say how many they are.

    Raises:
        ValueError: it can't be read.
    """
    file = read_volume_file(path)
    if voxels:
        x, y, z = file.array.shape
        grid = Grid((x, y, z), file.affine)
        spacing_mm = np.asarray(grid.spacing_mm) * (file.array.size / voxels) ** (1 / 3)
        finer = canonical_grid(grid, (float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2])))
        array = resample(torch.from_numpy(file.array.astype(np.float32))[None], grid, finer, "linear")[0].numpy()
        noise = np.random.default_rng(0).normal(0, 10, array.shape)  # else it would pack like no scan
        file = VolumeFile(np.rint(array + noise).astype(np.float32), finer.affine, file.modality)
    write_nifti(file, out)
    return f"{file.array.size / 1e6:.1f} megavoxels"


def ways_of(image: Path, targets: Sequence[Target], store: ExpertStore, *, device: str, rounds: int) -> list[Way]:
    """Give the forward passes in three ways, the request, that of an image at hand, and the first of a department."""
    warm, output = Predictor(store, device=device), image.with_name("label.nii.gz")
    own = targets[0].structure.department
    others = [name for name in store.departments() if name != own]

    def request(predictor: Predictor, volume: Volume) -> None:
        write_label_map(predictor.segment(volume, targets).label_map, output)

    last = LastVolume()

    def at_hand() -> Volume:
        return last.read(image, "auto", lambda: warm.check_memory(announced(image), targets))

    def ready() -> Predictor:
        predictor = Predictor(store, device=device)
        predictor.fused(others[0])
        return predictor

    windows = windows_of(image, targets, warm)
    single = [window for several in windows for window in several.split(1)]
    ways = [
        Way(FLOOR, passes(windows, targets, warm, spread)),
        Way(TOGETHER, passes(windows, targets, warm)),
        Way(SINGLY, passes(single, targets, warm)),
        Way("request", lambda: request(warm, read_volume(image))),
        Way("image at hand", lambda: request(warm, at_hand())),
    ]
    if others:
        fresh = [ready() for _ in range(rounds + 1)]  # one more for the round that warms up
        ways.append(Way("first request of a department", lambda: request(fresh.pop(), read_volume(image))))
    return ways


def windows_of(image: Path, targets: Sequence[Target], predictor: Predictor) -> list[Tensor]:
    """Give the windows (B, 1, X, Y, Z) of a request that show something, as its network gets them."""
    volume, fused = read_volume(image), predictor.fused(targets[0].structure.department)
    seen, _ = canonical_image(volume, fused.spacing_mm, fused.intensities, device=str(predictor.device))
    windows: list[Tensor] = []

    def kept(given: Tensor) -> Tensor:
        shown = that_show_something(given)
        if shown.any():
            windows.append(given[shown].to(predictor.device, memory_format=torch.channels_last_3d))
        return torch.zeros(len(given), len(targets), *given.shape[2:])

    masks_of(
        seen,
        lambda device: kept,
        device=predictor.device,
        window=fused.window,
        stride=fused.network.stride,
        overlap=predictor.overlap,
        progress=lambda done, total: True,
    )
    return windows


def passes(
    windows: Sequence[Tensor],
    targets: Sequence[Target],
    predictor: Predictor,
    through: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = lambda network, windows: network(windows),
) -> Callable[[], None]:
    """Give what computes windows and nothing else, through what calls the network with each batch of them."""
    fused, fast = predictor.fused(targets[0].structure.department), has_fast_bf16(predictor.device)
    queries = fused.queries.queries([target.structure.name for target in targets], "ct").to(predictor.device)

    def network(given: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(predictor.device.type, torch.bfloat16, enabled=fast):
            return fused.network(given, queries)

    def run() -> None:
        for window in windows:
            through(network, window)

    return run


if __name__ == "__main__":
    raise SystemExit(main())
