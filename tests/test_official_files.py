"""Weight files on disk: the formats in use, and one line for everything that is none of them."""

import json
import pickle

import pytest
import torch

from crab_mini.errors import WeightsError
from crab_mini.pretrained.weights import load_config, load_file

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


def same(found: dict) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[k], v) and found[k].dtype == v.dtype
                                                for k, v in STATE.items())


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"cfg": {"conv_pos": 3}, "model": s},
                                  lambda s: {"state_dict": s, "epoch": 4}])
def test_torch_files(tmp_path, suffix, zipped, wrap):
    path = tmp_path / ("w" + suffix)
    torch.save(wrap(STATE), path, _use_new_zipfile_serialization=zipped)
    assert same(load_file(path)) and same(load_file(str(path)))


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(STATE, tmp_path / "w.safetensors")
    assert same(load_file(tmp_path / "w.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    with pytest.raises(WeightsError, match="bad.safetensors: expected a safetensors file"):
        load_file(tmp_path / "bad.safetensors")


def shards(folder, weight_map: dict | None = None):
    """Two shards with their index; returns the index."""
    for n, (key, value) in enumerate(STATE.items()):
        torch.save({key: value}, folder / f"part-{n}.bin")
    index = folder / "pytorch_model.bin.index.json"
    where = {key: f"part-{n}.bin" for n, key in enumerate(STATE)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where if weight_map is None else weight_map}))
    return index


def test_shards_and_folders(tmp_path):
    assert same(load_file(shards(tmp_path))) and same(load_file(tmp_path))
    single = tmp_path / "single"
    single.mkdir()
    torch.save(STATE, single / "pytorch_model.bin")
    assert same(load_file(single))


@pytest.mark.parametrize("weight_map, message", [
    ({"a.weight": "part-0.bin", "a.bias": "part-0.bin"}, "a.bias: expected in part-0.bin, found nothing"),
    ({"a.weight": "part-0.bin", "a.bias": "part-2.bin"}, "index.json: expected a file 'part-2.bin' beside it, found none"),
    ({"a.bias": "part-0.bin"}, "a.weight: expected in no shard, found in part-0.bin"),
    ({"a.weight": "../part-0.bin"}, "expected weight files beside the index, found '../part-0.bin'"),
    ({}, "expected 'weight_map'"),
    ({"a.weight": 3}, "expected 'weight_map'"),
])
def test_an_index_must_tell_the_truth(tmp_path, weight_map, message):
    index = shards(tmp_path, weight_map)
    with pytest.raises(WeightsError, match=message):
        load_file(index)


class Code:
    """Runs on unpickling, unless nobody unpickles it."""

    def __reduce__(self):
        return (pytest.fail, ("code from a weight file was run",))


@pytest.mark.parametrize("name, content", [
    ("empty.pt", b""), ("text.pt", b"hello, this is no checkpoint\n" * 9), ("page.bin", b"<html>404</html>"),
    ("zeros.bin", bytes(999)), ("zip.pt", b"PK\x03\x04" + bytes(99)), ("code.pt", pickle.dumps(Code(), 2)),
    ("pickle.pt", pickle.dumps({"a": [1, 2]}, 2)), ("bytes.pt", bytes(range(256)) * 4)])
def test_what_is_no_checkpoint_gets_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"^[^\n]*{name}: [^\n]*expected [^\n]*found [^\n]*$"):
        load_file(path)


def test_damaged_and_mistaken_files_get_one_line(tmp_path):
    whole, path = tmp_path / "whole.pt", tmp_path / "w.pt"
    torch.save(STATE, whole)
    for length in (10, 200, whole.stat().st_size - 30):
        path.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(WeightsError, match="w.pt: expected a checkpoint"):
            load_file(path)
    for content, message in (([1], "names and tensors, found list"), ({}, "names and tensors"),
                             ({"a": 3}, "a: expected a tensor, found int"),
                             ({3: torch.ones(1)}, "3: expected a tensor"), (torch.ones(2), "found Tensor")):
        torch.save(content, path)
        with pytest.raises(WeightsError, match=message):
            load_file(path)
    torch.save({"model": STATE, "code": Code()}, path, pickle_module=pickle)
    with pytest.raises(WeightsError, match="only tensors and plain values"):
        load_file(path)
    with pytest.raises(WeightsError, match="none.pt: expected a file, found none"):
        load_file(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="expected one of model.safetensors.index.json"):
        (tmp_path / "nothing").mkdir()
        load_file(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="found 'w.gguf'"):
        (tmp_path / "w.gguf").write_bytes(b"GGUF")
        load_file(tmp_path / "w.gguf")
    for text in ("[1]", "{", "\udcff"):
        (tmp_path / "x.json").write_text(text, errors="surrogateescape")
        with pytest.raises(WeightsError, match="x.json: expected a JSON"):
            load_file(tmp_path / "x.json")


def test_configurations_are_found(tmp_path):
    torch.save({"cfg": {"conv_pos": 128}, "model": STATE}, tmp_path / "beats.pt")
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert load_config(tmp_path / "beats.pt") == {"conv_pos": 128}
    with pytest.raises(WeightsError, match="'cfg' inside or in config.json beside it"):
        load_config(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert load_config(tmp_path / "pytorch_model.bin") == load_config(tmp_path) == {"hidden_size": 8}
    assert load_config(tmp_path / "beats.pt") == {"conv_pos": 128}
