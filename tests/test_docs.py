"""The documentation builds without a warning, its links lead somewhere, and its code runs."""

import csv
import dataclasses
import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import keras
import numpy as np
import pytest
from helpers.forked import run_forked
from helpers.tiny import tiny_config, write_camvid
from helpers.tiny_run import write_run
from matplotlib import pyplot as plt
from PIL import Image

import dilated_affinity
from dilated_affinity import visualization
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.config import OBJECTIVES, Config
from dilated_affinity.models import deeplab
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.training.compile import compile_model
from dilated_affinity.training.objectives import registry
from dilated_affinity.training.objectives.registry import objective_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


class Page(html.parser.HTMLParser):
    """The links and anchors of a page, and the addresses of what it shows and runs."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.loaded = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        self.anchors.add(attributes.get("id"))
        if attributes.get("src") or tag == "link":
            self.loaded.append(attributes.get("src") or attributes["href"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    folder = tmp_path_factory.mktemp("docs")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(folder)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_link_within_the_pages_leads_somewhere(built):
    pages = {path: Page(path) for path in built.rglob("*.html")}
    assert len(pages) > 8
    for path, page in pages.items():
        for link in page.links:
            address, anchor = urldefrag(unquote(link))
            if re.match(r"[a-z]+:|//", address):
                continue
            target = (path.parent / address.partition("?")[0]).resolve() if address else path
            assert target.exists(), f"{path.name}: {link}"
            if anchor and target in pages and "genindex" not in path.name:
                assert anchor in pages[target].anchors, f"{path.name}: {link}"


@pytest.mark.slow
def test_the_pages_are_whole_without_a_network(built):
    for path in built.rglob("*.html"):
        assert not [link for link in Page(path).loaded if re.match(r"([a-z]+:)?//", link)], path
    assert (built / "method.html").read_text(encoding="utf-8").count("<math ") > 10


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(built):
    anchors = Page(built / "api.html").anchors
    for module in (dilated_affinity, visualization):
        for name in module.__all__:
            item = getattr(module, name)
            if callable(item):
                known = {f"{module.__name__}.{name}", f"{item.__module__}.{name}"}
                assert known & anchors, name


def test_relative_links_in_the_sources_lead_somewhere():
    sources = [
        ROOT / "README.md",
        ROOT / "WORKSPACE.md",
        *DOCS.glob("*.md"),
        *ROOT.glob("*/README.md"),
    ]
    for source in (*sources, *ROOT.glob("data/*/README.md")):
        for link in re.findall(r"\]\(([^)\s]+)\)", source.read_text(encoding="utf-8")):
            address = urldefrag(link)[0]
            if address and not re.match(r"[a-z]+:", address):
                assert (source.parent / address).exists(), f"{source}: {link}"


def code_of(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


@pytest.fixture
def known_names(monkeypatch):
    """Takes out again what a test adds to the tables of backbones and objectives."""
    monkeypatch.setattr(deeplab, "BACKBONES", dict(deeplab.BACKBONES))
    for table in (OBJECTIVES, registry._registered):
        for name in ("dice", "affinity_and_dice"):
            monkeypatch.setitem(table, name, None)


def test_the_code_that_shows_the_affinity_of_clicked_pixels(tmp_path):
    """As printed, but for the run and the images."""
    config, model_dir = write_run(tmp_path)
    (code,) = code_of("evaluation.md")
    images = f'"camvid", "val", {config.data_dir!r}'
    for old, new in (("runs/shapes", str(model_dir)), ('"shapes", "val", "data"', images)):
        assert old in code
        code = code.replace(old, new)
    plt.switch_backend("agg")
    exec(code, {})
    whole, pixel, _ = plt.gcf().axes
    plt.close()
    assert whole.get_title() == "click on a pixel" and pixel.collections


def test_the_examples_of_extending_work(tmp_path, known_names):
    names = {}
    for block in code_of("extending.md"):
        if "train_main" not in block:
            exec(block, names)
    for split in ("train", "val"):
        for kind, pixels in (
            ("images", np.zeros((6, 8, 3), np.uint8)),
            ("labels", np.array([[0, 1, 2, 9]], np.uint8).repeat(6, 0).repeat(2, 1)),
        ):
            (tmp_path / split / kind).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / split / kind / "a.png")
    source = names["Rooms"](data_dir=tmp_path).source("val")
    assert source[0]["label"][0].tolist() == [0, 0, 1, 1, 2, 2, 255, 255]
    assert names["model"](np.zeros((1, 33, 33, 3)))["semantic"].shape == (1, 33, 33, 3)

    logits = 50 * keras.utils.to_categorical([[[0, 1, 2, 0]]], 3)
    loss = names["DiceLoss"]()
    assert float(loss(np.array([[[0, 1, 2, 255]]]), logits)) == pytest.approx(0, abs=1e-5)
    assert float(loss(np.array([[[1, 2, 0, 255]]]), logits)) > 0.5

    config = tiny_config(".", objective="affinity_and_dice", rates="2", beta=0.5)
    labels = np.array([[[0, 1, 2, 255]]], np.uint8).repeat(33, 1).repeat(9, 2)[:, :, :33]
    statistics = AffinityStatistics.from_labels(labels, config.affinity_rates)
    fitted = compile_model(build_model(config, 3, statistics), config, statistics)
    targets = {"semantic": labels, **objective_of(config).targets(labels, config)}
    logs = fitted.test_on_batch(np.zeros((1, 33, 33, 3)), targets, return_dict=True)
    logs = {name: float(value) for name, value in logs.items()}
    total = logs["semantic_loss"] + 0.5 * logs["affinity_loss"] + 0.5 * logs["dice_loss"]
    assert logs["loss"] - float(sum(fitted.losses)) == pytest.approx(total, rel=1e-5)
    assert logs["dice_loss"] > 0.1


@pytest.mark.slow
def test_a_script_trains_with_the_objective_of_extending(tmp_path):
    """As printed, with the small network of the tests."""
    data = write_camvid(tmp_path / "camvid")
    blocks = code_of("extending.md")
    (module,) = (block for block in blocks if "class DiceLoss" in block)
    (script,) = (block for block in blocks if "train_main" in block)
    (tmp_path / "dice.py").write_text(module)
    (tmp_path / "train_dice.py").write_text(script)
    config = tiny_config(data, train_steps=2)
    given = {**dataclasses.asdict(config), "data_dir": str(data)}
    usual = dataclasses.asdict(Config.for_dataset("camvid"))
    flags = [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in given.items()
        if value != usual[name]
    ]
    done = run_forked("train_dice", "--objective=dice", "--model_dir=run", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = csv.DictReader((tmp_path / "run" / "log.csv").read_text().splitlines())
    assert 0 < float(row["dice_loss"]) < 1


def test_the_times_of_an_evaluation_are_those_measured():
    measured = json.loads((ROOT / "benchmarks/results/evaluation.json").read_text())
    page = (DOCS / "performance.md").read_text()
    for kind in ("clock", "processor"):
        for ratio in measured[kind]["evaluation_over"].values():
            assert f"{ratio:.2f}" in page
