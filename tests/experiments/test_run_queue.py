import dataclasses
import json

import numpy as np
import pytest
from helpers.tiny import tiny_config, write_camvid

from dilated_affinity.affinity.geometry import parse_rates
from dilated_affinity.config import Config
from dilated_affinity.errors import ConfigError, RunError
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.training.trainer import train
from experiments import beta_search, run_queue
from experiments.paper_figures import corrected_pixel
from experiments.paper_tables import Row
from experiments.records import RESULTS, read_json, write_json
from experiments.run_queue import Queue
from experiments.tables import Records
from experiments.variants import SCALES, VARIANTS, Scale


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Runs of a few steps of the tests' backbone."""
    tiny = dataclasses.asdict(tiny_config(write_camvid(tmp_path / "camvid", train=3, val=2)))
    left_to_the_queue = ("dataset", "data_dir", *run_queue.VARIED)
    settings = {name: value for name, value in tiny.items() if name not in left_to_the_queue}
    monkeypatch.setitem(SCALES["smoke"], "camvid", Scale(settings, divisor=4))
    given = {"data_dir": str(tmp_path / "camvid")}
    return Queue("camvid", "smoke", (0,), tmp_path / "runs", tmp_path / "results", given)


@pytest.mark.slow
def test_run_is_resumed_recorded_and_not_repeated(queue, monkeypatch):
    config = queue.config("rates_8_16", 0)
    assert config.affinity_rates == ((2, 2), (4, 4)) and config.beta == 1.5
    # As if the queue had been stopped in the middle of it.
    train(config, queue.model_dir("rates_8_16", 0), stop_after=2)
    queue.run(["rates_8_16"])
    (path,) = queue.results_dir.glob("*.json")
    assert path.name == "camvid_smoke_rates_8_16_seed0.json"
    record = json.loads(path.read_text())
    assert [row["step"] for row in record["log"]] == ["2", "4"]
    assert record["config"]["rates"] == config.rates
    assert "data_dir" not in record["config"] and str(queue.runs_dir) not in path.read_text()
    assert record["packages"]["keras"] and record["hardware"]["cores"]
    here = {name: record[name] for name in ("backend", "packages", "hardware")}
    assert here["backend"] == "tensorflow" and record["trained_on"] == [here]
    assert record["seconds"]["training"] > 0 and record["seconds"]["evaluation"] > 0
    for kind in ("predicted", "ground_truth"):
        assert record["evaluation"][kind]["iterations"] == [0, 1, 3, 6, 10]
    values = Records(queue.results_dir).values("camvid", "smoke", Row("", "rates_8_16"))
    assert values == {0: 100 * record["evaluation"]["predicted"]["mean_iou"][0]}

    monkeypatch.setattr(run_queue, "train", lambda *_: pytest.fail("trains again"))
    queue.run(["rates_8_16"])
    changed = dataclasses.replace(queue, given={**queue.given, "beta": 9.0, "gamma": 1.0})
    with pytest.raises(RunError, match="another gamma"):
        changed.run(["rates_8_16"])


def test_settings_of_the_affinity_do_not_matter_to_other_runs(queue):
    queue.results_dir.mkdir()
    for variant in ("deeplab", "rates_8_16"):
        config = queue.config(variant, 0)
        record = {"config": dataclasses.asdict(config)}
        write_json(queue.results_dir / f"{queue.name(variant, 0)}.json", record)
        changed = config.replace(affinity_head_multiplier=8.0)
        if variant == "deeplab":
            assert queue.is_done(variant, changed)
        else:
            with pytest.raises(RunError, match="another affinity_head_multiplier"):
                queue.is_done(variant, changed)


def test_searched_settings_replace_the_defaults(queue):
    queue.results_dir.mkdir()
    assert queue.config("rates_8_16", 0).beta == 1.5
    content = {"choices": {"rates_8_16": {"beta": 3.0}}}
    queue.choices_path.write_text(json.dumps(content))
    assert queue.config("rates_8_16", 0).beta == 3.0
    assert queue.config("rates_8_16", 0).affinity_reduction == "mean"
    assert queue.config("rates_8_16_32", 0).beta == 1.2
    content["choices"]["rates_8_16"]["affinity_reduction"] = "sum"
    queue.choices_path.write_text(json.dumps(content))
    assert queue.config("rates_8_16", 0).affinity_reduction == "sum"


