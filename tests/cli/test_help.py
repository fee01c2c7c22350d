"""What a person reads first: help, the list of commands, versions, and errors of one line."""

import dataclasses
import subprocess
import sys
import time

import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.tiny_run import command

from dilated_affinity import __main__ as package
from dilated_affinity.cli import app, config_flags, train_main
from dilated_affinity.cli.help_page import help_page
from dilated_affinity.cli.renamed_flags import with_new_names
from dilated_affinity.config import Config
from dilated_affinity.errors import ConfigError, DataError, RunError
from dilated_affinity.recipes import RECIPES
from dilated_affinity.version import __version__


@pytest.fixture(scope="module", autouse=True)
def parsed():
    flags.FLAGS(["train_main"])


@pytest.fixture
def page(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return help_page("train_main", train_main.__name__)


def entry(page, name):
    """The lines of one flag."""
    lines = page.splitlines()
    first = next(
        index
        for index, line in enumerate(lines)
        if line.startswith((f"  --{name}=", f"  --[no]{name}"))
    )
    rest = lines[first + 1 :]
    end = next(index for index, line in enumerate(rest) if not line.startswith("      "))
    return " ".join(line.strip() for line in rest[:end])


def test_every_setting_is_there_with_default_and_source(page):
    for field in dataclasses.fields(Config):
        text = entry(page, field.name)
        assert f"({field.metadata['source']})" in text, field.name
        if field.type in (int, float):
            assert f"Default: {field.default} (" in text, field.name
        for name, recipe in RECIPES.items():
            stated = f" {name}" in text.partition("(")[2].partition(";")[2]
            assert stated == (field.name in recipe), field.name


def test_groups_stand_in_the_order_of_the_settings(page):
    titles = [line for line in page.splitlines() if line.isupper() and line.isalpha()]
    groups = dict.fromkeys(field.metadata["group"].upper() for field in dataclasses.fields(Config))
    assert titles == ["COMMAND", *groups, "GENERAL"]
    assert page.startswith("train_main: Trains DeepLabv3+")
    assert page.index("--model_dir=TEXT") < page.index("DATA")


def test_no_line_is_wider_than_the_terminal(page):
    settings = page[page.index("COMMAND") :]
    assert max(map(len, settings.splitlines())) <= 80


def test_values_to_choose_from_are_named(page):
    assert "--weighting=none|signal|neighbor|sqrt_neighbor" in page
    assert "One of shapes, camvid," in entry(page, "dataset")
    assert "One of 8, 16, 32." in entry(page, "output_stride")
    assert "One of none, propagation, propagation_decoder_stride," in entry(page, "refine")
    assert entry(page, "random_flip").endswith("Default: yes (tensorflow/models research/deeplab).")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "camvit"}, ("Did you mean 'camvid'?", "dataset='camvit'")),
        ({"dataset": "Cityscape"}, ("Did you mean 'cityscapes'?",)),
        ({"backbone": "resnet_101"}, ("Did you mean 'resnet101'?",)),
        ({"backbone": "vgg"}, ("one of mobilenet_v2,", "backbone='vgg'")),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest(settings, words):
    with pytest.raises(ConfigError) as refused:
        config_flags.recipe_with(settings)
    assert all(word in str(refused.value) for word in words)


def test_the_settings_given_are_not_changed():
    settings = {"dataset": "camvid", "beta": 3.0}
    config = config_flags.recipe_with(settings)
    assert config.beta == 3.0 and config.batch_size == RECIPES["camvid"]["batch_size"]
    assert settings == {"dataset": "camvid", "beta": 3.0}


def status_of(action, monkeypatch, capsys, arguments=()):
    monkeypatch.setattr(sys, "argv", ["a_main.py", *arguments])
    status = app._status(action)
    return status, capsys.readouterr().err


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("no\nsense"), 2, "a_main: no sense"),
        (DataError("bad"), 1, "a_main: bad"),
        (RunError("stale"), 1, "a_main: stale"),
        (FileNotFoundError(2, "No such file", "x"), 1, "a_main: [Errno 2] No such file: 'x'"),
        (KeyboardInterrupt(), 130, "a_main: interrupted"),
        (
            KeyError("color"),
            1,
            "a_main: unexpected KeyError: 'color' (--debug shows where it came from)",
        ),
        (
            ZeroDivisionError(),
            1,
            "a_main: unexpected ZeroDivisionError (--debug shows where it came from)",
        ),
    ],
)
def test_every_error_is_one_line(error, status, line, monkeypatch, capsys):
    assert status_of(raising(error), monkeypatch, capsys) == (status, line + "\n")


