"""predict_main on folders in which not everything is a good image."""

import re

import numpy as np
from helpers.tiny_run import command, write_run
from PIL import Image


def test_good_images_are_predicted_and_bad_ones_named(tmp_path):
    config, model_dir = write_run(tmp_path)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for index in range(3):
        with Image.open(f"{config.data_dir}/val/val_{index}.png") as image:
            image.save(photographs / f"{index}.png")
    whole = (photographs / "1.png").read_bytes()
    (photographs / "1.png").write_bytes(whole[:200])
    (photographs / "._0.png").write_bytes(b"Mac OS X")
    arguments = (f"--model_dir={model_dir}", f"--input={photographs}", f"--output_dir={tmp_path}/o")

    result = command("predict_main", *arguments)
    assert result.returncode == 1, result.stderr
    assert f"{tmp_path}/o: predicted 2 images; 1 could not be predicted\n" in result.stdout
    assert re.search(r"macOS .* ignored: 1 \(.*\._0.png\)", result.stdout)
    last = result.stderr.splitlines()[-1]
    assert "1.png: the image file is damaged" in last and "Traceback" not in result.stderr
    assert sorted(path.name for path in (tmp_path / "o").glob("*_labels.png")) == [
        "0_labels.png",
        "2_labels.png",
    ]

    result = command("predict_main", *arguments)
    assert result.returncode == 1 and "--resume" in result.stderr.splitlines()[-1]
    (photographs / "1.png").write_bytes(whole)
    result = command("predict_main", *arguments, "--resume")
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/o: predicted 1 images; left 2 that were complete\n" in result.stdout
    with Image.open(tmp_path / "o" / "1_labels.png") as labels:
        assert np.asarray(labels).shape == (40, 48)


def test_bad_images_are_named_when_a_file_cannot_be_written(tmp_path):
    config, model_dir = write_run(tmp_path)
    photographs = tmp_path / "photographs"
    (photographs / "b").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b/c.png")):
        with Image.open(f"{config.data_dir}/val/val_{index}.png") as image:
            image.save(photographs / name)
    (photographs / "a_bad.png").write_bytes(b"")
    out = tmp_path / "o"
    out.mkdir()
    (out / "b").write_text("mine")
    arguments = (f"--model_dir={model_dir}", f"--input={photographs}")
    result = command("predict_main", *arguments, f"--output_dir={out}")
    assert result.returncode == 1
    assert f"{out}: predicted 1 images; 1 could not be predicted\n" in result.stdout
    bad, last = result.stderr.splitlines()[-2:]
    assert "a_bad.png: expected an image file" in bad
    assert f"{out}/b/c_overlay.png: cannot be written" in last and "--resume continues" in last

    # Before the model is loaded.
    result = command("predict_main", f"--model_dir={tmp_path}/none", f"--output_dir={out}/b")
    assert result.returncode == 2 and "output_dir must be a folder" in result.stderr
