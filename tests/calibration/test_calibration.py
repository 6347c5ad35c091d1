"""Calibration data: what is taken, how it is cut into batches, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from graphprune.calibration.batches import batches, some, with_rest
from graphprune.calibration.files import CHUNK, read_npz
from graphprune.errors import DataError
from graphprune.ir.graph import Value

IMAGE = Value("x", ("s0", 3, 4, 4))
FIXED = Value("x", (8, 3, 4, 4))
IDS = Value("ids", ("s0", 5), "int64")
MASK = Value("mask", ("s0", 5), "float32")


def images(n, dtype=np.float32):
    return np.arange(n * 48, dtype=dtype).reshape(n, 3, 4, 4) / 48


def joined(found, k=0):
    return np.concatenate([batch[k] for batch in found])


@pytest.mark.parametrize(
    "make",
    [
        lambda x, folder: x,
        lambda x, folder: torch.from_numpy(x),
        lambda x, folder: [x],
        lambda x, folder: (x,),
        lambda x, folder: {"x": x},
        lambda x, folder: {"whatever": x},
        lambda x, folder: saved(folder / "data.npz", x=x),
        lambda x, folder: saved(folder / "data.npz", other=x),
        lambda x, folder: str(saved(folder / "data.npz", x=x)),
        lambda x, folder: npy(folder / "data.npy", x),
        lambda x, folder: (x[k : k + 5] for k in range(0, len(x), 5)),
        lambda x, folder: [(x[:70], np.zeros(70)), (x[70:], np.zeros(len(x) - 70))],  # (images, labels)
        lambda x, folder: [{"x": x[:70]}, {"x": x[70:]}],
        lambda x, folder: torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.from_numpy(x)), batch_size=9
        ),
    ],
)
def test_every_form_gives_every_sample_in_order(make, tmp_path):
    x = images(130)
    found = batches(make(x, tmp_path), [IMAGE])
    np.testing.assert_array_equal(joined(found), x)
    assert max(len(batch[0]) for batch in found) <= CHUNK
    assert all(batch[0].dtype == np.float32 for batch in found)


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def npy(path, array):
    np.save(path, array)
    return path


def test_large_samples_come_in_small_batches(monkeypatch, tmp_path):
    """What is computed of a batch is many times its size."""
    monkeypatch.setattr("graphprune.calibration.files.CHUNK_BYTES", 5 * images(1).nbytes + 1)
    x = images(13)
    for k, sample in enumerate(x):
        np.save(tmp_path / f"{k:02d}.npy", sample)
    for data in (x, tmp_path, (x[k : k + 3] for k in range(0, 13, 3))):
        found = batches(data, [IMAGE])
        assert [len(batch[0]) for batch in found] == [5, 5, 3]
        np.testing.assert_array_equal(joined(found), x)
    assert [len(batch[0]) for batch in batches(x, [FIXED])] == [8]  # what the model is bound to stays


def test_a_fixed_batch_size_is_kept_and_the_rest_dropped():
    found = batches(images(29), [FIXED])
    assert [batch[0].shape[0] for batch in found] == [8, 8, 8]
    np.testing.assert_array_equal(joined(found), images(29)[:24])


def test_the_first_samples_are_cut_out_of_batches_that_may_be_cut():
    def read():
        for k in range(0, 40, 8):
            seen.append(k)
            yield [images(40)[k : k + 8], np.eye(3)]  # the second is the same for every sample

    seen = []
    found = some(read(), [IMAGE, MASK], 12)
    assert [batch[0].shape[0] for batch in found] == [8, 4] and all(batch[1].shape == (3, 3) for batch in found)
    np.testing.assert_array_equal(joined(found), images(40)[:12])
    assert seen == [0, 8]  # no more is read
    assert [len(batch[0]) for batch in some(read(), [FIXED, MASK], 12)] == [8, 8]
    assert len(some(read(), [IMAGE, MASK], 40, limit_bytes=2 * images(8).nbytes)) == 2
    assert len(some(read(), [IMAGE, MASK], 100)) == 5


def test_several_inputs_by_place_and_by_name():
    ids, mask = np.arange(20).reshape(4, 5), np.linspace(0, 1, 20).reshape(4, 5)
    for data in (
        [ids, mask],
        {"mask": mask, "ids": ids},
        {"a": ids, "b": mask},
        [{"ids": ids, "mask": mask}],
        [(ids, mask)],
    ):
        found = batches(data, [IDS, MASK])
        np.testing.assert_array_equal(joined(found, 0), ids)
        np.testing.assert_array_equal(joined(found, 1), mask.astype(np.float32))
        assert (found[0][0].dtype, found[0][1].dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("form", ["names", "places"])
def test_lists_of_one_array_a_sample_of_different_length(form: str, batched: bool) -> None:
    inputs, lengths = [Value("ids", ("s0", "s1"), "int64"), Value("mask", ("s0", "s1"))], (3, 5, 4, 2)
    columns: list[list[Any]] = [[np.arange(n) for n in lengths], [np.full(n, n, np.float32) for n in lengths]]
    given = [[one[None] if batched else one for one in column] for column in columns]
    found = batches(tuple(given) if form == "places" else {"mask": given[1], "ids": given[0]}, inputs)
    assert [[array.shape for array in batch] for batch in found] == [[(1, n), (1, n)] for n in lengths]
    for ids, mask, batch in zip(*columns, found, strict=True):
        np.testing.assert_array_equal(batch[0][0], ids)
        np.testing.assert_array_equal(batch[1][0], mask)


def test_lists_of_samples_with_labels_beside_them() -> None:
    inputs, lengths, labels = [Value("ids", ("s0", "s1"), "int64")], (3, 5, 4), np.array([7, 8, 9])
    for ids in ([np.arange(n) for n in lengths], [np.arange(n)[None] for n in lengths]):
        found, rest = with_rest({"ids": ids, "labels": labels}, inputs)
        assert [batch[0].shape for batch in found] == [(1, 3), (1, 5), (1, 4)]
        assert [one[0].tolist() for one in rest] == [[7], [8], [9]]
    with pytest.raises(DataError, match="`ids` has 3, `mask` has 2 samples"):
        batches({"ids": [np.arange(3)] * 3, "mask": [np.ones(3, np.float32)] * 2}, [*inputs, MASK])


def test_dtypes_are_widened_and_narrowed_within_their_kind():
    assert batches(images(2, np.float64), [IMAGE])[0][0].dtype == np.float32
    assert batches(np.zeros((2, 5), np.int32), [IDS])[0][0].dtype == np.int64
    assert batches(torch.zeros(2, 5, requires_grad=True), [MASK])[0][0].dtype == np.float32


@pytest.mark.parametrize(
    ("data", "inputs", "message"),
    [
        ([], [IMAGE], "the calibration data is empty"),
        (3, [IMAGE], "the calibration data is empty"),
        (images(0), [IMAGE], "0 calibration samples do not fill one batch"),
        (images(5), [FIXED], "5 calibration samples do not fill one batch of 8"),
        (images(4)[:, :2], [IMAGE], "input `x` takes Nx3x4x4, the calibration array is 4x2x4x4"),
        (images(4)[0], [IMAGE], "input `x` takes Nx3x4x4, the calibration array is 3x4x4"),
        (images(4).astype(np.uint8), [IMAGE], "input `x` is float32, the calibration array is uint8"),
        (np.zeros((4, 5)), [IDS], "input `ids` is int64, the calibration array is float64"),
        (images(4) * np.nan, [IMAGE], "of `x` has 192 NaN or infinite values"),
        ([np.zeros((4, 5), int), np.zeros((3, 5))], [IDS, MASK], r"different numbers of samples: [3, 4]"),
        ({"ids": np.zeros((4, 5), int)}, [IDS, MASK], "the calibration data has ids, the model takes ids, mask"),
        ({"ids": 0, "masque": 0}, [IDS, MASK], "no array for mask"),
        ({"y": images(4)}, [IMAGE], "the calibration data has nothing but labels (`y`), the model takes x"),
        ([[np.zeros((4, 5), int)]], [IDS, MASK], "the calibration data has 1 arrays, the model takes 2 inputs"),
        (np.zeros((4, 5), int), [IDS, MASK], "the calibration data has 1 arrays, the model takes 2 inputs"),
        (np.array(["a"] * 4), [Value("x", ("s0",))], "input `x` is float32, the calibration array is <U1"),
        (
            np.array([{}] * 4, dtype=object),
            [Value("x", ("s0",))],
            "input `x` is float32, the calibration array is object",
        ),
        (["ab", "cd"], [IMAGE], "calibration"),
        ([3, 4], [IMAGE], "calibration"),
    ],
)
def test_data_that_does_not_fit_is_one_clear_error(data, inputs, message):
    with pytest.raises(DataError) as error:
        batches(data, inputs)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["missing.npz", "text.npz", "truncated.npz", "object.npy", "pickled.npz", "empty.npz"])
def test_files_that_are_not_plain_arrays_are_refused(name, tmp_path):
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "whole.npz", x=images(4))
    (tmp_path / "truncated.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:900])
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "pickled.npz").write_bytes(pickle.dumps(images(4)))
    with pytest.raises(DataError, match=f"{name}: (no such file|not an .npz or .npy file of plain arrays)"):
        batches(tmp_path / name, [IMAGE])


def test_integers_out_of_range_of_the_input_are_not_wrapped():
    with pytest.raises(DataError, match="ids"):
        batches(np.full((2, 5), 2**40), [Value("ids", ("s0", 5), "int32")])


def test_a_folder_of_arrays_is_read_batch_by_batch(tmp_path):
    x = images(130)
    for k, sample in enumerate(x):
        np.save(tmp_path / f"{k:04d}.npy", sample)
    found = batches(tmp_path, [IMAGE])
    assert len(found) == 3
    np.testing.assert_array_equal(joined(found), x)
    assert [len(batch[0]) for batch in batches(str(tmp_path), [FIXED])] == [8] * 16


def test_a_folder_of_images_is_scaled_and_resized(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    Image.fromarray(np.full((9, 7, 3), 51, np.uint8)).save(tmp_path / "3.png")
    ((array,),) = batches(tmp_path, [IMAGE])
    np.testing.assert_allclose(array[:3], pixels.transpose(0, 3, 1, 2) / np.float32(255), rtol=1e-6)
    np.testing.assert_allclose(array[3], 0.2, rtol=1e-6)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no calibration data: an empty folder"):
        batches(tmp_path, [IMAGE])
    np.save(tmp_path / "a.npy", images(1)[0, :2])
    with pytest.raises(DataError, match="input `x` takes Nx3x4x4, the calibration array is 1x2x4x4"):
        batches(tmp_path, [IMAGE])
    with pytest.raises(DataError, match="a folder of single arrays feeds one input, the model takes 2"):
        batches(tmp_path, [IDS, MASK])
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"a.npy: not an .npz or .npy file"):
        batches(tmp_path, [IMAGE])
    (tmp_path / "a.npy").unlink()
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b.png: not an image"):
        batches(tmp_path, [IMAGE])


def test_an_iterable_is_read_once_and_kept_in_files_beyond_the_limit(monkeypatch, tmp_path):
    monkeypatch.setattr("graphprune.calibration.batches.LIMIT_BYTES", 30_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    x, asked = images(300), []

    def source():
        for k in range(0, 300, 7):
            asked.append(k)
            yield x[k : k + 7]

    found = batches(source(), [IMAGE])
    assert asked == list(range(0, 300, 7))
    assert [len(batch[0]) for batch in found] == [64, 64, 64, 64, 44]
    for _ in range(2):
        np.testing.assert_array_equal(joined(found), x)
    np.testing.assert_array_equal(joined(found[2:]), x[128:])
    assert len(list(tmp_path.rglob("*.npz"))) == 3
    half = found[3:]
    del found
    np.testing.assert_array_equal(joined(half), x[192:])
    del half
    assert not list(tmp_path.iterdir())


def test_a_loader_that_shuffles_gives_every_pass_the_same_samples():
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(images(50)))
    found = batches(torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True), [IMAGE])
    np.testing.assert_array_equal(joined(found), joined(found))


def test_batches_of_a_loader_are_put_together_to_the_models_size():
    found = batches([images(3) for _ in range(7)], [FIXED])
    assert [len(batch[0]) for batch in found] == [8, 8]
    lengths = [np.zeros((4, 5), int), np.zeros((4, 7), int)]
    found = batches(lengths, [Value("ids", ("s0", "s1"), "int64")])
    assert [batch[0].shape for batch in found] == [(4, 5), (4, 7)]


def test_an_archive_is_read_a_batch_at_a_time(tmp_path):
    x = images(200)
    np.savez_compressed(tmp_path / "a.npz", x=np.asfortranarray(x), scale=np.float32(2))
    scale = Value("scale", ())
    parts = list(read_npz(tmp_path / "a.npz", 64))
    assert [len(part["x"]) for part in parts] == [64, 64, 64, 8]
    found = batches(tmp_path / "a.npz", [IMAGE, scale])
    np.testing.assert_array_equal(joined(found), x)
    assert [float(batch[1]) for batch in found] == [2.0] * 4


@pytest.mark.parametrize("form", ["arrays", "pairs", "loader"])
def test_what_comes_beside_the_inputs_is_cut_like_them(form):
    x, labels = images(130), np.arange(130)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(labels))
    data = {
        "arrays": [x, labels],
        "pairs": [(x[:70], labels[:70]), (x[70:], labels[70:])],
        "loader": torch.utils.data.DataLoader(dataset, batch_size=9),
    }[form]
    found, rest = with_rest(data, [IMAGE])
    np.testing.assert_array_equal(joined(found), x)
    np.testing.assert_array_equal(joined(rest), labels)
    assert [len(batch[0]) for batch in found] == [len(batch[0]) for batch in rest]


def test_a_loss_without_labels_is_refused():
    with pytest.raises(DataError, match="the calibration data has no more"):
        with_rest(images(4), [IMAGE])
    with pytest.raises(DataError, match="the calibration data has no more"):
        with_rest([images(4)], [IMAGE])


WIDE = Value("wide", ("s0", 7), "float32")


def test_arrays_whose_names_are_no_input_are_taken_in_order_and_that_is_said() -> None:
    given = {"a": np.ones((6, 5), np.int64), "b": np.zeros((6, 7), np.float32)}
    found = batches(given, [IDS, WIDE])
    assert found.order == ("`a` as `ids`", "`b` as `wide`")  # type: ignore[attr-defined]
    assert joined(found, 1).shape == (6, 7)
    assert batches({"ids": given["a"], "wide": given["b"]}, [IDS, WIDE]).order == ()  # type: ignore[attr-defined]
    assert batches({"a": images(4)}, [IMAGE]).order == ()  # type: ignore[attr-defined]


def test_arrays_that_may_be_each_others_are_refused() -> None:
    more = Value("more", ("s0", 5), "float32")
    given = {"a": np.ones((6, 5), np.float32), "b": np.zeros((6, 5), np.float32)}
    with pytest.raises(DataError, match="`a` and `b` may each be `mask` or `more`") as caught:
        batches(given, [MASK, more])
    assert caught.value.hint == "name the arrays as the inputs: mask, more"


def test_bfloat16_tensors_are_taken_as_the_float32_that_they_are():
    given = torch.randn(5, 3).bfloat16()
    for dtype in ("bfloat16", "float32"):
        (batch,) = batches(given, [Value("x", ("N", 3), dtype, ())])
        np.testing.assert_array_equal(batch[0], given.float().numpy())
