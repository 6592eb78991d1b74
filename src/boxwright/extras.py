"""What a lean installation lacks, and how to get it: the parts of boxwright that bring their own libraries."""

_PARTS = {
    "onnxruntime": "runtime",
    "av": "video",
    "fastapi": "serve",
    "httptools": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "prometheus_client": "serve",
}


def how_to_install(what: str, missing: str | None) -> str:
    """One line: what needs the missing module, and which part of boxwright brings it.

    Args:
        what: that cannot do without it, as the user calls it.
        missing: name of the module that was not found.
    """
    module = (missing or "?").split(".")[0]
    part = _PARTS.get(module, "train")
    return f'{what} needs {module}, which is not installed: python -m pip install "boxwright[{part}]" brings it.'
