"""The commands and the Python code in the README and in the guides run."""

import re
import shlex
import warnings

import numpy as np
import pytest
from helpers.commands import ROOT, run_module
from helpers.tiny import write_camvid
from PIL import Image

README = ROOT / "README.md"
GUIDES = [ROOT / "docs" / f"{name}.md" for name in ("training", "evaluation", "export")]

SMALLER = {
    "backbone": "mobilenet_v2_0.35",
    "backbone_weights": "none",
    "eval_output_stride": "16",
    "filters": "16",
    "crop_size": "65",
    "batch_size": "2",
    "train_steps": "2",
    "train_split": "train[:4]",
    "val_split": "val[:1]",
}
"""Settings that shorten trainings; the rest of a command is as printed."""

ELSEWHERE = {
    "python3": "the continuous integration sets up an environment and runs the tests in it",
    ".": "as python3",
    "pip": "as python3",
    "python": "as python3",
}


def commands():
    """Yields the commands in the shell blocks of the README, then of the guides."""
    text = "".join(page.read_text(encoding="utf-8") for page in (README, *GUIDES))
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
            if line.strip():
                yield shlex.split(line)


def ours():
    return [words for words in commands() if words[0].endswith("_main")]


def smaller(words):
    """The command as printed; a training with the settings that shorten it."""
    if words[0] != "train_main" or "--check_only" in words:
        return words
    kept = [word for word in words if word.lstrip("-").split("=")[0] not in SMALLER]
    settings = dict(SMALLER)
    if "--dataset=cityscapes" in words:
        settings["val_split"] = "train[:1]"  # the part of Cityscapes at hand has no other
    return [*kept, *(f"--{name}={value}" for name, value in settings.items())]


def test_every_command_exists_and_is_tested():
    console = {path.stem for path in (ROOT / "dilated_affinity" / "cli").glob("*_main.py")}
    found = {words[0] for words in commands()}
    assert found <= console | set(ELSEWHERE)
    assert {"train_main", "eval_main", "predict_main", "export_main", "report_main"} <= found


def write_own_folder(folder):
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 3)):
        for index in range(count):
            mask = np.zeros((80, 96, 3), np.uint8)
            mask[:, int(rng.integers(20, 70)) :] = (255, 0, 0)
            image = np.clip(mask // 2 + rng.integers(0, 99, mask.shape), 0, 255).astype(np.uint8)
            for kind, pixels in (("images", image), ("masks", mask)):
                path = folder / kind / split / f"photograph {index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (folder / "classes.csv").write_text("name,r,g,b\nfloor,0,0,0\nwall,255,0,0\n")


def unavailable(words, shared):
    """The reason why a command cannot run on this machine, or None."""
    for name, place in (("voc2012_aug", "voc2012_mini"), ("cityscapes", "cityscapes_mini")):
        if f"--dataset={name}" in words and not (shared / place).exists():
            return f"{place} is not on this machine"
    return None


@pytest.mark.slow
def test_commands_run_in_order(tmp_path):
    """Trainings have few images and two steps; the others run as printed on their results."""
    shared = ROOT.parent / "shared" / "data"
    write_camvid(tmp_path / "CamVid", train=60, size=(80, 96))
    write_own_folder(tmp_path / "my_data")
    (tmp_path / "photographs").symlink_to(tmp_path / "my_data" / "images" / "val")
    (tmp_path / "VOC").symlink_to(shared / "voc2012_mini")
    (tmp_path / "Cityscapes").symlink_to(shared / "cityscapes_mini")
    for words in ours():
        reason = unavailable(words, shared)
        if reason is not None:
            warnings.warn(f"{shlex.join(words)} was not run: {reason}", stacklevel=1)
            continue
        done = run_module("dilated_affinity", *smaller(words), cwd=tmp_path)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    for made in ("runs/mine/report.html", "predictions/mine", "exports/mine", "exports/camvid"):
        assert (tmp_path / made).exists()


def run_notebook_lines(train_steps, jit_compile):
    """Runs the README's Python code and returns its variables; GPUs set `jit_compile`."""
    code = re.search(r"```python\n(import keras.*?)```", README.read_text(), re.S).group(1)
    for old, new in (
        ('for_dataset("shapes")', f'for_dataset("shapes", train_steps={train_steps})'),
        ("model.compile(", f"model.compile(jit_compile={jit_compile}, optimizer="),
    ):
        assert code.count(old) == 1
        code = code.replace(old, new)
    names = {}
    exec(code, names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_notebook_lines_train_and_predict(tmp_path, monkeypatch, jit_compile):
    monkeypatch.chdir(tmp_path)
    names = run_notebook_lines(train_steps=3, jit_compile=jit_compile)
    refined = np.asarray(names["refined"])
    assert refined.shape == (1, *names["example"]["label"].shape)
    assert refined.dtype == np.uint8
    assert refined.max() < 7