def test_beta_search_chooses_the_best_beta_and_reduction(queue, monkeypatch):
    seen, values = [], (0.4, 0.5, 0.45, 0.55, 0.6, 0.3)
    grid = [(beta, reduction) for reduction in ("mean", "sum") for beta in (1.5, 3.0, 6.0)]
    mean_iou = dict(zip(grid, values, strict=True))

    def trained(queue, variant, seed, beta):
        config = queue.config(variant, seed)
        seen.append((seed, beta, config.affinity_reduction))
        return config, (beta, config.affinity_reduction), None

    class Found:
        best = Refinement(iterations=3)
        best_mean_iou = 0.75

        def to_json(self):
            return {}

    monkeypatch.setattr(beta_search, "_trained", trained)
    monkeypatch.setattr(
        beta_search.evaluation,
        "evaluate",
        lambda pair, source, iterations: type("Result", (), {"mean_iou": (mean_iou[pair],)}),
    )
    monkeypatch.setattr(beta_search.search, "search_refinement", lambda *_: Found())
    choice = beta_search.choose(queue, "rates_8_16", [1, 2, 4], ["mean", "sum"])
    assert (choice["beta"], choice["affinity_reduction"]) == (3.0, "sum")
    assert choice["refinement"] == {**Found.best.to_config(), "mean_iou": 0.75}
    assert seen == [(0, *pair) for pair in [*grid, (3.0, "sum")]]
    tried = {
        (each["beta"], each["affinity_reduction"]): each["mean_iou"] for each in choice["betas"]
    }
    assert tried == {pair: [value] for pair, value in mean_iou.items()}


def test_each_reduction_trains_in_a_folder_of_its_own(queue, monkeypatch):
    folders = {}
    monkeypatch.setattr(
        Queue, "train", lambda self, config, model_dir: folders.update({model_dir.name: config})
    )
    monkeypatch.setattr(beta_search, "last_model", lambda *_: None)
    monkeypatch.setattr(beta_search, "load_source", lambda *_: None)
    for reduction in ("mean", "sum"):
        beta_search._trained(beta_search._of(queue, reduction), "rates_8_16", 0, 3.0)
    name = "camvid_smoke_rates_8_16_seed0_beta3"
    assert {each: folders[each].affinity_reduction for each in folders} == {
        name: "mean",
        f"{name}_sum": "sum",
    }


@pytest.mark.parametrize(
    "split, parts",
    [("train", ("train[:80%]", "train[80%:]")), ("train[:8]", ("train[:6]", "train[6:8]"))],
)
def test_parts_of_train(split, parts):
    assert beta_search._parts(split) == parts


@pytest.mark.parametrize("split", ["train+val", "train[:8]+val[:2]", "train[2:8]"])
def test_splits_that_cannot_be_divided_are_refused(split):
    with pytest.raises(ConfigError, match="Cannot divide this split"):
        beta_search._parts(split)


def test_search_keeps_choices_written_meanwhile(queue, monkeypatch):
    queue.results_dir.mkdir()

    def choose(queue, variant, *_):
        queue.choices_path.write_text('{"choices": {"rates_8_16": {"beta": 7.0}}}')
        return {"beta": 2.0}

    monkeypatch.setattr(beta_search, "choose", choose)
    beta_search.search_for(queue, ["rates_8_16_32"], [1], ["mean"])
    assert queue.choices() == {"rates_8_16": {"beta": 7.0}, "rates_8_16_32": {"beta": 2.0}}


def test_boundary_sigma_is_scaled_unless_given(queue):
    assert queue.config("boundary", 0).boundary_sigma == 5.0 / queue.size.divisor
    given = dataclasses.replace(queue, given={**queue.given, "boundary_sigma": 3.0})
    assert given.config("boundary", 0).boundary_sigma == 3.0


def test_paper_scale_is_the_recipe(tmp_path):
    for dataset in SCALES["paper"]:
        queue = Queue(dataset, "paper", (0,), tmp_path, tmp_path, {})
        config = queue.config("rates_8_12x24_16", 0)
        # The last checkpoint is calibrated when it is measured.
        assert config == Config.for_dataset(dataset, calibrate="none")
        assert queue.config("deeplab", 0).affinity_rates is None


