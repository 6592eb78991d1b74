"""Weights by the name of a repository on the Hugging Face hub; asked for only where a user gives such a name.

Only safetensors files are fetched, into the hub's own cache, and each is compared with its SHA-256, by which the cache
files it. What the cache holds already needs no network, and none is used where HF_HUB_OFFLINE is set.
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

    ``hf://owner/name`` and ``hf://owner/name@revision`` always mean one. Without ``hf://`` the name must be free here:
    neither a file or folder of this name nor a folder ``owner``; nor is ``runs`` an owner, where runs are by default.
    """
    said = path.as_posix() if isinstance(path, Path) else path
    name = _NAME.fullmatch(said)
    if name is None:
        require(not said.startswith("hf:"), f"{said}: hf:// is followed by owner/name, or owner/name@revision.")
        return None
    owner = Path(name["repo"]).parts[0]
    local = Path(path).exists() or Path(owner).exists() or owner == "runs" or name["repo"].endswith(_FILES)
    return (name["repo"], name["revision"]) if name["hub"] or not local else None


def fetch(repo: str, revision: str | None = None) -> Path:
    """The folder in the hub's cache with the safetensors files of a repository, downloaded where it lacks them.

    Raises:
        UserError: if there is no such repository or revision, it has no such file, it can't be reached, or a file is
            not what its checksum says.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    said = f"{repo}{f'@{revision}' if revision else ''}"
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=["*.safetensors"]))
    except HFValidationError as error:
        raise UserError(f"{said} is no name of a hub repository: {' '.join(str(error).split())}") from error
    except HfHubHTTPError as error:
        raise UserError(_refused(said, error)) from error
    except OSError as error:  # offline, or no network, and not in the cache
        raise UserError(_missing(repo, revision)) from error
    files = sorted(folder.glob("*.safetensors"))
    require(files, f"{said} has no .safetensors file at its top; boxwright reads no other weights from the hub.")
    for file in files:
        _verify(file, said)
    return folder


def _refused(said: str, error: Exception) -> str:
    """What the hub's answer means."""
    kind = type(error).__name__
    if kind == "RevisionNotFoundError":
        return f"the hub's repository of {said} has no such revision; leave out what follows the @ for the newest."
    if kind in ("RepositoryNotFoundError", "GatedRepoError", "DisabledRepoError"):
        return f"{said} is no file or folder here and no repository on the hub, or a closed one (see `hf auth login`)."
    return f"{said} can't be fetched from the hub ({' '.join(str(error).split())[:160]}); try again later."


def _missing(repo: str, revision: str | None) -> str:
    """What to do without a network."""
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the hub can't be reached"
    command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
    return (
        f"{repo} is no file or folder here, it is not in the hub's cache ({HF_HUB_CACHE}), and {why}; where there is a "
        f"network, `{command} --local-dir FOLDER` fetches it: copy the folder here and give its path."
    )


def _verify(file: Path, said: str) -> None:
    """Compare a file with its SHA-256, which is the name under which the cache keeps it.

    Raises:
        UserError: if they differ.
    """
    stored = file.resolve()
    if _SHA256.fullmatch(stored.name):
        with stored.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        mend = f"remove {os.path.relpath(stored)} and fetch it again"
        require(found == stored.name, f"{file.name} of {said} is damaged (SHA-256 {found[:12]} ...); {mend}.")
