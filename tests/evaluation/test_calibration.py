"""Calibration of the refinement: what it measures, what it finds, and where it leaves it."""

import json

import keras
import numpy as np
import pytest
from helpers import reference
from helpers.tiny import ListSource, tiny_config, write_camvid
from helpers.tiny_run import command, write_run

from dilated_affinity.affinity.early_stopping import EarlyStop
from dilated_affinity.affinity.targets import affinity_targets
from dilated_affinity.datasets.classes import CAMVID, ClassTable
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError, DataError
from dilated_affinity.evaluation.calibration import LOGIT_EDGES, _Fit, _Predictions, calibrate
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.models.deeplab import DeepLabV3Plus
from dilated_affinity.run_dir.checkpoints import Checkpoints, TrainingState, write_checkpoint
from dilated_affinity.run_dir.layout import (
    BEST,
    CALIBRATION_FILE,
    CHECKPOINTS,
    load_calibration,
    save_settings,
)
from dilated_affinity.run_dir.load import load_checkpoint, load_run
from dilated_affinity.training.run_calibration import calibrate_best, is_calibrated, save_searched
from dilated_affinity.training.trainer import train

CLASSES = ClassTable(tuple("abcd"), ((0, 0, 0),) * 4)
OFFSETS = {33: 0, 50: 1, 35: 2, 40: 3}
"""The first pixel on which a feature of stride 4 stands, for some sides of an image."""


def tiny_model(rates):
    keras.utils.set_random_seed(0)
    model = DeepLabV3Plus(4, rates, "tiny", weights=None, filters=8, separable=False)
    for name in ("semantic_logits", "affinity_logits"):  # logits of some size, not all near 0
        kernel = model.get_layer(name).kernel * 300
        model.get_layer(name).kernel.assign(kernel - keras.ops.mean(kernel, axis=-2, keepdims=True))
    return model


def random_examples(sizes, seed=0):
    rng = np.random.default_rng(seed)
    examples = []
    for number, size in enumerate(sizes):
        label = rng.integers(0, 3, size, dtype=np.uint8)  # never the class d
        label[:3] = 255
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        examples.append({"image": image, "label": label, "id": str(number)})
    return ListSource(examples, CLASSES)


def lattice_mean_iou(model, source, refinement, rates, step):
    """mIoU at the pixels of a lattice, image by image and pixel by pixel."""
    matrix = np.zeros((4, 4), int)
    for index in range(len(source)):
        example = source[index]
        height, width = example["label"].shape
        places = np.s_[:, OFFSETS[height] :: step, OFFSETS[width] :: step] if step > 1 else np.s_[:]
        outputs = model(example["image"][None].astype("float32"))
        probabilities = np.asarray(keras.ops.softmax(outputs["semantic"]))[places]
        logits = np.asarray(outputs["affinity"])[places]
        label = example["label"][None][places]
        divided = [(r1 // step, r2 // step) for r1, r2 in rates]
        if refinement.symmetric:
            offsets = reference.offsets(divided)
            logits = reference.symmetric_logits(logits, offsets, np.ones(label.shape, bool))
        affinities = 1 / (1 + refinement.mu ** (refinement.threshold - logits.astype(float)))
        refined = reference.propagate(
            probabilities[0], affinities[0], divided, refinement.iterations, refinement.self_weight
        )
        for true, predicted in zip(label.ravel(), refined.argmax(-1).ravel(), strict=True):
            if true != 255:
                matrix[true, predicted] += 1
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return np.mean((np.diag(matrix) / np.maximum(union, 1))[matrix.sum(1) > 0])


@pytest.mark.parametrize(
    "rates, step", [(((4, 4), (4, 8)), 4), (((2, 2), (4, 6)), 1)], ids=["at decoder stride", "full"]
)
@pytest.mark.parametrize(
    "refinement", [Refinement(2), Refinement(3, 2.0, 20.0, 0.7, True)], ids=["paper", "symmetric"]
)
def test_mean_iou_equals_loops_over_pixels(rates, step, refinement):
    model, source = tiny_model(rates), random_examples([(33, 50), (35, 40), (33, 40)])
    predictions = _Predictions.collect(model, source, 10)
    assert predictions.images == 3
    measured = predictions.mean_iou(refinement, (0, refinement.iterations))
    for count, value in zip((0, refinement.iterations), measured, strict=True):
        expected = lattice_mean_iou(
            model, source, refinement.replace(iterations=count), rates, step
        )
        # One pixel may fall on either side of a tie.
        np.testing.assert_allclose(value, expected, atol=2e-3)


def synthetic(tau, noise=0.4, seed=0):
    """Predictions whose affinity logits are right, but too high by tau."""
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 4, (4, 6, 6)), np.ones((8, 8), int)).astype(np.uint8)
    scores = 2 * np.eye(4)[labels] + rng.normal(0, 2, (*labels.shape, 4))
    probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    rates = ((1, 1), (2, 2))
    targets = np.asarray(affinity_targets(labels, rates))
    logits = np.where(targets == 1, 0.8, -0.8) + tau + rng.normal(0, noise, targets.shape)
    arrays = probabilities.astype("float32"), logits.astype("float32"), labels
    return _Predictions(4, 4, rates, [(*arrays, np.ones(labels.shape, bool))])


