"""Weights from a repository on the Hugging Face hub; the network is used only where a user names one.

Only safetensors files are downloaded, into the hub's own cache, and each is checked against its SHA-256, which is its
name in that cache. Files in the cache need no network, and none is used where HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from boxwright.config import UserError, require

_NAME = re.compile(r"(?P<hub>hf:/{1,2})?(?P<repo>\w[\w.-]*/\w[\w.-]*?)(@(?P<revision>\w[\w.-]*))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILES = (".safetensors", ".pth", ".pt", ".bin", ".index", ".onnx", ".yaml", ".json")


def repository(path: Path | str) -> tuple[str, str | None] | None:
    """(``owner/name``, revision) if a hub repository is meant, else None.

    ``hf://owner/name`` and ``hf://owner/name@revision`` always mean one. Without ``hf://`` they do unless there is a
    file or folder of this name, or a folder ``owner``, or the owner is ``runs``, the default folder of training runs.
    """
    text = path.as_posix() if isinstance(path, Path) else path
    name = _NAME.fullmatch(text)
    if name is None:
        require(not text.startswith("hf:"), f"{text}: hf:// is followed by owner/name, or owner/name@revision.")
        return None
    owner = Path(name["repo"]).parts[0]
    local = Path(path).exists() or Path(owner).exists() or owner == "runs" or name["repo"].endswith(_FILES)
    return (name["repo"], name["revision"]) if name["hub"] or not local else None


def fetch(repo: str, revision: str | None = None) -> Path:
    """The folder in the hub's cache with the safetensors files of a repository, downloaded if they are not there.

    Raises:
        UserError: if there is no such repository or revision, it has no such file, it can't be reached, or a file does
            not have its checksum.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name = f"{repo}{f'@{revision}' if revision else ''}"
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=["*.safetensors"]))
    except HFValidationError as error:
        raise UserError(f"{name} is no name of a hub repository: {' '.join(str(error).split())}") from error
    except HfHubHTTPError as error:
        raise UserError(_why_refused(name, error)) from error
    except OSError as error:  # offline, or no network, and not in the cache
        raise UserError(_how_to_download(repo, revision)) from error
    files = sorted(folder.glob("*.safetensors"))
    require(files, f"{name} has no .safetensors file at its top; boxwright reads no other weights from the hub.")
    for file in files:
        _verify(file, name)
    return folder


def _why_refused(name: str, error: Exception) -> str:
    """The error message for a hub error."""
    kind = type(error).__name__
    if kind == "RevisionNotFoundError":
        return f"the hub's repository of {name} has no such revision; leave out what follows the @ for the newest."
    if kind in ("RepositoryNotFoundError", "GatedRepoError", "DisabledRepoError"):
        return f"{name} is no file or folder here and no repository on the hub, or a closed one (see `hf auth login`)."
    return f"{name} can't be fetched from the hub ({' '.join(str(error).split())[:160]}); try again later."


def _how_to_download(repo: str, revision: str | None) -> str:
    """The error message where there is no network and the cache has no such repository."""
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the hub can't be reached"
    command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
    return (
        f"{repo} is no file or folder here, it is not in the hub's cache ({HF_HUB_CACHE}), and {why}; where there is a "
        f"network, `{command} --local-dir FOLDER` fetches it: copy the folder here and give its path."
    )


def _verify(file: Path, name: str) -> None:
    """Raise `UserError` unless a file has the SHA-256 that is its name in the cache."""
    stored = file.resolve()
    if _SHA256.fullmatch(stored.name):
        with stored.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        fix = f"remove {os.path.relpath(stored)} and fetch it again"
        require(found == stored.name, f"{file.name} of {name} is damaged (SHA-256 {found[:12]} ...); {fix}.")
