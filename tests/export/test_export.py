import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.exports import IMAGE, IMAGES, RATES, SETTINGS, assert_agrees, decisive, small_model
from PIL import Image

from dilated_affinity.affinity import propagation
from dilated_affinity.errors import ConfigError, DataError, RunError
from dilated_affinity.export import export, formats
from dilated_affinity.export.export import export_model
from dilated_affinity.export.formats import FORMATS, METADATA, Format
from dilated_affinity.inference.model import inference_model
from dilated_affinity.models.deeplab import DeepLabV3Plus

BARE = """
import sys
sys.modules["dilated_affinity"] = None  # any import of the package fails
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
batches = np.load(sys.argv[2])
outputs = {}
for name in batches:
    for key, value in model.serve(batches[name]).items():
        outputs[f"{name}_{key}"] = value.numpy()
np.savez(sys.argv[3], **outputs)
"""


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return small_model(separable=False)


@pytest.fixture(scope="module")
def saved_model(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exports") / "deep" / "model"
    export_model(
        model, path, IMAGE, **SETTINGS, affinity=True, metadata={"classes": ["road", "sky"]}
    )
    return path


@pytest.fixture(scope="module")
def loaded(saved_model):
    return tf.saved_model.load(saved_model)


def in_a_bare_process(path, batches, folder):
    np.savez(folder / "in.npz", **batches)
    arguments = (path, folder / "in.npz", folder / "out.npz")
    subprocess.run([sys.executable, "-c", BARE, *map(str, arguments)], check=True, timeout=600)
    outputs = np.load(folder / "out.npz")
    return {
        batch: {
            key.removeprefix(f"{batch}_"): outputs[key]
            for key in outputs
            if key.startswith(f"{batch}_")
        }
        for batch in batches
    }


def test_a_saved_model_needs_tensorflow_alone(model, saved_model, tmp_path):
    batches = {
        f"{height}x{width}of{count}": IMAGES[:count, :height, :width]
        for count, height, width in ((1, 40, 50), (3, 40, 50), (3, 97, 128), (1, 64, 33))
    }
    received = in_a_bare_process(saved_model, batches, tmp_path)
    whole = inference_model(model, **SETTINGS)
    for name, batch in batches.items():
        expected = whole(batch)
        assert len(np.unique(expected["labels"])) > 1
        assert_agrees(received[name], expected)


def test_an_export_refines(model, loaded):
    refined = loaded.serve(IMAGES)["labels"]
    unrefined = inference_model(model, iterations=0)(IMAGES)["labels"]
    assert (np.asarray(refined) != np.asarray(unrefined)).mean() > 0.01


def test_a_saved_model_stores_its_metadata(saved_model):
    assert json.loads((saved_model / METADATA).read_text()) == {"classes": ["road", "sky"]}


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 40, 50, 4), "uint8"),
        np.zeros((1, 40, 50, 1), "uint8"),
        np.zeros((40, 50, 3), "uint8"),
        np.zeros((1, 0, 50, 3), "uint8"),
    ],
    ids=lambda wrong: str(wrong.shape),
)
def test_a_signature_refuses_other_shapes(loaded, wrong):
    with pytest.raises(tf.errors.InvalidArgumentError, match="images must be RGB of shape"):
        loaded.signatures["serving_default"](images=tf.constant(wrong))


def test_other_dtypes_are_refused(loaded):
    """NumPy arrays too, which TensorFlow would cast: a picture in 0 to 1 would be black."""
    wrong = tf.fill((1, 40, 50, 3), np.nan)
    floats = np.full((1, 40, 50, 3), 0.5)
    for array in (wrong, floats, floats.astype("float32"), np.zeros((1, 40, 50, 3), int)):
        with pytest.raises(ValueError, match="dtype=tf.uint8"):
            loaded.serve(array)
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected to be a uint8 tensor"):
        loaded.signatures["serving_default"](images=wrong)


def test_propagation_is_compiled_for_few_sizes(monkeypatch):
    seen = []

    def record(probabilities, affinities, rates, iterations, self_weight, valid_mask, storage):
        seen.append((*valid_mask.shape, int(np.sum(valid_mask))))
        return probabilities

    monkeypatch.setattr(propagation, "propagate", record)
    layer = formats._few_sizes(propagation.AffinityPropagation(RATES))
    for height, width in ((33, 41), (64, 64), (65, 64)):
        probabilities = np.random.default_rng(0).random((1, height, width, 2))
        refined = layer([probabilities, np.zeros((1, height, width, 8))])
        np.testing.assert_allclose(refined, probabilities, rtol=1e-6)
    assert seen == [(1, 64, 64, 33 * 41), (1, 64, 64, 64 * 64), (1, 128, 64, 65 * 64)]


