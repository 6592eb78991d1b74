"""PyTorch's checkpoints, which are pickles: only tensors and plain data are read, and no code is run."""

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

# Allowed besides tensors and Python's own types: the options of a run, and NumPy numbers.
ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype(np.float64)),
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
]
WRAPPERS = ("model", "state_dict")


class Stored(NamedTuple):
    """The tensors of a file by name, and the options of the training run, as far as the file has them."""

    tensors: dict[str, Tensor]
    options: Mapping[str, Any]


def read_pickle(file: Path) -> Stored:
    """The tensors of a PyTorch file, at its top or in one of `WRAPPERS`.

    Raises:
        UserError: if it holds more than data, is damaged, or has no tensors.
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
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols that torch doesn't know; errors are raised below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged pickle can lead to any
        needed = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if needed is None:
            raise UserError(f"{file} is no PyTorch checkpoint, or it is cut short or damaged.") from error
        what = f"{file} is a pickle that asks for {needed[1]}, which is neither a tensor nor plain data"
        raise UserError(f"{what}; that could run code, so it was not read.") from error


def _check_sums(file: Path) -> None:
    """Raise `UserError` unless the checksums of the archive are right, which torch does not check."""
    with zipfile.ZipFile(file) as content:
        damaged = content.testzip()
    require(damaged is None, f"{file} is damaged: the checksum of its part {damaged} is wrong; fetch it again.")
