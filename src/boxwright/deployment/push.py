"""The command `push`: a detector and its model card become a repository on the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from boxwright.checkpoints.detector_file import is_adapter, read_config
from boxwright.checkpoints.header import read_header
from boxwright.checkpoints.hub import repository
from boxwright.checkpoints.locate import find_weights
from boxwright.config import UserError, require
from boxwright.console import make_console
from boxwright.images import open_image
from boxwright.thresholds import Thresholds

WEIGHTS, PICTURE = "model.safetensors", "example.jpg"
_SIDE = 1280  # pixels of the picture, at most


def push(
    weights: Path | str, name: str, public: bool = False, image: Path | None = None, licence: str | None = None
) -> str:
    """Upload a detector to the Hugging Face hub, with a model card; `boxwright.load("owner/name")` loads it again.

    The card is made of what the weights hold: data, settings, scores, classes, thresholds. The token is that of `hf
    auth login`, or of the environment variable HF_TOKEN. A repository that is there gets a new revision.

    Args:
        weights: a checkpoint, or the folder of a run.
        name: of the repository, as owner/name.
        public: everybody may see it; by default only its owner. A repository that is there stays as it is.
        image: a picture to show in the card, with the objects that the detector finds in it.
        licence: of the weights, as apache-2.0; by default that of the card, or none.

    Returns:
        The URL of the repository.
    """
    parsed = repository(f"hf://{name}")
    wrong = f"{name} is no name of a repository: give owner/name, as in my-name/cells"
    require(parsed is not None and parsed[1] is None, f"{wrong}, without a revision.")
    file = find_weights(Path(weights))
    fix = f"merge it with its base first: boxwright.merge({str(weights)!r}, 'merged.safetensors')"
    require(not is_adapter(file), f"{weights} is an adapter, which needs its base; {fix}.")
    with TemporaryDirectory() as folder:
        staged = Path(folder)
        shutil.copyfile(file, staged / WEIGHTS)
        if image is not None:
            _draw(file, image).save(staged / PICTURE, quality=90)
        (staged / "README.md").write_text(model_card(file, name, image is not None, licence), encoding="utf-8")
        url = _upload(staged, name, public)
    make_console().print(f"{url}\nload it: boxwright.load({name!r})")
    return url


def model_card(file: Path, name: str, has_picture: bool, licence: str | None = None) -> str:
    """The README.md of a repository: facts for the hub, then the model card in words.

    Args:
        file: the checkpoint.
        name: of the repository.
        has_picture: `PICTURE` lies beside it.
        licence: instead of that of the card.
    """
    header = read_header(file)
    card, classes = json.loads(header["card"]), json.loads(header["names"])
    model, config = read_config(file)
    licence = licence or card.get("licence")
    facts = ["library_name: boxwright", "pipeline_tag: object-detection", f"tags: [object-detection, {model}]"]
    facts += [f"license: {licence.lower()}"] if licence else []
    rows = {
        "network": f"`{model}`, backbone {config.backbone}, {config.image_size} px",
        "classes": ", ".join(classes),
        "trained on": card.get("trained on", "not stated"),
        "began from": card.get("began from", "not stated"),
        "taught by": card.get("taught by"),
        "epochs": card.get("epoch"),
        "AP, AP50 in validation": _pair(card.get("val_ap"), card.get("val_ap50")),
        "objects count with a": Thresholds.from_card(card).describe(classes),
        "licence of the weights": licence or "not stated",
        "licence of the data": card.get("data licence", "not stated"),
    }
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items() if value)
    picture = f"![objects that it finds in an image]({PICTURE})\n\n" if has_picture else ""
    return (
        f"---\n{chr(10).join(facts)}\n---\n\n# {name.partition('/')[2]}\n\n{picture}"
        f"An object detector, trained with boxwright.\n\n| | |\n| --- | --- |\n{table}\n"
        f'```python\nimport boxwright\n\nfound = boxwright.load("{name}").predict("image.jpg")\n'
        "for one in found:\n    print(one.name, one.score, one.box)\n```\n"
    )


def _pair(ap: float | None, ap50: float | None) -> str:
    return "" if ap is None or ap50 is None else f"{ap:.3f}, {ap50:.3f}"


def _draw(weights: Path, image: Path) -> Image.Image:
    """The image with the objects found in it, no larger than it need be."""
    from boxwright.inference.predictor import load

    picture = load(weights).predict(image).plot(open_image(image))
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def _upload(folder: Path, name: str, public: bool) -> str:
    """Create the repository if need be, and upload the files as one commit; its URL."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        where: Any = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a detector of boxwright")
    except LocalTokenNotFoundError as error:
        raise UserError("the hub does not know you: `hf auth login`, or set HF_TOKEN.") from error
    except HFValidationError as error:
        raise UserError(f"{name} is no name of a repository ({' '.join(str(error).split())[:160]}).") from error
    except HfHubHTTPError as error:
        raise UserError(_why_refused(name, error)) from error
    except Exception as error:  # no connection: versions of the client have different errors for it
        why = " ".join(str(error).split())[:160]
        raise UserError(f"the hub can't be reached ({why}); nothing was uploaded.") from error
    return str(where)


def _why_refused(name: str, error: Any) -> str:
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code in (401, 403):
        return f"the hub does not let you write {name}: `hf auth login` with a token that may write, or another owner."
    return f"{name} can't be uploaded ({' '.join(str(error).split())[:160]}); try again later."
