"""A MONAI Bundle as a teacher: a folder or a zip with ``configs/`` and ``models/``.

A bundle's config can run any code, by expressions (``$``) and by the classes that it names (``_target_``). So none of
it is handed to ``monai.bundle.ConfigParser``: it is read as data. The network is ``models/model.ts``, a TorchScript
(which runs the graph that it contains, see ``program``), or ``models/model.pt`` with a ``network_def`` that names a
network of ``monai.networks.nets`` with plain numbers, texts and lists. Expressions elsewhere are left alone.

What the network expects and gives is taken from ``configs/metadata.json`` (channels, modality, value range) and from
plain values in ``configs/inference.json`` or ``.yaml`` (``ScaleIntensityRanged``, ``NormalizeIntensityd``,
``Spacingd``, ``Activationsd``). What they leave open, or have wrong, a JSON file beside the bundle says; see
``channels``.
"""

import inspect
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorkd_monailabel.teachers.archives import archive_entries
from lorkd_monailabel.teachers.bundle_settings import settings_of
from lorkd_monailabel.teachers.channels import ChannelTeacher, channels_of
from lorkd_monailabel.teachers.program import MOST_JSON_BYTES, json_beside, load_program, read_json
from lorkd_monailabel.torch_files import read_checkpoint

METADATA = "configs/metadata.json"
CONFIGS = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
SCRIPT = "models/model.ts"
WEIGHTS = "models/model.pt"
_WAY_OUT = "export the network as TorchScript to models/model.ts"
_NOTES = ("_desc_", "_disabled_")
LARGEST = 65_536


class BundleTeacher(ChannelTeacher):
    """A MONAI Bundle.

    Args:
        path: of its folder or zip.
        intensities: that the students see.

    Raises:
        ValueError: it is no bundle, it is hostile or damaged, or does not say what it expects and gives.
    """

    def __init__(self, path: Path, *, intensities: str = "fixed") -> None:
        if path.is_dir():
            self._open(path, path, intensities)
        else:
            with tempfile.TemporaryDirectory() as folder:
                self._open(path, unpacked(path, Path(folder)), intensities)

    def _open(self, path: Path, folder: Path, intensities: str) -> None:
        metadata, config = read_json(_inside(folder, METADATA, path)), read_config(folder, path)
        beside = json_beside(path)
        told = settings_of(metadata, config) | (read_json(beside) if beside.is_file() else {})
        channels = channels_of(told, f"{path} (or {beside.name} beside it)")
        script = folder / SCRIPT
        network = load_program(script) if script.is_file() else build_network(folder, config, path)
        super().__init__(network, channels, name=str(path), intensities=intensities)


def unpacked(path: Path, folder: Path) -> Path:
    """Unpack the files of a bundle that are read, and no others, from a zip with or without a folder at its top.

    Raises:
        ValueError: see ``archive_entries``; or it holds no bundle.
    """
    names = [entry.filename for entry in archive_entries(path)]
    root = next((name.removesuffix(METADATA) for name in names if name.endswith(METADATA)), None)
    if root is None or root.count("/") > 1:
        raise ValueError(f"{path} is no MONAI Bundle, for it has no {METADATA}; zip the folder of a bundle")
    with zipfile.ZipFile(path) as archive:
        for name in (METADATA, *CONFIGS, SCRIPT, WEIGHTS):
            if root + name in names:
                target = folder / name
                target.parent.mkdir(exist_ok=True)
                try:
                    with archive.open(root + name) as source, target.open("wb") as file:
                        while chunk := source.read(1 << 20):
                            file.write(chunk)
                except (zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
                    raise ValueError(f"{name} in {path} can't be unpacked ({error}); zip the bundle anew") from error
    return folder


def read_config(folder: Path, path: Path) -> dict[str, Any]:
    """Read the inference config as data; empty where there is none.

    Raises:
        ValueError: it can't be read.
    """
    file = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if file is None:
        return {}
    if file.suffix == ".json":
        return read_json(_inside(folder, str(file.relative_to(folder)), path))
    try:
        yaml: Any = import_module("yaml")
    except ImportError as error:
        raise ValueError(f"{path} has a config in YAML; install pyyaml, or write it as {CONFIGS[0]}") from error
    try:
        if file.stat().st_size > MOST_JSON_BYTES:
            raise ValueError(f"it has more than {MOST_JSON_BYTES:,} bytes")
        record = yaml.load(file.read_text(encoding="utf-8"), Loader=_plain_loader(yaml))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file.name} of {path} can't be read ({str(error).splitlines()[0]}); mend it") from error
    return record if isinstance(record, dict) else {}


