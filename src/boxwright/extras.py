"""Optional dependencies: which extra of boxwright brings a missing module.

In an installation, ``pip install "boxwright[EXTRA]"`` adds an extra from any folder; the documentation installs from a
clone, ``pip install ".[EXTRA]"``.
"""

from importlib.util import find_spec

_PARTS = {
    "av": "video",
    "fastapi": "serve",
    "httptools": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "prometheus_client": "serve",
    "fsspec": "shards",
    "s3fs": "shards",
    "pyarrow": "parquet",
    "ray": "ray",
}


def root_missing(missing: str | None) -> str | None:
    """The module to report: torch where it is missing as well as a module that the same part brings, else `missing`."""
    return "torch" if _part(missing) == "train" and find_spec("torch") is None else missing


def how_to_install(what: str, missing: str | None) -> str:
    """One line: what needs the missing module, and the command that installs it.

    Args:
        what: a verb, function or file, as the user calls it.
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
