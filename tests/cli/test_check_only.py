"""Whatever `--check_only` passes, training accepts, and the reverse."""

import re

import numpy as np
import pytest
from helpers.first_step import FirstStepReachedError, stop_at_first_step
from helpers.tiny import tiny_config, write_camvid
from helpers.tiny_run import command
from PIL import Image

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.cli import train_main
from dilated_affinity.config import Config
from dilated_affinity.errors import ConfigError, DataError, DilatedAffinityError, RunError
from dilated_affinity.training.trainer import train


@pytest.fixture
def camvid(tmp_path):
    return write_camvid(tmp_path / "camvid", train=5, val=2)


@pytest.fixture
def verdicts(monkeypatch, tmp_path, capsys):
    """What the check and training say to settings: the status and the error, None for neither."""
    stop_at_first_step(monkeypatch)

    def judge(config, model_dir=None):
        try:
            train_main._check(config, model_dir)
            status = 0
        except SystemExit as stopped:
            status = stopped.code
        text = capsys.readouterr().out
        try:
            train(config, model_dir or tmp_path / "run")
        except FirstStepReachedError:
            return status, text, None
        except DilatedAffinityError as error:
            return status, text, error
        raise AssertionError("training ended without beginning")

    return judge


def settings(data, **changes):
    return tiny_config(data, **{"rates": "none", **changes})


def folder_of(root, classes="index,name\n0,a\n1,b\n", splits=("train", "val"), value=1):
    for split in splits:
        for kind, pixels in (
            ("images", np.zeros((40, 40, 3), np.uint8)),
            ("masks", np.full((40, 40), value, np.uint8)),
        ):
            (root / kind / split).mkdir(parents=True)
            Image.fromarray(pixels).save(root / kind / split / "a.png")
    (root / "classes.csv").write_text(classes)
    return root


def folder_config(root, **changes):
    return Config(**{**vars(settings(root)), "dataset": "folder", **changes})


def test_both_accept_what_is_right(camvid, tmp_path, verdicts):
    for config in (settings(camvid), folder_config(folder_of(tmp_path / "folder"))):
        status, text, error = verdicts(config, tmp_path / config.dataset)
        assert (status, error) == (0, None) and "no problems" in text


def one_class(root):
    return folder_config(folder_of(root, "index,name\n1,a\n"))


def only_void(root):
    return folder_config(folder_of(root, value=255))


def no_such_split(root):
    return folder_config(folder_of(root, splits=("train",)))


def empty_split(root):
    return folder_config(folder_of(root), val_split="val[1:]")


def statistics_of_other_rates(root):
    labels = [np.zeros((9, 9), int)]
    root.mkdir()
    AffinityStatistics.from_labels(labels, (3,)).save(root / "statistics.json")
    return folder_config(
        folder_of(root / "data"), rates="2", statistics=str(root / "statistics.json")
    )


def no_class_weights(root):
    return folder_config(folder_of(root), class_weights=str(root / "none.json"))


def no_initial_model(root):
    return folder_config(folder_of(root), initial_model=str(root / "none.keras"))


def no_backbone_weights(root):
    return folder_config(
        folder_of(root), backbone="mobilenet_v2_0.35", backbone_weights="x.weights.h5"
    )


def too_many_devices(root):
    return folder_config(folder_of(root), num_replicas=64)


def wrong_multi_grid(root):
    return folder_config(folder_of(root), multi_grid="1,2,4,8,1,1,1")


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (one_class, DataError, "at least 2 classes, .* Received: the only class 'a'"),
        (only_void, DataError, "every pixel is void"),
        (no_such_split, ConfigError, "split='val'"),
        (empty_split, DataError, "no examples"),
        (statistics_of_other_rates, RunError, "statistics of rates 3"),
        (no_class_weights, DataError, "none.json"),
        (no_initial_model, DataError, "none.keras"),
        (no_backbone_weights, DataError, "x.weights.h5"),
        (too_many_devices, ConfigError, "num_replicas=64"),
        (wrong_multi_grid, ConfigError, "multi_grid"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_both_refuse_what_is_wrong(tmp_path, verdicts, make, kind, message):
    status, text, error = verdicts(make(tmp_path / "data"))
    assert isinstance(error, kind) and status == (2 if kind is ConfigError else 1)
    assert re.search(message, str(error)), error
    assert re.search(message, text) and "1 problem" in text


def test_both_refuse_a_folder_of_other_settings(camvid, tmp_path, verdicts):
    settings(camvid, beta=2.0).save(tmp_path / "run" / "config.json", "1")
    (tmp_path / "run" / "log.csv").touch()  # something was trained
    status, text, error = verdicts(settings(camvid), tmp_path / "run")
    assert status == 1 and "beta=2.0" in text and "beta=2.0" in str(error)


def test_both_pass_over_what_training_leaves_out(tmp_path, verdicts):
    """An image that may be skipped, and one of a split that is not trained on."""
    data = write_camvid(tmp_path / "camvid", train=120, val=2)
    (data / "train" / "train_7.png").write_bytes(b"no image")
    status, text, _ = verdicts(settings(data))
    assert status == 1 and "train_7.png" in text.partition("1 problem")[2]
    status, text, error = verdicts(settings(data, on_bad_example="skip"))
    assert (status, error) == (0, None) and "train_7.png" in text.partition("1 note")[2]
    (data / "train" / "train_8.png").write_bytes(b"no image")
    status, _, _ = verdicts(settings(data, on_bad_example="skip"))
    assert status == 1  # more than 1 % of the split


def test_a_bad_split_that_is_not_trained_on_is_a_note(tmp_path, verdicts):
    root = folder_of(tmp_path / "data", splits=("train", "val", "test"))
    (root / "images" / "test" / "a.png").write_bytes(b"no image")
    status, text, error = verdicts(folder_config(root))
    assert (status, error) == (0, None) and "test/a.png" in text and "no problems" in text


def test_as_a_command(tmp_path):
    root = folder_of(tmp_path / "data", "index,name\n1,a\n")
    result = command("train_main", "--dataset=folder", f"--data_dir={root}", "--check_only")
    assert result.returncode == 1 and "the only class 'a'" in result.stdout, result.stderr
