"""Updates in every form that is taken: flattened in one order, given back as they came, refused by name."""

import collections

import numpy as np
import pytest
import safetensors.numpy

from triskele.array_files import read_arrays, write_arrays
from triskele.errors import ConfigurationError, InvalidUpdate
from triskele.structure import flatten
from triskele.task import TaskSpec

MODEL = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([10.0, 11.0]),
    "h": np.array(0.5, np.float16),
}


def same(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert one[name].shape == other[name].shape
        assert np.array_equal(one[name], other[name])


def test_dict_is_flattened_in_the_order_of_its_names_and_given_back_in_its_own():
    vector, structure = flatten(MODEL)
    assert vector.tolist() == [10, 11, 0.5, 0, 1, 2, 3, 4, 5]
    assert vector.dtype == np.float64
    same(structure.restore(vector), MODEL)


def test_order_of_the_dict_does_not_matter():
    reordered = {name: MODEL[name] for name in sorted(MODEL)}
    assert np.array_equal(flatten(MODEL)[0], flatten(reordered)[0])


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [(np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64), (">f4", np.float32)],
)
def test_dtype_and_shape_come_back(dtype, computed):
    array = np.linspace(-1, 1, 12).astype(dtype).reshape(3, 4)
    for update in (array, {"w": array}):
        vector, structure = flatten(update)
        assert vector.dtype == computed
        result = structure.restore(vector.astype(np.float64))
        result = result if update is array else result["w"]
        assert result.dtype == array.dtype
        assert np.array_equal(result, array)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_contiguous_array_is_not_copied(dtype):
    array = np.zeros((100, 10), dtype)
    assert np.shares_memory(flatten(array)[0], array)


def test_result_does_not_share_memory_with_the_aggregate():
    vector, structure = flatten(np.zeros(4))
    aggregate = np.ones(4)
    assert not np.shares_memory(structure.restore(aggregate), aggregate)
    assert vector.tolist() == [0] * 4


def test_strided_array_is_flattened_in_c_order():
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    vector, structure = flatten(array)
    assert np.array_equal(vector, array.reshape(-1))
    assert np.array_equal(structure.restore(vector), array)


def test_result_beyond_a_narrow_dtype_saturates():
    _, structure = flatten(np.zeros(3, np.float16))
    assert structure.restore(np.array([1e6, -1e6, 1.0])).tolist() == [65504, -65504, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_inf_are_refused_by_name(bad, dtype):
    broken = np.zeros((300, 400), dtype)
    broken[299, 399] = bad
    with pytest.raises(InvalidUpdate, match=r"layer.weight: has NaN or Inf"):
        flatten({"fine": np.zeros(3), "layer.weight": broken})
    with pytest.raises(InvalidUpdate, match="has NaN or Inf"):
        flatten(broken)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, np.int64),
        np.zeros(3, bool),
        np.zeros(3, complex),
        np.zeros(3, object),
        np.zeros(3, np.longdouble),
        np.array(["a"]),
        [1.0, 2.0],
        1.0,
        None,
        np.zeros((0, 3)),
    ],
)
def test_wrong_kind_of_array_is_refused_by_name(array):
    with pytest.raises(InvalidUpdate, match=r"^counter: "):
        flatten({"fine": np.zeros(3), "counter": array})


def test_array_that_came_alone_is_refused_too():
    with pytest.raises(InvalidUpdate, match="int64"):
        flatten(np.zeros(3, np.int64))
    with pytest.raises(InvalidUpdate, match="list"):
        flatten([1.0])


def test_empty_dict_and_nameless_arrays_are_refused():
    with pytest.raises(InvalidUpdate, match="no arrays"):
        flatten({})
    with pytest.raises(InvalidUpdate, match="named by text"):
        flatten({1: np.zeros(3)})


def test_wrong_dimension_names_the_arrays():
    _, structure = flatten(MODEL)
    with pytest.raises(InvalidUpdate, match=r"9 entries \(a \(2,\), h \(\), w \(2, 3\)\), but task 'x' has 10"):
        structure.check_fits(TaskSpec("x", 10, 1.0))
    structure.check_fits(TaskSpec("x", 9, 1.0))


def test_aggregate_of_another_length_is_refused():
    with pytest.raises(InvalidUpdate, match="does not fit"):
        flatten(MODEL)[1].restore(np.zeros(8))


def test_torch_state_dict_comes_back_as_tensors():
    torch = pytest.importorskip("torch")
    state = collections.OrderedDict(
        weight=torch.nn.Parameter(torch.arange(6, dtype=torch.float32).reshape(2, 3)),
        bias=torch.ones(2, dtype=torch.float64),
        half=torch.tensor(0.5, dtype=torch.float16),
        transposed=torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    )
    vector, structure = flatten(state)
    assert vector.tolist() == [1, 1, 0.5, 0, 3, 1, 4, 2, 5, 0, 1, 2, 3, 4, 5]
    result = structure.restore(vector * 2)
    assert list(result) == list(state)
    for name, tensor in state.items():
        assert isinstance(result[name], torch.Tensor)
        assert result[name].dtype == tensor.dtype
        assert not result[name].requires_grad
        assert torch.equal(result[name], tensor.detach() * 2)


def test_torch_tensors_that_cannot_be_aggregated_are_refused_by_name():
    torch = pytest.importorskip("torch")
    with pytest.raises(InvalidUpdate, match="num_batches_tracked: dtype int64"):
        flatten({"w": torch.zeros(2), "num_batches_tracked": torch.tensor(3)})
    with pytest.raises(InvalidUpdate, match=r"w: a tensor of torch.bfloat16"):
        flatten({"w": torch.zeros(2, dtype=torch.bfloat16)})


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_come_back_as_dicts(tmp_path, suffix):
    path = tmp_path / f"update{suffix}"
    model = {**MODEL, "file": np.zeros(2), "a/b.c": np.ones(1, np.float32)}
    write_arrays(path, model)
    vector, structure = flatten(path)
    assert np.array_equal(vector, flatten(model)[0])
    assert flatten(str(path))[1] == structure
    result = structure.restore(vector)
    assert set(result) == set(model)
    for name, array in model.items():
        assert np.array_equal(result[name], array)
        assert result[name].dtype == array.dtype
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_files_of_numpy_and_safetensors_themselves_are_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **MODEL)
    safetensors.numpy.save_file(MODEL, tmp_path / "a.safetensors")
    same(read_arrays(tmp_path / "a.npz"), MODEL)
    assert set(read_arrays(tmp_path / "a.safetensors")) == set(MODEL)
    write_arrays(tmp_path / "b.npz", MODEL)
    with np.load(tmp_path / "b.npz") as archive:
        same(dict(archive), MODEL)


def test_pickles_in_a_file_are_never_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InvalidUpdate, match=r"a.npz"):
        flatten(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.pt", "missing.npz", "missing.safetensors"])
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(InvalidUpdate, match=name):
        flatten(tmp_path / name)


def test_result_file_is_checked_before_it_is_written(tmp_path):
    for path in (tmp_path / "a.txt", tmp_path / "no" / "a.npz"):
        with pytest.raises(ConfigurationError, match=path.name):
            write_arrays(path, MODEL)