def test_a_shift_of_the_logits_is_corrected():
    best = {tau: _Fit(synthetic(tau), 10).best() for tau in (0.0, 1.5)}
    (right,) = synthetic(0.0).mean_iou(best[0.0], (10,))
    shifted = synthetic(1.5)
    unrefined, found = shifted.mean_iou(best[1.5], (0, 10))
    assert best[1.5].threshold > best[0.0].threshold + 0.9
    assert best[1.5].symmetric  # noise of both directions averages out
    assert best[1.5].iterations == 10
    np.testing.assert_allclose(found, right, atol=0.02)
    without = [
        shifted.mean_iou(Refinement(mu=mu, symmetric=True), (10,))[0] for mu in (7.0, 20.0, 1000.0)
    ]
    assert found > max(unrefined, *without) + 0.05


def test_every_setting_tried_is_kept_with_its_mean_iou():
    predictions = synthetic(1.0)
    fit = _Fit(predictions, 3)
    best, tried = fit.best(), fit.tried()
    assert tried.iterations == (3,)
    assert len(set(tried.refinements)) == len(tried.refinements) > 30
    assert tried.mean_iou.max() == predictions.mean_iou(best, (3,))[0]
    for row in (0, len(tried.refinements) - 1):
        (value,) = predictions.mean_iou(tried.refinements[row], (3,))
        assert tried.mean_iou[row, 0] == value


