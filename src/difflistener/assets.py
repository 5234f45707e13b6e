"""Files that a user has signed up for and this project may not ship: which there are, where they are kept, how they are added.

They are kept as safetensors in a folder of the user's, each with its edition, its licence and the digest of the file it
came from. Knows nothing of what a model does. Axes: see `flame_file`.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from difflistener.errors import UserError

FORMAT = 1
EMBEDDING = "mediapipe-embedding"
Edition = Literal["flame2020", "flame2023", "flame2023-open"]
SITE = "https://flame.is.tue.mpg.de"
MPI_LICENCE = f"FLAME model licence of the Max Planck Society, as agreed to at {SITE}/modellicense"
LICENCES = {"flame2020": MPI_LICENCE, "flame2023": MPI_LICENCE,
            "flame2023-open": "CC-BY-4.0 (FLAME 2023 Open, Max Planck Society)", EMBEDDING: MPI_LICENCE}
"""Asset -> the licence it comes under."""
HOW_TO_GET = f"Sign up at {SITE}, download it there, and run: difflistener assets add FILE"

DIGESTS = {
    "efcd14cc4a69f3a3d9af8ded80146b5b6b50df3bd74cf69108213b144eba725b": "flame2020",
    "8fb1af0db1abb51053ead8fd1f2624a63d01c9602f4a4fb4ea23bd2c82017fa0": "flame2023",
    "e75a0990728ba038c7da2a420ae4396f7ddd7781366c13026066c5b24f127623": "flame2023-open",
}
"""sha256 of the published files (generic_model.pkl, flame2023.pkl, flame2023_Open.pkl) -> edition. Open to further ones."""
NO_JAW_DIGEST = "b291fcd1"
"""How the sha256 of flame2023_no_jaw.pkl begins: a basis of its own, whose codes open the mouth."""
OPEN_KEY = "supr_expression_metadata"
"""Only FLAME 2023 Open has it."""


@dataclass(frozen=True)
class AddAsset:
    """Add a FLAME model or the MediaPipe landmark embedding, whatever the file is called; it is recognised by its content.

    Example: difflistener assets add ~/Downloads/flame2023_Open.pkl
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The file as downloaded: .pkl (nothing in it is run), .npz or .safetensors."""
    edition: Edition | None = None
    """Which FLAME it is, where the content does not tell (a file that was converted)."""


@dataclass(frozen=True)
class ListAssets:
    """Say which licensed files are there, under which licence, and how to get the others."""


def assets_folder() -> Path:
    """Where assets lie: $DIFFLISTENER_DATA/assets, or ~/.local/share/difflistener/assets."""
    return Path(os.environ.get("DIFFLISTENER_DATA") or Path.home() / ".local" / "share" / "difflistener") / "assets"


def add_asset(config: AddAsset) -> dict:
    """Recognise a file, store it in the assets folder (whole or not at all) and say what it was.

    Raises:
        UserError: not a file of these kinds, damaged, or of an edition that cannot be told.
    """
    from safetensors.numpy import save_file

    from difflistener.clip import replacing
    from difflistener.flame_file import EMBEDDING_KEYS, MODEL_KEYS, WANTED, embedding_arrays, model_arrays, read_file

    content = read_file(config.file)
    digest = hashlib.sha256(config.file.read_bytes()).hexdigest()
    if content.keys() >= set(EMBEDDING_KEYS):
        name, tensors = EMBEDDING, embedding_arrays(content, config.file)
        if config.edition:
            raise UserError(f"{config.file} is a landmark embedding, not a model.", "Leave out --edition.")
    elif content.keys() >= set(MODEL_KEYS):
        tensors = model_arrays(content, config.file)
        name = _edition(config, digest, content)
    else:
        raise UserError(f"{config.file} holds {', '.join(list(content)[:6]) or 'nothing'}.", WANTED + ".")
    header = {"library": "difflistener", "type": "asset", "format": str(FORMAT), "name": name, "licence": LICENCES[name],
              "source": config.file.name, "source_sha256": digest}
    path = assets_folder() / f"{name}.safetensors"
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header)
    return {"asset": name, "file": str(path), "licence": LICENCES[name], "source_sha256": digest}


def _edition(config: AddAsset, digest: str, content: dict) -> str:
    if digest.startswith(NO_JAW_DIGEST):
        raise UserError(f"{config.file} is FLAME 2023 without the jaw, whose codes mean something else.",
                        "Add flame2023.pkl instead.")
    told = DIGESTS.get(digest) or ("flame2023-open" if OPEN_KEY in content else None)
    if told and config.edition not in (None, told):
        raise UserError(f"{config.file} is {told}, not {config.edition}.", "Leave out --edition.")
    if not (told or config.edition):
        raise UserError(f"{config.file} is a FLAME model, but its content does not tell of which edition.",
                        f"Say it: difflistener assets add {config.file} --edition flame2020 (or flame2023, flame2023-open)")
    return told or config.edition


def list_assets(config: ListAssets) -> int:
    """Print a line for each asset: there or not, its licence, where it lies or how to get it."""
    print(assets_folder())
    for name in LICENCES:
        try:
            detail = f"{read_header(name)['licence']}; from {read_header(name)['source']}"
            mark = "ok"
        except UserError as error:
            mark, detail = "-", f"{error.problem} {error.remedy}" if is_there(name) else f"not there. {HOW_TO_GET}"
        print(f"{mark:<3}{name:<20} {detail}")
    return 0


def is_there(name: str) -> bool:
    """Whether an asset lies in the folder (not whether it is whole)."""
    return (assets_folder() / f"{name}.safetensors").is_file()


def read_header(name: str) -> dict[str, str]:
    """Name, licence, source and source_sha256 of an asset. Raises `UserError` where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    path = assets_folder() / f"{name}.safetensors"
    if not is_there(name):
        raise UserError(f"The asset {name} is not there ({path}).", HOW_TO_GET + ".")
    try:
        with safe_open(path, "np") as opened:
            header = opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}).", "Add it again: difflistener assets add FILE") from error
    if header.get("format") != str(FORMAT) or header.get("name") != name:
        raise UserError(f"{path} is not the asset {name} in format {FORMAT}.", "Add it again: difflistener assets add FILE")
    return header


def load_asset(name: str) -> dict:
    """Arrays of an asset by name, as `flame_file` describes them. Raises `UserError` where it is missing or damaged."""
    from safetensors.numpy import load_file

    read_header(name)
    return load_file(assets_folder() / f"{name}.safetensors")


def choose_flame(tracker: str) -> str:
    """The edition that `--tracker` asks for: by name, or by "flame" the only one that is there.

    Raises:
        UserError: none is there, or several and the name leaves it open, or the landmark embedding is missing.
    """
    there = [name for name in LICENCES if name != EMBEDDING and is_there(name)]
    if tracker == "flame" and len(there) > 1:
        raise UserError(f"Several FLAME models are there: {', '.join(there)}.", f"Say which, for example: --tracker {there[-1]}")
    if tracker == "flame" and not there:
        raise UserError(f"No FLAME model is there ({assets_folder()}).", HOW_TO_GET + ".")
    edition = there[0] if tracker == "flame" else tracker
    for name in (edition, EMBEDDING):
        read_header(name)
    return edition