def test_success_says_nothing(monkeypatch, capsys):
    assert status_of(lambda: None, monkeypatch, capsys) == (0, "")


def test_debug_lets_the_error_through(monkeypatch, capsys):
    with flagsaver.flagsaver(debug=True), pytest.raises(KeyError):
        status_of(raising(KeyError("x")), monkeypatch, capsys)


@pytest.mark.parametrize("flag", ["--help", "-h", "-help", "--helpshort"])
def test_help_wins_over_what_is_wrong_beside_it(flag, capsys):
    with pytest.raises(SystemExit) as left:
        app._parse(["train_main", "--bach_size=3", flag], train_main.__name__)
    assert left.value.code == 0 and "--batch_size" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        app._parse(["train_main", "--version"], train_main.__name__)
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"dilated_affinity {__version__} (")


def test_the_package_lists_its_commands(capsys):
    package.main([])
    printed = capsys.readouterr().out
    for name in ("train_main", "eval_main", "predict_main", "export_main", "report_main"):
        assert f"\n  {name} " in printed
    assert "Trains DeepLabv3+ with dilated affinity, or continues a training." in printed


def test_a_misspelt_command_is_refused_with_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dilated_affinity"])
    with pytest.raises(SystemExit) as left:
        package.main(["trian_main"])
    assert left.value.code == 2
    assert "Did you mean 'train_main'?" in capsys.readouterr().err


def seconds(program):
    start = time.perf_counter()
    subprocess.run([sys.executable, *program], check=True, capture_output=True, timeout=120)
    return time.perf_counter() - start


def test_import_loads_few_packages():
    program = (
        "import sys, tensorflow, keras\n"
        "before = set(sys.modules)\n"
        "import dilated_affinity\n"
        "print(*{name.partition('.')[0] for name in sys.modules.keys() - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "dilated_affinity" in loaded
    assert not loaded & {
        "tensorflow_datasets",
        "scipy",
        "jax",
        "onnx",
        "pydensecrf2",
        "tensorboard",
    }


@pytest.mark.slow
def test_help_answers_soon():
    """Under 6 s on an idle machine; on a busy one, little more than importing TensorFlow."""
    imports = seconds(["-c", "import tensorflow, keras"])
    answer = min(seconds(["-m", "dilated_affinity.cli.train_main", "--help"]) for _ in range(2))
    assert answer < max(6, 1.5 * imports)


def test_iterations_of_training_are_taken(parsed):
    given = ["train_main", "--iterations=3", "-iterations", "7", "--", "--flip"]
    arguments, notes = with_new_names(given)
    assert arguments == ["train_main", "--train_steps=3", "--train_steps", "7", "--", "--flip"]
    assert notes == 2 * ["--iterations is called --train_steps since version 0.2.0"]
    assert with_new_names(["train_main", "--random_flip", "--seed=1"])[1] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--noflip", "--norandom_flip"),
        ("--flip", "--random_flip"),
        ("--structure=aaf", "--objective"),
        ("--postprocess=crf", "--refine"),
        ("--refinement=exact", "--refine"),
    ],
)
def test_other_renamed_flags_are_refused(parsed, old, new):
    with pytest.raises(flags.Error, match=f"is called {new} since version 0.2.0"):
        with_new_names(["train_main", old])


@pytest.mark.parametrize(
    ("name", "old", "value", "new"),
    [
        ("eval_main", "refine_with", "prediction", "affinity_source"),
        ("export_main", "iterations", 1, "propagation_iterations"),
        ("predict_main", "window", 1, "eval_window"),
    ],
)
def test_commands_refuse_renamed_flags(name, old, value, new):
    result = command(name, f"--{old}={value}")
    last = result.stderr.strip().splitlines()[-1]
    assert f"--{old} is called --{new} since version 0.2.0" in last and result.returncode == 2
