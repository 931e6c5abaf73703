"""The weight files of a checkpoint in the reference's layout: safetensors or pickles, whole or in shards, and side files."""

import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.files import read_json


class ReferenceFiles:
    """The weight files of a reference directory: names, shapes and dtypes at once, values one tensor at a time.

    shapes: name -> shape. dtypes: name -> torch dtype, None for what is no floating-point tensor.
    """

    def __init__(self, directory: Path):
        if not directory.is_dir():
            raise ConfigError(f"{directory} is not a directory")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype | None] = {}
        self._names: dict[Path, list[str]] = {}
        for path in _main_files(directory):
            self._register(path, prefix="")
        for name, prefix in (
            ("audio_tower.bin", "model.audio_tower."),
            ("mm_projector_a.bin", "model.mm_projector_a."),
        ):
            if (directory / name).is_file() and not any(known.startswith(prefix) for known in self.shapes):
                self._register(directory / name, prefix)

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors, file by file."""
        wanted = set(names)
        for path, known in self._names.items():
            with _opened(path) as file:
                for name in known:
                    if name in wanted:
                        yield name, file.get_tensor(name)

    def _register(self, path: Path, prefix: str) -> None:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - safe_open files cannot be iterated
                if name.startswith(prefix):
                    self.shapes[name], self.dtypes[name] = _shape_and_dtype(file, name)
                    self._names.setdefault(path, []).append(name)


def _main_files(directory: Path) -> list[Path]:
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index, single = directory / f"{stem}.index.json", directory / stem
        if index.is_file():
            try:
                names = sorted(set(read_json(index)["weight_map"].values()))
            except (DataError, KeyError, TypeError) as error:
                raise ConfigError(f"{index} is not an index of weight files") from error
            absent = [name for name in names if not (directory / name).is_file()]
            if absent:
                raise ConfigError(f"{directory}: weight files named in {index.name} are missing: {', '.join(absent)}")
            return [directory / name for name in names]
        if single.is_file():
            return [single]
    raise ConfigError(f"{directory} holds no weights (model.safetensors or pytorch_model.bin, whole or with an index)")


class _PickleFile:
    """A pickle of tensors with the part of `safe_open`'s interface that is used here; memory-mapped where possible."""

    def __init__(self, path: Path):
        try:
            self._state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files from before torch 1.6 are no zip archives and cannot be mapped
            self._state = torch.load(path, map_location="cpu", weights_only=True)
        other = [
            name
            for name, value in (self._state.items() if isinstance(self._state, dict) else [("", None)])
            if not isinstance(value, torch.Tensor)
        ]
        if other:
            raise ConfigError(f"{path} holds no plain list of tensors: {other[0]!r} is something else")

    def __enter__(self) -> "_PickleFile":
        return self

    def __exit__(self, *_) -> None:
        self._state = {}

    def keys(self) -> Iterable[str]:
        return self._state.keys()

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._state[name]


def _opened(path: Path):
    """A weight file open for reading, as a context manager with `keys` and `get_tensor`."""
    try:
        return safe_open(path, framework="pt") if path.suffix == ".safetensors" else _PickleFile(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read as weights: {error}. Download or copy it again") from error


def _shape_and_dtype(file, name: str) -> tuple[tuple[int, ...], torch.dtype | None]:
    """The dtype is None for whole numbers and quantised values, which are no weights."""
    if isinstance(file, _PickleFile):
        tensor = file.get_tensor(name)
        return tuple(tensor.shape), tensor.dtype if tensor.dtype.is_floating_point else None
    header = file.get_slice(name)
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    return tuple(header.get_shape()), dtypes.get(header.get_dtype())