def xla_functions(loaded):
    graph = loaded.signatures["serving_default"].graph.as_graph_def()
    return sum(function.attr["_XlaMustCompile"].b for function in graph.library.function)


def test_for_a_runtime_without_xla(model, loaded, tmp_path):
    agreement = export_model(model, tmp_path / "model", IMAGE, **SETTINGS, jit_compile=False)
    assert agreement.labels == 0
    plain = tf.saved_model.load(tmp_path / "model")
    assert xla_functions(plain) == 0 and xla_functions(loaded) > 0
    assert not tf.config.functions_run_eagerly()


def test_keras(model, tmp_path):
    export_model(model, tmp_path / "model.keras", IMAGE, "keras", **SETTINGS)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = inference_model(model, **SETTINGS)(IMAGES)
    assert_agrees(
        {name: np.asarray(value) for name, value in loaded(IMAGES).items()},
        {name: expected[name] for name in ("labels", "probabilities")},
    )


def test_a_model_without_affinity(tmp_path):
    plain = DeepLabV3Plus(5, None, "tiny", weights=None, filters=8)
    export_model(plain, tmp_path / "model.keras", IMAGE, "keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert set(loaded(IMAGE[np.newaxis])) == {"labels", "probabilities"}
    with pytest.raises(ConfigError, match="no affinity to output"):
        export_model(plain, tmp_path / "other.keras", IMAGE, "keras", affinity=True)


def off_by_a_thousandth(outputs):
    return {**outputs, "probabilities": outputs["probabilities"] + 1e-3}


def not_a_number(outputs):
    return {**outputs, "probabilities": outputs["probabilities"] * np.nan}


def one_other_label(outputs):
    labels = outputs["labels"].copy()
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 5
    return {**outputs, "labels": labels}


def another_dtype(outputs):
    return {**outputs, "labels": outputs["labels"].astype("int64")}


def without_labels(outputs):
    return {"probabilities": outputs["probabilities"]}


def fails(outputs):
    raise ValueError("no kernel\nfor this")


def make_faulty(monkeypatch, fault):
    """Has exports, once loaded, give what `fault` makes of their outputs."""
    load = export._load

    def load_faulty(path, format):
        predict = load(path, format)
        return lambda images: fault(predict(images))

    monkeypatch.setattr(export, "_load", load_faulty)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (off_by_a_thousandth, "probabilities of the keras .* difference of 1.0e-03"),
        (not_a_number, "probabilities of the keras .* difference of nan"),
        (one_other_label, "labels of the keras .* 1 other labels where"),
        (another_dtype, "must give .* Received: .*int64"),
        (without_labels, "must give .* Received: "),
        (fails, r"fails on images of shape \(1, 40, 50, 3\). Received: no kernel$"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_export_that_differs_from_the_model_is_removed(
    model, tmp_path, monkeypatch, fault, message
):
    make_faulty(monkeypatch, fault)
    with pytest.raises(RunError, match=message):
        export_model(model, tmp_path / "model.keras", IMAGE, "keras", iterations=0)
    assert list(tmp_path.iterdir()) == []


def one_pixel_aside(outputs):
    return {name: np.roll(value, 1, axis=2) for name, value in outputs.items()}


def of_another_channel(outputs):
    return {**outputs, "probabilities": np.roll(outputs["probabilities"], 1, axis=-1)}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (one_pixel_aside, "probabilities of the keras .* Received: a difference"),
        (of_another_channel, "probabilities of the keras .* Received: a difference"),
        (not_a_number, "difference of nan"),
        (one_other_label, "labels of the keras .* 1 other labels where"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_larger_difference_than_of_bfloat16_is_refused(
    model, tmp_path, monkeypatch, fault, message
):
    make_faulty(monkeypatch, fault)
    with pytest.raises(RunError, match=message):
        export_model(model, tmp_path / "model.keras", IMAGE, "keras", 0, mixed_precision="bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_an_earlier_one(saved_model, model, monkeypatch):
    before = sorted(path.name for path in saved_model.parent.iterdir())

    def refuse(*_, **__):
        raise RuntimeError("an operation\nof no use")

    monkeypatch.setattr(tf.saved_model, "save", refuse)
    with pytest.raises(RunError, match="converted to saved_model.* Received: an operation$"):
        export_model(model, saved_model, IMAGE, overwrite=True)
    assert sorted(path.name for path in saved_model.parent.iterdir()) == before
    assert (saved_model / METADATA).is_file()


def test_existing_output_is_not_overwritten_by_default(model, tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("mine")
    with pytest.raises(DataError, match="model.keras: exists already"):
        export_model(model, path, IMAGE, "keras")
    assert path.read_text() == "mine"
    export_model(model, path, IMAGE, "keras", iterations=0, overwrite=True)
    assert path.stat().st_size > 1000


@pytest.fixture
def quick_folders(monkeypatch):
    """Folders with a Keras file, in place of SavedModels that take seconds to write."""
    keras_format = FORMATS["keras"]

    def write(whole, path, options):
        path.mkdir()
        keras_format.write(whole, path / "model.keras", options)

    fake = Format("", write, lambda path: keras_format.load(path / "model.keras"))
    monkeypatch.setitem(FORMATS, "saved_model", fake)


@pytest.mark.usefixtures("quick_folders")
def test_overwrites_an_earlier_export_but_no_other_folder(model, tmp_path):
    folder = tmp_path / "model"
    (folder / "photographs").mkdir(parents=True)
    with pytest.raises(DataError, match="exists already"):
        export_model(model, folder, IMAGE)
    with pytest.raises(DataError, match="not an export of the format saved_model"):
        export_model(model, folder, IMAGE, overwrite=True)
    assert (folder / "photographs").is_dir()
    (folder / "saved_model.pb").write_text("an earlier one")
    export_model(model, folder, IMAGE, iterations=0, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["model.keras"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "torch"}, "format must be one of saved_model, keras, onnx, litert"),
        ({"format": "keras"}, "must end in .keras"),
        ({"format": "litert"}, "must end in .tflite"),
        ({"mixed_precision": "int8"}, "saved_model must be one of none, bfloat16, float16"),
        ({"iterations": -1}, "iterations must be .* at least 0"),
        ({"mu": 1.0}, "mu must be above 1"),
        ({"self_weight": -1.0}, "self_weight must be at least 0"),
        ({"image": np.zeros((40, 50, 3), "float32")}, "uint8 RGB .* Received: float32"),
        ({"image": np.zeros((40, 50, 4), "uint8")}, r"Received: uint8 of shape \(40, 50, 4\)"),
        (
            {"refinement": "fast"},
            "refinement must be one of none, propagation, propagation_decoder_stride",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_settings_are_refused(model, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        export_model(model, **{"output": tmp_path / "model", "image": IMAGE, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(model, tmp_path, monkeypatch):
    find = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find(name)
    )
    with pytest.raises(ConfigError, match=r"needs tf2onnx.*pip install 'dilated_affinity\[onnx\]'"):
        export_model(model, tmp_path / "model.onnx", IMAGE, "onnx")


@pytest.mark.slow
def test_ten_photographs_in_a_bare_process(shared_file, tmp_path):
    model = decisive(DeepLabV3Plus(11, RATES, "mobilenet_v2_0.35", weights=None, filters=32))
    paths = sorted(shared_file("data/camvid/val").glob("*.png"))[:10]
    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    export_model(model, tmp_path / "model", photographs[0])
    batches = {
        f"{index}x{size[0]}": photograph[np.newaxis, : size[0], : size[1]]
        for index, photograph in enumerate(photographs)
        for size in ((360, 480), (321, 321), (97, 131))
    }
    batches["three"] = np.stack(photographs[:3])
    received = in_a_bare_process(tmp_path / "model", batches, tmp_path)
    whole = inference_model(model)
    for name, batch in batches.items():
        expected = whole(batch)
        assert_agrees(received[name], {key: expected[key] for key in received[name]})
        assert set(received[name]) == {"labels", "probabilities"}


ON_ANOTHER_DEVICE = """
import sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from helpers.exports import IMAGE, SETTINGS, small_model
from dilated_affinity.export import export, formats

def state():
    return tf.config.experimental.tensor_float_32_execution_enabled()

seen = set()
arrays = formats.arrays

def noted(outputs):
    for each in outputs.values():
        seen.add((each.device.rpartition(":")[2], state()))
    return arrays(outputs)

export.arrays = formats.arrays = noted
with tf.device("CPU:1"):  # in the place of a GPU
    model = small_model(separable=False)
    kernel = model.get_layer("semantic_logits").kernel.value
    assert kernel.device.endswith("CPU:1"), kernel.device
    for format in ("saved_model", "keras"):
        output = f"{sys.argv[1]}/model" + (".keras" if format == "keras" else "")
        print(export.export_model(model, output, IMAGE, format, **SETTINGS).labels)
        assert state()
        assert seen == {("0", False)}, seen
        seen.clear()
    try:
        export.TOLERANCE = -1.0
        export.export_model(model, output, IMAGE, "keras", **SETTINGS, overwrite=True)
    except export.RunError:
        assert state()
        print("restored")
"""


@pytest.mark.slow
def test_the_comparison_uses_the_cpu_and_float32(tmp_path):
    """On a GPU the model would round to TF32, and LiteRT and ONNX on the processor not."""
    done = subprocess.run(
        [sys.executable, "-c", ON_ANOTHER_DEVICE, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["0", "0", "restored"]
