"""Loads the artifact for PyLO's weight arguments: a Hub key, a local file or a module."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from pylo_zoo import formats, limits, registry
from pylo_zoo.artifact import CONFIG, Artifact
from pylo_zoo.convert import convert
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import fetch, is_uri
from pylo_zoo.files import open_regular
from pylo_zoo.weights import load

MODEL = "model.safetensors"
"""The weights file in PyLO's repositories."""
OFFSETS = ("momentum_decays", "rms_decays", "adafactor_decays")
"""Names of AdafacMLP's learned decay offsets (SPEC §3)."""

Key = str | Path | Artifact | None
Settings = Mapping[str, Any] | None


def load_network(
    family: str,
    hf_key: Key,
    checkpoint_path: str | Path | None = None,
    network: Any = None,
    settings: Settings = None,
) -> Artifact:
    """The artifact for PyLO's three arguments: ``network`` overrides ``checkpoint_path``, which overrides ``hf_key``.

    Args:
        family: the family that files are converted to.
        hf_key: a Hub repository; here also a registry name, an artifact or its directory, or a checkpoint's file,
            directory or address.
        checkpoint_path: a file, such as PyLO's ``.pt``.
        network: one of PyLO's modules, whose weights are copied, or an artifact.
        settings: settings that PyLO's files do not contain (:func:`pylo_zoo.convert.convert`).

    Raises:
        ZooError: all three are None, or the file is unavailable or not a network of the family.
    """
    if network is not None:
        return _from_network(family, network, settings)
    if checkpoint_path is not None:
        return _from_file(family, Path(checkpoint_path), settings)
    if hf_key is None:
        raise ZooError(
            "No weights: hf_key, checkpoint_path and network are None; PyLO would use a random network.",
            "Pass one of them; hf_key accepts names from `pylo-zoo list`.",
        )
    return _from_key(family, hf_key, settings)


def load_velo(hf_key_rnn: Key, hf_key_mlp: Key) -> Artifact:
    """The artifact of VeLO's two halves.

    Args:
        hf_key_rnn: a repository, file or directory of the LSTM. If both keys are equal, any ``hf_key`` of
            :func:`load_network` that contains both halves.
        hf_key_mlp: the same for the MLPs.

    Raises:
        ZooError: a half is unavailable or does not belong to VeLO.
    """
    if hf_key_rnn is None or hf_key_mlp is None:
        raise ZooError("No weights: hf_key_rnn or hf_key_mlp is None.", "Pass both, or neither.")
    if hf_key_rnn == hf_key_mlp:
        return _from_key("velo", hf_key_rnn, None)
    if entry := _registry_name([hf_key_rnn, hf_key_mlp]):
        return load(entry)
    files = [_half(hf_key_rnn), _half(hf_key_mlp)]
    with TemporaryDirectory() as directory:
        both = Path(directory) / "VeLO"
        for half, file in zip(("VeLO_RNN", "VeLO_MLP"), files, strict=True):
            (both / half).mkdir(parents=True)
            shutil.copyfile(file, both / half / file.name)
        return convert("velo", source=both)


def load_meta_training(path: str | Path) -> Artifact:
    """The network and learned offsets in a file of PyLO's meta-training, ``{"state_dict": …, "decays": …}``.

    The file is read with ``torch.load(…, weights_only=True)``.

    Raises:
        ZooError: the file cannot be read or has another structure.
    """
    try:
        with open_regular(Path(path)) as file:
            if (size := os.fstat(file.fileno()).st_size) > (limit := limits.max_bytes()):
                raise ZooError(f"{path} is larger than {limit:,} bytes: it has {size:,}.", limits.RAISE)
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        state_dict = {str(name): torch.as_tensor(value) for name, value in loaded["state_dict"].items()}
        offsets = {name: torch.as_tensor(loaded["decays"][name]).flatten().tolist() for name in OFFSETS}
    except OSError as error:
        raise ZooError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    except (EOFError, pickle.UnpicklingError, RuntimeError, AttributeError, LookupError, TypeError) as error:
        raise ZooError(
            f"{path} is not a saved network with its decays ({type(error).__name__}).",
            'Pass a torch.save file of {"state_dict": …, "decays": …}; use hf_key for other files.',
        ) from error
    return _from_tensors("mulo", state_dict, offsets)


def _from_key(family: str, key: Key, settings: Settings) -> Artifact:
    if isinstance(key, Artifact):
        return key
    text = str(key)
    if Path(text).exists():
        return _from_file(family, Path(text), settings)
    if is_uri(text):
        return convert(family, source=text, settings=settings)
    if "/" not in text:
        return load(text)
    if entry := _registry_name([text]):
        return load(entry)
    return convert(family, source=f"hf://{text}/{MODEL}", settings=settings)


def _from_file(family: str, path: Path, settings: Settings) -> Artifact:
    config = path / CONFIG
    if config.is_file() and b'"format_version"' in config.read_bytes():  # PyLO's repositories have a config.json too
        return load(path)
    is_pylo = settings is not None and formats.read(path).naming == "pylo"
    return convert(family, source=path, settings=settings if is_pylo else None)


def _from_network(family: str, network: Any, settings: Settings) -> Artifact:
    if isinstance(network, Artifact):
        return network
    if not isinstance(network, nn.Module):
        raise ZooError(
            f"network is a {type(network).__name__}.", "Pass one of PyLO's modules or an artifact from pylo_zoo.load."
        )
    all_settings = dict(settings or {})
    if (activation := getattr(network, "activation", "relu")) != "relu":
        all_settings["mlp_activation"] = activation
    return _from_tensors(family, network.state_dict(), all_settings)


def _from_tensors(family: str, tensors: Mapping[str, Tensor], settings: Settings) -> Artifact:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "network.pt"
        torch.save({name: value.detach().cpu() for name, value in tensors.items()}, path)
        return convert(family, source=path, settings=settings)


def _registry_name(keys: Sequence[Any]) -> str | None:
    """The registry name of the checkpoint with one file in each of these Hub repositories."""
    for entry in registry.load_registry().values():
        uris = [source.uri for source in entry.sources]
        if len(uris) == len(keys) and all(uri.startswith(f"hf://{key}/") for uri, key in zip(uris, keys, strict=True)):
            return entry.name
    return None


def _half(key: Key) -> Path:
    """The file of one half of VeLO."""
    if isinstance(key, Artifact) or ("/" not in str(key) and not Path(str(key)).exists()):
        name = key.name if isinstance(key, Artifact) else key
        raise ZooError(f"{name!r} is a whole VeLO, not one of its halves.", "Pass it as hf_key_rnn and as hf_key_mlp.")
    path = Path(str(key))
    if path.is_dir():
        if not (path / MODEL).is_file():
            raise ZooError(f"{path} contains no {MODEL}.", "Pass that half's file.")
        return path / MODEL
    if path.is_file():
        return path
    return fetch(str(key) if is_uri(str(key)) else f"hf://{key}/{MODEL}")
