"""Files of a FLAME model and of its landmark embedding -> plain arrays, by what is in them and never by what they are called.

The published models are pickles, some with arrays of the package chumpy. Nothing in a pickle is ever run: the reader
knows a handful of class names, puts what they hold into holders of its own, and refuses every other name. Knows
nothing of where models are kept. Axes: V vertices (5023 as published), F triangles, J = 5 joints, L landmarks.

Source of the format: Li et al., "Learning a model of facial shape and expression from 4D scans", SIGGRAPH Asia 2017.
"""

import pickle
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from difflistener.errors import UserError

NUM_SHAPE = 300
NUM_FACIAL = 100
"""Directions of shape and, behind them, of expression."""
PARENTS = (-1, 0, 1, 1, 1)
"""Joints are root, neck, jaw, left eye, right eye; each turns about its parent."""
MODEL_KEYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights", "f")
EMBEDDING_KEYS = ("lmk_face_idx", "lmk_b_coords", "landmark_indices")
MAX_BYTES = 1 << 30

WANTED = ("It should be a FLAME model (.pkl, .npz or .safetensors) or mediapipe_landmark_embedding.npz, as they come from "
          "https://flame.is.tue.mpg.de")


def read_file(path: Path) -> dict:
    """Named arrays of a .pkl, .npz or .safetensors file, told apart by content; what is no array of numbers is kept by name only.

    Raises:
        UserError: no such file, damaged, of another kind, or a pickle that names a class that no FLAME model holds.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file at {path}.", WANTED + ".")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has {path.stat().st_size / 1e9:.1f} GB, far more than a FLAME model.", WANTED + ".")
    content = path.read_bytes()
    if zipfile.is_zipfile(path):
        return _read_npz(path)
    if content[8:9] == b"{":
        try:
            return load_safetensors(content)
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}).", "Copy or download it again.") from error
    return _read_pickle(path)


def _read_npz(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    if not all(name.endswith(".npy") for name in members):
        raise UserError(f"{path} is a zip archive of {', '.join(members[:3])}.", "Unpack it and name the model file inside.")
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}).", "Copy or download it again.") from error


def model_arrays(content: dict, path: Path) -> dict[str, np.ndarray]:
    """A FLAME model's arrays, checked, of what `read_file` gave.

    Returns:
        v_template [V, 3] m (x to the person's left, y up, z out of the face), shapedirs [V, 3, 400], posedirs [V, 3, 36],
        J_regressor [5, V], weights [V, 5] float32; faces [F, 3], parents [5] int64 (-1: the root).

    Raises:
        UserError: shapes disagree or are not FLAME's, or a number is not finite.
    """
    found = {name: _dense(content[name]) for name in MODEL_KEYS}
    for name, array in found.items():
        if array is None:
            raise UserError(f"{path}: {name} is no stored array.",
                            "Take the file as published, or store it as .npz of plain arrays.")
    count = len(found["v_template"])
    shapes = {"v_template": (count, 3), "shapedirs": (count, 3, NUM_SHAPE + NUM_FACIAL), "posedirs": (count, 3, 36),
              "J_regressor": (5, count), "kintree_table": (2, 5), "weights": (count, 5), "f": (len(found["f"]), 3)}
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise UserError(f"{path}: {name} has shape {list(found[name].shape)}, FLAME's is {list(shape)}.", WANTED + ".")
        if not np.isfinite(found[name]).all():
            raise UserError(f"{path}: {name} holds numbers that are not finite.", "Copy or download it again.")
    faces = found["f"].astype(np.int64)
    parents = found["kintree_table"][0].astype(np.int64)
    parents[0] = -1
    if tuple(parents) != PARENTS or not ((faces >= 0) & (faces < count)).all():
        raise UserError(f"{path}: its joints or triangles are not FLAME's.", WANTED + ".")
    names = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")
    return {name: found[name].astype(np.float32) for name in names} | {"faces": faces, "parents": parents}


def embedding_arrays(content: dict, path: Path) -> dict[str, np.ndarray]:
    """A MediaPipe-to-FLAME embedding's arrays, checked, of what `read_file` gave.

    Returns:
        face_index [L] int64 (triangle of each landmark), barycentric [L, 3] float32, indices [L] int64 (which of the 478).
    """
    face_index, barycentric, indices = (_dense(content[name]) for name in EMBEDDING_KEYS)
    if any(array is None for array in (face_index, barycentric, indices)):
        raise UserError(f"{path} holds no plain arrays.", WANTED + ".")
    face_index, indices = face_index.reshape(-1), indices.reshape(-1)
    count = len(indices)
    if face_index.shape != (count,) or barycentric.shape != (count, 3) or count < 10:
        shapes = ", ".join(f"{name} {list(_dense(content[name]).shape)}" for name in EMBEDDING_KEYS)
        raise UserError(f"{path}: {shapes} do not go together.", WANTED + ".")
    if not (np.abs(barycentric.sum(1) - 1) < 1e-3).all() or indices.min() < 0 or indices.max() >= 478 or face_index.min() < 0:
        raise UserError(f"{path}: its weights do not add up to 1, or it names points beyond the 478.",
                        "Copy or download it again.")
    return {"face_index": face_index.astype(np.int64), "barycentric": barycentric.astype(np.float32),
            "indices": indices.astype(np.int64)}


# ------------------------------------------------------------------------------------------------------ pickles


class _Holder:
    """What a pickled object was made of and set to. All holders are classes with `__setstate__`, so that no pickle can
    change the holders themselves."""

    def __init__(self, *made_of):
        self.made_of = made_of
        self.state = None

    def __setstate__(self, state):
        self.state = state


class _Number(_Holder):
    """A numpy dtype."""

    def numpy(self) -> np.dtype:
        code, order = self.made_of[0], self.state[1] if self.state else "="
        if not re.fullmatch(r"[biuf][1248]", code) or order not in ("<", ">", "=", "|"):
            raise ValueError(f"dtype {order}{code}")
        return np.dtype(("=" if order == "|" else order) + code)


class _Array(_Holder):
    """A numpy array: made of class, shape and type code, then set to (version, shape, dtype, by columns, bytes)."""

    def numpy(self) -> np.ndarray | None:
        _, shape, number, by_columns, raw = self.state
        if isinstance(raw, list):
            return None
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        return np.frombuffer(raw, number.numpy()).reshape(shape, order="F" if by_columns else "C")


class _Buffer(_Array):
    """A numpy array of pickle protocol 5: made of buffer, dtype, shape and order."""

    def numpy(self) -> np.ndarray:
        raw, number, shape, order = self.made_of
        return np.frombuffer(raw, number.numpy()).reshape(shape, order=order)


class _Sparse(_Holder):
    """A scipy matrix, set to its attributes."""

    def numpy(self) -> np.ndarray:
        shape = self.state["_shape"]
        if len(shape) != 2 or np.prod(shape, dtype=float) > MAX_BYTES / 8:
            raise ValueError(f"sparse matrix of shape {shape}")
        dense, data = np.zeros(shape), _dense(self.state["data"])
        if "row" in self.state or "coords" in self.state:
            where = tuple(map(_dense, self.state.get("coords") or (self.state["row"], self.state["col"])))
        else:
            along = np.repeat(np.arange(len(_dense(self.state["indptr"])) - 1), np.diff(_dense(self.state["indptr"])))
            where = along, _dense(self.state["indices"])
            where = where[:: self.stored_along]
        np.add.at(dense, where, data)
        return dense

    stored_along = 1


class _SparseColumns(_Sparse):
    stored_along = -1


class _Chumpy(_Holder):
    """A chumpy array, whose numbers are its attribute x. An expression of chumpy has none."""

    def numpy(self) -> np.ndarray | None:
        return _dense(self.state["x"]) if isinstance(self.state, dict) and "x" in self.state else None


class _Bytes(_Holder):
    """Bytes that Python 3 wrote for Python 2."""

    def __new__(cls, text, coding="latin1"):
        return text.encode("latin1")


class _Remade(_Holder):
    """An object of pickle protocol 0 or 1."""

    def __new__(cls, kind, *_):
        if not (isinstance(kind, type) and issubclass(kind, _Holder)):
            raise ValueError("an object of no known class")
        return kind()


KNOWN_CLASSES = {
    ("numpy", "ndarray"): _Holder, ("numpy", "dtype"): _Number, ("_codecs", "encode"): _Bytes,
    ("copyreg", "_reconstructor"): _Remade, ("builtins", "object"): _Holder, ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset, ("builtins", "bytearray"): bytearray, ("collections", "OrderedDict"): dict,
    **{(f"numpy.{core}.multiarray", name): holder for core in ("core", "_core")
       for name, holder in (("_reconstruct", _Array), ("scalar", _Holder))},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Buffer for core in ("core", "_core")},
    **{(f"scipy.sparse{folder}", f"{kind}_{what}"): holder for kind, holder in
       (("csc", _SparseColumns), ("csr", _Sparse), ("coo", _Sparse)) for folder in ("", f".{kind}", f"._{kind}")
       for what in ("matrix", "array")},
}
"""Names that a model's pickle may hold -> what stands for them here."""


class _Refused(pickle.UnpicklingError):
    """A name that is not in `KNOWN_CLASSES`."""


PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        module = PYTHON_2.get(module, module)
        if module == "chumpy" or module.startswith("chumpy."):
            return _Chumpy
        if (module, name) not in KNOWN_CLASSES:
            raise _Refused(f"{module}.{name}")
        return KNOWN_CLASSES[module, name]

    def persistent_load(self, _):
        raise _Refused("a persistent object")


def _read_pickle(path: Path) -> dict:
    try:
        with path.open("rb") as file:
            content = _Reader(file, encoding="latin1").load()
    except _Refused as error:
        raise UserError(f"{path} is a pickle that asks for {error}, which no FLAME model does; nothing in it was run.",
                        WANTED + ". Do not open this file with anything else.") from error
    except Exception as error:
        # A pickle cut short or made up can raise anything.
        raise UserError(f"{path} is neither a FLAME model nor whole ({type(error).__name__}: {error}).", WANTED + ".") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is a pickle of another kind.", WANTED + ".")
    return {name: value for name, value in content.items() if isinstance(name, str)}


def _dense(value) -> np.ndarray | None:
    """The array that a stored value stands for, or None where it stands for none."""
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind in "biuf" else None
    try:
        return value.numpy()
    except (AttributeError, ValueError, KeyError, IndexError, TypeError):
        return None