def _plain_loader(yaml: Any) -> Any:
    class PlainLoader(yaml.SafeLoader):
        """Plain values without aliases, by which a small file can be a tree of any size."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has aliases")
            return super().compose_node(parent, index)

    return PlainLoader


def build_network(folder: Path, config: Mapping[str, Any], path: Path) -> nn.Module:
    """Build the network of ``network_def`` with the weights of ``models/model.pt``.

    Raises:
        ValueError: the definition is more than plain values, or weights and network differ.
    """
    definition = config.get("network_def")
    if not isinstance(definition, dict):
        raise ValueError(f"{path} has neither {SCRIPT} nor a network_def in its inference config; {_WAY_OUT}")
    for key, value in _leaves(definition, "network_def"):
        if isinstance(value, str) and value[:1] in ("$", "@", "%"):
            raise ValueError(f"{key} of {path} is {value[:60]!r}, which would have to be run; {_WAY_OUT}")
        if key.rpartition("::")[2].startswith("_") and key not in ("network_def::_target_", *_allowed_notes()):
            raise ValueError(f"{key} of {path} would build more than the network itself; {_WAY_OUT}")
        if key.rpartition("::")[2].startswith("pretrained") and value:
            raise ValueError(f"{key} of {path} would fetch weights from elsewhere; remove it, or {_WAY_OUT}")
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise ValueError(f"{key} of {path} is {value}, above {LARGEST}; {_WAY_OUT}")
    state = _state(folder, path)
    network = _built(definition, state, path)
    known = network.state_dict()
    for name in (*known, *state):
        if name not in state or name not in known or known[name].shape != state[name].shape:
            raise ValueError(f"{name} of {WEIGHTS} in {path} does not fit its network_def; {_WAY_OUT}")
    network.load_state_dict(state)
    return network.requires_grad_(False).eval()


def _built(definition: Mapping[str, Any], state: Mapping[str, torch.Tensor], path: Path) -> nn.Module:
    from monai.networks import nets

    target = definition.get("_target_")
    name = str(target).removeprefix("monai.networks.nets.")
    found = getattr(nets, name, None) if name.isidentifier() and not name.startswith("_") else None
    if not (inspect.isclass(found) and issubclass(found, nn.Module) and found.__module__.startswith(nets.__name__)):
        raise ValueError(f"network_def::_target_ of {path} is {target!r}, no class of {nets.__name__}; {_WAY_OUT}")
    arguments = {str(key): value for key, value in definition.items() if not str(key).startswith("_")}
    weights = sum(tensor.numel() for tensor in state.values())
    try:
        try:  # without memory first: numbers of a config must not make us take more than its weights need
            with torch.device("meta"):
                size = sum(tensor.numel() for tensor in found(**arguments).state_dict().values())
        except RuntimeError:  # some read a number of a tensor while they are built
            size = weights
        if size != weights:
            raise ValueError(f"it has {size:,} numbers, {WEIGHTS} has {weights:,}")
        return found(**arguments)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, ArithmeticError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(f"network_def of {path} makes no {name} of {WEIGHTS} ({first}); {_WAY_OUT}") from error


def _state(folder: Path, path: Path) -> dict[str, torch.Tensor]:
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{path} has neither {SCRIPT} nor {WEIGHTS}; give a whole bundle")
    content: Any = read_checkpoint(folder / WEIGHTS)
    for key in ("model", "state_dict"):  # as CheckpointSaver and others wrap it
        content = content[key] if isinstance(content.get(key), dict) else content
    odd = next((str(name) for name, tensor in content.items() if not isinstance(tensor, torch.Tensor)), None)
    if odd is not None or not content:
        raise ValueError(f"{WEIGHTS} in {path} is no state dict ({odd!r} is no tensor); {_WAY_OUT}")
    return dict(content)


def _inside(folder: Path, name: str, path: Path) -> Path:
    file = folder / name
    if not file.is_file():
        raise ValueError(f"{path} is no MONAI Bundle, for it has no {name}; give the folder or zip of a bundle")
    return file


def _allowed_notes() -> Iterator[str]:
    return (f"network_def::{name}" for name in _NOTES)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}::{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{key}::{number}")
    else:
        yield key, value
