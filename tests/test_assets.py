"""Licensed files: recognised by content, never run, kept whole."""

import json
import os
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file
from synthetic_flame import arrays, embedding, published, with_chumpy

from difflistener import assets, cli
from difflistener.assets import EMBEDDING, AddAsset, add_asset, choose_flame, load_asset, read_header
from difflistener.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFLISTENER_DATA", str(tmp_path / "data"))
    return tmp_path / "data/assets"


def pickled(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def plain(content):
    return content | {"J_regressor": content["J_regressor"].toarray()}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_with_chumpy_and_sparse_arrays_is_read_without_either(protocol, tmp_path, monkeypatch):
    file = pickled(tmp_path / "anything", with_chumpy(published(), monkeypatch), protocol)
    monkeypatch.undo()
    monkeypatch.setenv("DIFFLISTENER_DATA", str(tmp_path / "data"))
    made = add_asset(AddAsset(file, "flame2020"))
    assert made["asset"] == "flame2020" and "Max Planck" in made["licence"]
    expected, stored = arrays(), load_asset("flame2020")
    assert stored.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(stored[name], array)
        assert stored[name].dtype == array.dtype
    assert read_header("flame2020")["source_sha256"] == made["source_sha256"]


@pytest.mark.parametrize("kind", ["csc", "csr", "coo"])
def test_sparse_joint_regressors_of_each_kind(kind, tmp_path):
    content = published()
    stored = content | {"J_regressor": content["J_regressor"].asformat(kind)}
    add_asset(AddAsset(pickled(tmp_path / "m.pkl", stored), "flame2023"))
    np.testing.assert_allclose(load_asset("flame2023")["J_regressor"], content["J_regressor"].toarray(), rtol=1e-6)


def test_npz_and_safetensors_are_models_too(tmp_path):
    content = {name: np.asarray(value) for name, value in plain(published()).items() if not isinstance(value, str)}
    np.savez(tmp_path / "m.npz", **content)
    save_file({name: np.ascontiguousarray(value) for name, value in content.items()}, tmp_path / "m.bin")
    for name in ("m.npz", "m.bin"):
        assert add_asset(AddAsset(tmp_path / name, "flame2023"))["asset"] == "flame2023"


def test_the_edition_is_told_by_content_or_asked_for(tmp_path, monkeypatch):
    unknown = pickled(tmp_path / "flame2023.pkl", published())
    with pytest.raises(UserError, match="does not tell") as error:
        add_asset(AddAsset(unknown))
    assert "--edition flame2020" in error.value.remedy
    opened = pickled(tmp_path / "x.pkl", published() | {assets.OPEN_KEY: {"n_expr": 100}})
    assert add_asset(AddAsset(opened))["asset"] == "flame2023-open"
    assert read_header("flame2023-open")["licence"].startswith("CC-BY-4.0")
    with pytest.raises(UserError, match="is flame2023-open, not flame2020"):
        add_asset(AddAsset(opened, "flame2020"))
    digest = add_asset(AddAsset(unknown, "flame2020"))["source_sha256"]
    monkeypatch.setitem(assets.DIGESTS, digest, "flame2023")
    assert add_asset(AddAsset(unknown))["asset"] == "flame2023"
    monkeypatch.setattr(assets, "NO_JAW_DIGEST", digest[:8])
    with pytest.raises(UserError, match="without the jaw"):
        add_asset(AddAsset(unknown, "flame2023"))


class Harmful:
    def __reduce__(self):
        return os.system, ("touch ran",)


class Subtle:
    """Reaches for a module's attribute by a dotted name."""

    def __reduce__(self):
        return np.load, ("x",)


@pytest.mark.parametrize(("harm", "named"), [(Harmful(), "system"), (Subtle(), "numpy.load"), (print, "builtins.print"),
                                             (getattr, "builtins.getattr")])
def test_a_pickle_that_would_run_something_is_refused(harm, named, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 4):
        file = pickled(tmp_path / "m.pkl", published() | {"shapedirs": harm}, protocol)
        with pytest.raises(UserError, match=f"{named}.*nothing in it was run"):
            add_asset(AddAsset(file, "flame2020"))
    assert not (tmp_path / "ran").exists() and not folder.exists()


def test_a_pickle_cannot_change_what_reads_it(tmp_path):
    from difflistener.flame_file import _Chumpy

    # GLOBAL chumpy.ch.Ch, then BUILD with attributes for the class itself.
    (tmp_path / "m.pkl").write_bytes(b"\x80\x02cchumpy.ch\nCh\nN}q\x00X\x05\x00\x00\x00numpyK\x01s\x86b.")
    with pytest.raises(UserError):
        add_asset(AddAsset(tmp_path / "m.pkl", "flame2020"))
    assert callable(_Chumpy.numpy)


def wrong(content, **changes):
    return {name: value for name, value in (content | changes).items() if value is not None}


BAD = {
    "missing": (None, "no file at"),
    "text": (b"not a model at all\n", "neither a FLAME model nor whole"),
    "empty": (b"", "neither a FLAME model nor whole"),
    "cut": (pickle.dumps(published(), 2)[:5000], "neither a FLAME model nor whole"),
    "a list": (pickle.dumps([1, 2]), "of another kind"),
    "another model": (pickle.dumps(wrong(published(), posedirs=None)), "holds v_template"),
    "joints of a body": (pickle.dumps(wrong(published(), weights=np.ones((200, 24)))), "weights has shape [200, 24]"),
    "few directions": (pickle.dumps(wrong(published(), shapedirs=np.ones((200, 3, 150)))), "[200, 3, 150]"),
    "not finite": (pickle.dumps(wrong(published(), weights=np.full((200, 5), np.nan))), "not finite"),
    "a word": (pickle.dumps(wrong(published(), weights="lbs")), "weights is no stored array"),
    "faces beyond": (pickle.dumps(wrong(published(), f=np.full((9, 3), 200))), "triangles are not FLAME's"),
    "zip": (b"PK\x05\x06" + b"\0" * 18, "holds nothing"),
    "safetensors": (b"\x40\0\0\0\0\0\0\0{damaged", "is damaged"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_file_is_two_lines_and_adds_nothing(case, tmp_path, capsys, folder):
    content, message = BAD[case]
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    assert cli.main(["assets", "add", str(file), "--edition", "flame2020"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and message in lines[0]
    assert not folder.exists()


def test_the_landmark_embedding_is_recognised_and_checked(tmp_path, capsys):
    np.savez(tmp_path / "e.npz", **embedding())
    assert add_asset(AddAsset(tmp_path / "e.npz"))["asset"] == EMBEDDING
    stored = load_asset(EMBEDDING)
    np.testing.assert_allclose(stored["barycentric"], embedding()["lmk_b_coords"], rtol=1e-6)
    assert stored["face_index"].shape == stored["indices"].shape == (105,)
    np.savez(tmp_path / "bad.npz", **(embedding() | {"lmk_b_coords": np.ones((105, 3))}))
    with pytest.raises(UserError, match="add up to 1"):
        add_asset(AddAsset(tmp_path / "bad.npz"))
    np.savez(tmp_path / "short.npz", **(embedding() | {"lmk_face_idx": np.arange(9)}))
    with pytest.raises(UserError, match="do not go together"):
        add_asset(AddAsset(tmp_path / "short.npz"))


def test_an_asset_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, folder):
    first = pickled(tmp_path / "a.pkl", published(0))
    add_asset(AddAsset(first, "flame2020"))
    before = (folder / "flame2020.safetensors").read_bytes()

    def fill(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", fill)
    with pytest.raises(OSError, match="No space"):
        add_asset(AddAsset(pickled(tmp_path / "b.pkl", published(1)), "flame2020"))
    assert (folder / "flame2020.safetensors").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["flame2020.safetensors"]
    monkeypatch.undo()
    monkeypatch.setenv("DIFFLISTENER_DATA", str(tmp_path / "data"))
    add_asset(AddAsset(tmp_path / "b.pkl", "flame2020"))
    np.testing.assert_array_equal(load_asset("flame2020")["v_template"], arrays(1)["v_template"])


def test_what_is_missing_is_said_with_how_to_get_it(tmp_path, capsys, folder):
    for tracker in ("flame", "flame2023"):
        with pytest.raises(UserError) as error:
            choose_flame(tracker)
        assert "difflistener assets add" in error.value.remedy
    model = pickled(tmp_path / "a.pkl", published())
    add_asset(AddAsset(model, "flame2020"))
    with pytest.raises(UserError, match=EMBEDDING):
        choose_flame("flame")
    np.savez(tmp_path / "e.npz", **embedding())
    add_asset(AddAsset(tmp_path / "e.npz"))
    assert choose_flame("flame") == "flame2020"
    add_asset(AddAsset(model, "flame2023"))
    assert choose_flame("flame2023") == "flame2023"
    with pytest.raises(UserError, match="Several FLAME models.*flame2020, flame2023"):
        choose_flame("flame")
    (folder / "flame2023.safetensors").write_bytes(b"damaged")
    assert cli.main(["assets", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(folder) and lines[1].startswith("ok flame2020") and "a.pkl" in lines[1]
    assert lines[2].startswith("-  flame2023") and "damaged" in lines[2]
    assert lines[3].startswith("-  flame2023-open") and "assets add FILE" in lines[3]


def test_the_verb_prints_one_json_line(tmp_path, capsys):
    np.savez(tmp_path / "e.npz", **embedding())
    assert cli.main(["assets", "add", str(tmp_path / "e.npz")]) == 0
    assert json.loads(capsys.readouterr().out)["asset"] == EMBEDDING
