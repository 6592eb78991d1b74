"""What a lean installation lacks, and how to get it: the parts of boxwright that bring their own libraries."""

from importlib.util import find_spec

_PARTS = {
    "onnxruntime": "runtime",
    "av": "video",
    "fastapi": "serve",
    "httptools": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "prometheus_client": "serve",
}


def chief(missing: str | None) -> str | None:
    """Torch, where a verb misses one of the libraries that come with it and it is missing too; else what is missing."""
    beside = _part(missing) == "train" and find_spec("torch") is None
    return "torch" if beside else missing


def how_to_install(what: str, missing: str | None) -> str:
    """One line: what needs the missing module, and which part of boxwright brings it.

    Args:
        what: that cannot do without it, as the user calls it.
        missing: name of the module that was not found.
    """
    return (
        f"{what} needs {_module(missing)}, which is not installed: "
        f'python -m pip install "boxwright[{_part(missing)}]" brings it.'
    )


def _module(missing: str | None) -> str:
    return (missing or "?").split(".")[0]


def _part(missing: str | None) -> str:
    return _PARTS.get(_module(missing), "train")