def test_reliability_counts_pairs():
    predictions = synthetic(0.5, noise=3.0)
    ((_, logits, labels, _),) = predictions.batches
    pairs, same = np.zeros((2, 9, len(LOGIT_EDGES) - 1), int)
    for image in range(len(labels)):
        targets = reference.affinity_targets(labels[image], predictions.rates)
        counts = reference.neighbor_counts(targets)
        for place in np.ndindex(targets.shape):
            if targets[place] == reference.NO_PAIR:
                continue
            x = np.clip(logits[image][place], LOGIT_EDGES[0], LOGIT_EDGES[-1] - 1e-6)
            position = int((x - LOGIT_EDGES[0]) // 0.5), counts[place[0], place[1], place[2] // 8]
            pairs[position[::-1]] += 1
            same[position[::-1]] += targets[place] == 1
    found = predictions.reliability()
    np.testing.assert_array_equal(found.pairs, pairs)
    np.testing.assert_array_equal(found.same, same)


def test_without_a_gain_iterations_are_0():
    """All classes right: nothing can gain, and the worst affinities harm."""
    model = tiny_model(((4, 4),))
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    label = np.asarray(model(image[None].astype("float32"))["semantic"])[0].argmax(-1)
    example = {"image": image, "label": label.astype(np.uint8), "id": "0"}
    found = calibrate(model, ListSource([example], CLASSES))
    assert found.mean_iou[0] == 1
    assert found.refinement.iterations == 0
    assert "set to 0 iterations" in str(found)
    assert found.to_json()["settings"]["propagation_iterations"] == 0


def test_found_settings_are_compared_with_given_ones():
    model, source = tiny_model(((4, 4), (4, 8))), random_examples([(33, 50), (35, 40)])
    given = Refinement(6, 3.0, 9.0, 0.1)
    found = calibrate(model, source, given)
    predictions = _Predictions.collect(model, source, 10)
    assert found.given == given
    assert found.iterations == (0, 1, 3, 6)
    assert found.given_mean_iou == tuple(predictions.mean_iou(given, (0, 1, 3, 6)))
    best = found.tried.best
    assert found.refinement in (best, best.replace(iterations=0))
    assert found.gain == found.mean_iou[-1] - found.mean_iou[0]
    json.dumps(found.to_json(), allow_nan=False)


def test_images_are_drawn_evenly_and_large_ones_are_fewer(monkeypatch):
    source = random_examples([(33, 50)] * 9)
    model = tiny_model(((4, 4),))
    assert _Predictions.collect(model, source, 4).images == 4
    monkeypatch.setattr(
        "dilated_affinity.evaluation.calibration._PIXELS", 300
    )  # a lattice has 9 * 13
    assert _Predictions.collect(model, source, 9).images == 3


def test_invalid_calibrations_are_refused():
    source, model = random_examples([(33, 50)]), tiny_model(((4, 4),))
    with pytest.raises(ConfigError, match="without affinity"):
        calibrate(DeepLabV3Plus(4, None, "tiny", weights=None), source)
    with pytest.raises(ConfigError, match="Received: iterations=0"):
        calibrate(model, source, iterations=0)
    with pytest.raises(ConfigError, match="Received: images=0"):
        calibrate(model, source, images=0)
    void = random_examples([(33, 50)])
    void[0]["label"][:] = 255
    with pytest.raises(DataError, match="no pixel of 1 images"):
        calibrate(model, void)


@pytest.mark.slow
def test_training_ends_with_calibration_and_commands_use_it(tmp_path):
    config = tiny_config(write_camvid(tmp_path / "camvid"), calibrate="training", rates="4,8")
    train(config, tmp_path / "run")
    content = load_calibration(tmp_path / "run")
    assert content["by"] == "calibration" and content["split"] == "train"
    assert content["given"] == Refinement().to_config()
    calibrated, _ = load_run(tmp_path / "run")
    assert Refinement.from_config(calibrated).to_config() == content["settings"]
    plain, _ = load_run(tmp_path / "run", calibrated=False)
    assert Refinement.from_config(plain) == Refinement()
    given, _ = load_run(tmp_path / "run", mu=11.0)
    assert given.mu == 11 and given.affinity_threshold == calibrated.affinity_threshold
    # Once is enough, and what a search saved stays.
    content["settings"]["mu"] = 123.0
    (tmp_path / "run" / CALIBRATION_FILE).write_text(json.dumps(content))
    train(config, tmp_path / "run")
    assert load_run(tmp_path / "run")[0].mu == 123


@pytest.mark.parametrize(
    "settings",
    [{"calibrate": "none"}, {"objective": "none"}, {"refine": "none"}]
    + [{"propagation_iterations": 0}],
    ids=str,
)
def test_a_run_without_refinement_is_not_calibrated(tmp_path, settings):
    """Nothing is read, so that no run is needed."""
    config = tiny_config("nowhere", calibrate="training")
    with pytest.raises(DataError, match=BEST.name):
        calibrate_best(tmp_path, config, None)
    calibrate_best(tmp_path, config.replace(**settings), None)
    assert load_calibration(tmp_path) is None


def test_a_split_that_does_not_exist_is_refused_before_training(tmp_path):
    config = tiny_config(write_camvid(tmp_path / "camvid"), calibrate="tain[:2]")
    with pytest.raises(ConfigError, match="tain"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_without_affinity_is_not_calibrated(tmp_path):
    _, model_dir = write_run(tmp_path)
    result = command("calibrate_main", f"--model_dir={model_dir}", "--propagation_iterations=0")
    assert result.returncode == 2
    assert "propagation_iterations=0, calibrate='none'" in result.stderr


@pytest.mark.parametrize("content", ["", "{}", '{"settings": {"mu": "steep"}}', "[1]"])
def test_a_damaged_calibration_is_named(tmp_path, content):
    _, model_dir = write_run(tmp_path)
    (model_dir / CALIBRATION_FILE).write_text(content)
    with pytest.raises(DataError, match=rf"{CALIBRATION_FILE}: not a calibration"):
        load_run(model_dir)


def test_calibrate_main(tmp_path):
    config, model_dir = write_run(tmp_path, rates="4,8")
    result = command(
        "calibrate_main",
        f"--model_dir={model_dir}",
        "--calibrate=val",
        "--propagation_iterations=4",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{model_dir}: calibrated on 3 images of val: ")
    assert ", rates 4,8; " in result.stderr and "on CPU, float32; writing to " in result.stderr
    content = load_calibration(model_dir)
    assert content["split"] == "val" and content["iterations"] == [0, 1, 3, 4]
    assert config.mu == 7  # config.json stays what the run was trained with
    assert load_run(model_dir, calibrated=False)[0].mu == 7


def test_settings_saved_for_the_last_checkpoint_are_kept(tmp_path, caplog):
    """`eval_main --search --save --checkpoint=last` saves them; training is called again."""
    config, model_dir = write_run(tmp_path, rates="4,8", calibrate="training")
    best = TrainingState(step=1)
    model = load_checkpoint(model_dir / BEST)
    write_checkpoint(model_dir / BEST, model, best)
    Checkpoints(model_dir / CHECKPOINTS).write(model, TrainingState(step=2))
    source = load_source("camvid", "train", config.data_dir)
    save_searched(model_dir, Refinement(iterations=3), "val", step=2)
    calibrate_best(model_dir, config, source)
    assert load_calibration(model_dir)["by"] == "search"
    save_searched(model_dir, Refinement(iterations=3), "val", step=9)
    with caplog.at_level("INFO", "absl"):
        calibrate_best(model_dir, config, source)
    found = load_calibration(model_dir)
    assert (found["by"], found["step"]) == ("calibration", 1)
    assert "the refinement that a search saved at step 9 is replaced" in caplog.text


def test_a_changed_refinement_is_calibrated_again(tmp_path, caplog):
    """Training is called again with other settings of the refinement, which it accepts."""
    caplog.set_level("INFO", "absl")
    config, model_dir = write_run(tmp_path, rates="4,8", calibrate="training")
    Checkpoints(model_dir / CHECKPOINTS).write(load_checkpoint(model_dir / BEST), TrainingState())
    source = load_source("camvid", "train", config.data_dir)
    calibrate_best(model_dir, config, source)
    first = (model_dir / CALIBRATION_FILE).read_bytes()
    calibrate_best(model_dir, config, source)
    assert (model_dir / CALIBRATION_FILE).read_bytes() == first
    changed = config.replace(propagation_iterations=2, mu=20.0)
    save_settings(model_dir, changed, CAMVID)
    calibrate_best(model_dir, changed, source)
    assert "the settings of the refinement have changed: it is calibrated again" in caplog.text
    found = load_calibration(model_dir)
    assert found["iterations"] == [0, 1, 2] and found["given"]["mu"] == 20
    # What a user chose with a search is kept, and the log says so.
    save_searched(model_dir, Refinement(iterations=3), "val", step=0)
    assert is_calibrated(model_dir, 0) and "stays in force" not in caplog.text
    save_settings(model_dir, config, CAMVID)
    calibrate_best(model_dir, config, source)
    assert "calibration.json, saved by a search, stays in force" in caplog.text
    assert load_calibration(model_dir)["by"] == "search"
    caplog.clear()
    calibrate_best(model_dir, config.replace(calibrate="none"), source)
    assert "calibration.json stays in force" in caplog.text


@pytest.mark.parametrize("variant", ["propagation", "propagation_early_stop"])
def test_a_saved_search_brings_its_method(tmp_path, variant):
    """Also into a run that was not refined."""
    _, model_dir = write_run(tmp_path, refine="none")
    searched = Refinement(3, mu=9.0, variant=variant, stop=EarlyStop(2, 0.5))
    assert "calibration.json, which every command uses" in save_searched(
        model_dir, searched, "val", 0
    )
    used = Refinement.from_config(load_run(model_dir)[0])
    assert used.to_config() == searched.to_config() and used.variant == variant
    assert variant == "propagation" or used.stop == searched.stop
    assert load_run(model_dir, calibrated=False)[0].refine == "none"
    assert load_run(model_dir, refine="none")[0].refine == "none"