def test_small_scale_divides_rates_and_multiplies_betas(tmp_path):
    queue = Queue("shapes", "small", (0,), tmp_path, tmp_path, {})
    for name, variant in VARIANTS.items():
        config = queue.config(name, 3)
        assert (config.seed, config.objective) == (3, variant.objective)
        if variant.has_affinity:
            halves = tuple((r1 / 2, r2 / 2) for r1, r2 in parse_rates(variant.rates))
            assert config.affinity_rates == halves
            assert config.beta == variant.beta * 5


def test_camvid_is_halved_once(tmp_path):
    config = tiny_config(write_camvid(tmp_path / "camvid", train=2, val=1, size=(40, 48)))
    folder = run_queue.halved_camvid(config, tmp_path / "runs")
    halved = run_queue.load_source("camvid", "train", folder)
    whole = run_queue.load_source("camvid", "train", config.data_dir)
    assert len(halved) == 2 and halved.ids == whole.ids
    assert halved[0]["image"].shape == (20, 24, 3)
    assert (halved[1]["label"] == whole[1]["label"][::2, ::2]).all()
    blocks = whole[1]["image"].reshape(20, 2, 24, 2, 3).mean(axis=(1, 3))
    assert abs(halved[1]["image"] - blocks).max() <= 1
    stamp = folder.stat().st_mtime_ns
    assert run_queue.halved_camvid(config, tmp_path / "runs") == folder
    assert folder.stat().st_mtime_ns == stamp


def test_a_scale_refuses_other_data_sets(tmp_path):
    with pytest.raises(ConfigError, match="The scale paper is for .* Received: dataset='shapes'"):
        Queue("shapes", "paper", (0,), tmp_path, tmp_path, {})


def test_figure_1_shows_a_corrected_pixel():
    label = np.zeros((9, 9), int)
    before, after = label.copy(), label.copy()
    before[1, 1] = before[3, 4] = before[4, 4] = 1
    after[4, 4] = 1
    assert corrected_pixel(label, before, after) == (3, 4)
    assert corrected_pixel(label, after, after) == (4, 4)


def test_training_through_is_left_out_where_rates_do_not_allow_it(tmp_path, monkeypatch, caplog):
    done = []
    monkeypatch.setattr(
        Queue, "is_done", lambda self, variant, config: done.append(variant) or True
    )
    monkeypatch.setattr(Queue, "config", lambda self, variant, seed: None)
    for dataset, scale in (("shapes", "smoke"), ("camvid", "small"), ("folder", "animals")):
        queue = Queue(dataset, scale, (0,), tmp_path, tmp_path, {})
        queue.run(("deeplab", "trained_through"))
    assert done == ["deeplab", "deeplab", "deeplab", "trained_through"]
    assert [record.getMessage().split(",")[0] for record in caplog.records] == 2 * [
        "trained_through: left out"
    ]


def test_weight_of_training_through_is_the_variants_unless_given(tmp_path):
    queue = Queue("folder", "animals", (0,), tmp_path, tmp_path, {"data_dir": "animals"})
    assert queue.config("trained_through", 0).train_propagation_weight == 0.25
    assert queue.config("rates_8_12x24_16", 0).train_propagation_weight == 1.0
    given = dataclasses.replace(queue, given={**queue.given, "train_propagation_weight": 0.5})
    assert given.config("trained_through", 0).train_propagation_weight == 0.5


def test_800_steps_have_the_settings_of_the_longest_run(tmp_path):
    """But for half the filters."""
    recorded = read_json(RESULTS / "animals_mobilenet_v2.json")["config"]
    config = Queue("folder", "animals_800", (0,), tmp_path, tmp_path, {}).config(
        "rates_8_12x24_16", 0
    )
    settings = dataclasses.asdict(config)
    changed = {name for name in recorded if recorded[name] != settings[name]}
    assert changed <= {"filters", "calibrate", "data_dir", "backbone_weights", "num_replicas"}
    assert (settings["filters"], recorded["filters"]) == (128, 256)
