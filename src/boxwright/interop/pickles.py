"""PyTorch's checkpoints, which are pickles: only tensors and plain data are read, and no code is ever run."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from boxwright.config import UserError, require

# Besides tensors and what Python is made of: the options of a run, and a measured number. Both are data.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype(np.float64)),
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
]
WRAPPERS = ("model", "state_dict")


class Stored(NamedTuple):
    """The tensors of a file by name, and the options of the run that made them, as far as the file says them."""

    tensors: dict[str, Tensor]
    options: Mapping[str, Any]


def read_pickle(file: Path) -> Stored:
    """The state that a PyTorch file holds, bare or in one of the usual wrappers.

    Raises:
        UserError: if it holds more than data, is cut short, or is none.
    """
    content = _load(file)
    content = content if isinstance(content, Mapping) else {}
    state = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    require(tensors, f"{file} holds no tensors by name, bare or under 'model' or 'state_dict'.")
    options = content.get("args")
    known = vars(options) if isinstance(options, argparse.Namespace) else {}
    return Stored({name.removeprefix("module."): value for name, value in tensors.items()}, known)


def _load(file: Path) -> Any:
    try:
        zipped = zipfile.is_zipfile(file)
        if zipped:
            _check_sums(file)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols that torch doesn't know; what comes of it is said below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}.") from error
    except Exception as error:  # whatever a damaged pickle leads to
        asked = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if asked is None:
            raise UserError(f"{file} is no PyTorch checkpoint, or it is cut short or damaged.") from error
        said = f"{file} is a pickle that asks for {asked[1]}, which is neither a tensor nor plain data"
        raise UserError(f"{said}; that could run code, so it was not read.") from error


def _check_sums(file: Path) -> None:
    """That the bytes are those that were written, which torch does not ask."""
    with zipfile.ZipFile(file) as content:
        damaged = content.testzip()
    require(damaged is None, f"{file} is damaged: the checksum of its part {damaged} is wrong; fetch it again.")
