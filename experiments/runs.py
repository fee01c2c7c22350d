"""The queue of runs behind the tables and figures: doing those that are not yet done.

A run is a variant (what the paper varies), a data set, a scale and a seed. It trains in a folder
below `--runs_dir`, where `train` continues what was interrupted, and leaves one JSON below
`--results_dir`. A run whose JSON is there with the same settings is not repeated, whichever table
asks for it. Measured is the last checkpoint, not the best on the split that is reported.
"""

import contextlib
import dataclasses
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import keras
import numpy as np
from absl import flags, logging
from PIL import Image

from dilated_affinity.affinity.geometry import format_rates, parse_rates
from dilated_affinity.baselines.boundary import SIGMA
from dilated_affinity.baselines.crf import DenseCRF
from dilated_affinity.cli import app, config_flags
from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError, RunError
from dilated_affinity.evaluation import evaluate as evaluation
from dilated_affinity.evaluation.calibration import calibrate
from dilated_affinity.runtime.system import configure_malloc
from dilated_affinity.training.trainer import load_run, train
from experiments.records import (
    RESULTS,
    read_json,
    recorded_settings,
    run_record,
    write_json,
)
from experiments.tables import Records, Table, markdown
from experiments.variants import SCALES, VARIANTS, Scale

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
_MAY_DIFFER = {
    field.name
    for field in dataclasses.fields(Config)
    if field.metadata["resumable"] and field.name != "backbone_weights"
}
"""Settings that change nothing that a run is recorded for."""

_RUN_DECIDES = ("dataset", "seed", "structure", "rates", "beta", "weighting")


def define_flags(dataset="voc2012_aug", scale="paper"):
    """Defines the flags of every experiment; returns a function that makes a `Queue` of them."""
    given = config_flags.define(
        [
            field.name
            for field in dataclasses.fields(Config)
            if field.name not in _RUN_DECIDES
            # The tables say how runs are measured.
            and field.metadata["group"] not in ("evaluation", "refinement")
        ],
        default="the recipe's and the scale's",
    )
    datasets = sorted({name for scales in SCALES.values() for name in scales})
    own = {"module_name": "__main__"}  # where --help looks for a command's own flags
    flags.DEFINE_enum("dataset", dataset, datasets, "Data set.", **own)
    flags.DEFINE_enum("scale", scale, list(SCALES), "Size of the runs.", **own)
    flags.DEFINE_list("seeds", ["0"], "Seeds of the runs; the paper names none.", **own)
    flags.DEFINE_string("runs_dir", "runs/experiments", "Where runs train.", **own)
    flags.DEFINE_string(
        "results_dir",
        None,
        "Where their JSON go. Default: experiments/results; for smoke runs_dir/results.",
        **own,
    )

    def queue():
        configure_malloc()
        values = flags.FLAGS
        results_dir = values.results_dir or (
            Path(values.runs_dir, "results") if values.scale == "smoke" else RESULTS
        )
        return Queue(
            values.dataset,
            values.scale,
            _seeds(values.seeds),
            Path(values.runs_dir),
            Path(results_dir),
            given(),
        )

    return queue


def main(table: Table):
    """Entry point of a table's module: does its runs and prints it."""
    make_queue = define_flags(table.dataset)

    def run_table():
        queue = make_queue()
        queue.run(table.variants)
        print(f"{table.title}: mIoU in %")
        print(markdown(table, Records(queue.results_dir), [(queue.dataset, queue.scale)]))

    run_table.__module__ = "__main__"  # whose docstring --help shows
    app.run(run_table)


@dataclasses.dataclass(frozen=True)
class Queue:
    """Runs of one data set and scale.

    Attributes:
        dataset: Name of the data set.
        scale: A key of `variants.SCALES`.
        seeds: Seeds of the runs.
        runs_dir: Where they train.
        results_dir: Where their JSON go.
        given: Settings that replace those of recipe and scale.
    """

    dataset: str
    scale: str
    seeds: tuple[int, ...]
    runs_dir: Path
    results_dir: Path
    given: dict

    def __post_init__(self):
        if self.dataset not in SCALES[self.scale]:
            raise ConfigError(
                f"The scale {self.scale} is for {', '.join(SCALES[self.scale])}. "
                f"Received: dataset={self.dataset!r}"
            )

    @property
    def size(self) -> Scale:
        """The scale of this data set."""
        return SCALES[self.scale][self.dataset]

    def run(self, variants):
        """Does every run of the variants that is not done, seed after seed."""
        for seed in self.seeds:
            for variant in variants:
                config = self.config(variant, seed)
                if not self.is_done(variant, config):
                    self._do(variant, config)

    def name(self, variant, seed) -> str:
        """Name of a run, of its folder and of its JSON."""
        return f"{self.dataset}_{self.scale}_{variant}_seed{seed}"

    def model_dir(self, variant, seed) -> Path:
        """Where a run trains."""
        return self.runs_dir / self.name(variant, seed)

    def config(self, variant, seed, **overrides) -> Config:
        """Settings of a run."""
        chosen = VARIANTS[variant]
        # Calibrated is the last checkpoint, when it is measured.
        settings = {"calibrate": "none", **self.size.settings, **self.given}
        settings |= {"seed": seed, "structure": chosen.structure}
        if chosen.has_affinity:
            settings["rates"] = format_rates(self.rates(chosen.rates))
            settings["weighting"] = chosen.weighting
            settings["beta"] = self.beta(variant)
            if variant in self.choices():
                # Those of before there was a setting are of the mean.
                reduction = self.choices()[variant].get("affinity_reduction", "mean")
                settings["affinity_reduction"] = reduction
        if chosen.structure == "boundary":
            scaled = SIGMA / self.size.divisor
            settings["boundary_sigma"] = self.given.get("boundary_sigma", scaled)
        config = Config.for_dataset(self.dataset, **{**settings, **overrides})
        if self.size.halved:
            config = config.replace(data_dir=str(halved_camvid(config, self.runs_dir)))
        return config

    def rates(self, text):
        """The paper's rates at this scale's size of images."""
        divisor = self.size.divisor
        return tuple((r1 // divisor, r2 // divisor) for r1, r2 in parse_rates(text))

    def beta(self, variant) -> float:
        """Beta as `beta_search` chose it, or the paper's times the scale's factor."""
        searched = self.choices().get(variant)
        return searched["beta"] if searched else self.default_beta(variant)

    def default_beta(self, variant) -> float:
        """The paper's beta times the scale's factor."""
        return VARIANTS[variant].beta * self.size.beta_factor

    @property
    def choices_path(self) -> Path:
        """Where `beta_search` leaves what it chose."""
        return self.results_dir / f"choices_{self.dataset}_{self.scale}.json"

    def choices(self) -> dict:
        """What `beta_search` chose, by variant."""
        return read_json(self.choices_path)["choices"] if self.choices_path.is_file() else {}

    def is_done(self, variant, config) -> bool:
        """Whether the run's JSON is there; a `RunError` if it is one of other settings."""
        path = self.results_dir / f"{self.name(variant, config.seed)}.json"
        if not path.is_file():
            return False
        now = recorded_settings(dataclasses.asdict(config))
        # A setting that the record does not know is newer than it, and had its default then.
        earlier = {**_DEFAULTS, **read_json(path)["config"]}
        changed = sorted(
            name for name in now if name not in _MAY_DIFFER and earlier[name] != now[name]
        )
        if changed:
            raise RunError(
                f"{path}: holds a run with another {', '.join(changed)}. Remove it, and its folder "
                "in runs_dir, to run again."
            )
        logging.info("%s: done before", path.stem)
        return True

    def _do(self, variant, config):
        name, model_dir = self.name(variant, config.seed), self.model_dir(variant, config.seed)
        logging.info("%s", name)
        self.train(config, model_dir)
        with _seconds(model_dir, "evaluation"):
            measured = self.measure(variant, config, model_dir)
        record = {
            "dataset": self.dataset,
            "scale": self.scale,
            "variant": variant,
            **run_record(model_dir),
            "seconds": read_json(model_dir / _SECONDS),
            "evaluation": measured,
        }
        write_json(self.results_dir / f"{name}.json", record)

    def train(self, config, model_dir):
        """Trains a run to its end, from where it stopped."""
        keras.utils.clear_session()
        with _seconds(model_dir, "training"):
            train(config, model_dir)

    def measure(self, variant, config, model_dir) -> dict:
        """The evaluations of a trained run, as JSON."""
        model = last_model(config, model_dir)
        source = load_source(config.dataset, config.val_split, config.data_dir)
        if VARIANTS[variant].has_affinity:
            train_source = load_source(config.dataset, config.train_split, config.data_dir)
            return self._refinements(model, train_source, source, self.choices().get(variant))
        found = {"predicted": evaluation.evaluate(model, source, (0,)).to_json()}
        if variant == "deeplab":
            crf = self._dense_crf()
            if crf is not None:
                counts = (0, crf.iterations)
                measured = evaluation.evaluate(model, source, counts, refinement=crf)
                found["crf"] = {"settings": dataclasses.asdict(crf), **measured.to_json()}
        return found

    def _refinements(self, model, train_source, source, choice):
        """Tables 3 and 4: the paper's lambda and mu, calibrated, and those of `beta_search`."""
        found = {
            kind: evaluation.evaluate(model, source, affinity_source=kind).to_json()
            for kind in evaluation.AFFINITY_SOURCES
        }
        calibration = calibrate(model, train_source, images=self.size.calibration_images)
        measured = evaluation.evaluate(model, source, refinement=calibration.refinement)
        found["calibrated"] = {"calibration": calibration.to_json(), **measured.to_json()}
        if choice is not None:
            settings = choice["refinement"]
            iterations = settings["propagation_iterations"]
            measured = evaluation.evaluate(
                model,
                source,
                (0, iterations) if iterations else (0,),
                self_weight=settings["self_weight"],
                mu=settings["mu"],
                threshold=settings.get("affinity_threshold"),
                symmetric=settings.get("symmetric_affinity"),
            )
            found["chosen"] = {"settings": settings, **measured.to_json()}
        return found

    def _dense_crf(self):
        """The CRF of Table 5 at this scale; None, saying so, without the extra."""
        try:
            crf = DenseCRF(bilateral_xy=DenseCRF.bilateral_xy / self.size.divisor)
            crf.check_installed()
            return crf
        except ConfigError as error:
            logging.warning("%s Remove the run's JSON then, to measure it again.", error)
            return None


def last_model(config: Config, model_dir: Path) -> keras.Model:
    """The model of a run's last checkpoint, at its evaluation output stride."""
    try:
        return load_run(model_dir, False, "last", eval_output_stride=config.eval_output_stride)[1]
    except RunError as error:
        raise RunError(f"{error} Remove the run's JSON to train it again.") from None


def halved_camvid(config: Config, folder: Path) -> Path:
    """CamVid at 240x180, made below `folder` from the images in the config's `data_dir`.

    Images are averaged over 2x2 pixels, of labels every second row and column is kept.
    """
    target = folder / "camvid_240x180"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder))
    for split in ("train", "val"):
        source = load_source("camvid", split, config.data_dir)
        for kind in (split, f"{split}annot"):
            (aside / kind).mkdir()
        for index in range(len(source)):
            example = source[index]
            label = example["label"][::2, ::2]
            image = cv2.resize(example["image"], label.shape[::-1], interpolation=cv2.INTER_AREA)
            void = source.classes.num_classes
            label = np.where(label == source.classes.ignore_label, void, label).astype(np.uint8)
            file_name = Path(example["id"]).with_suffix(".png").name
            Image.fromarray(image).save(aside / split / file_name)
            Image.fromarray(label).save(aside / f"{split}annot" / file_name)
    aside.chmod(0o755)
    with contextlib.suppress(OSError):  # another queue was faster
        aside.rename(target)
    shutil.rmtree(aside, ignore_errors=True)
    return target


_SECONDS = "seconds.json"


@contextlib.contextmanager
def _seconds(model_dir, what):
    """Adds the time that something takes, even if it is interrupted, to the run's file of times."""
    start = time.monotonic()
    try:
        yield
    finally:
        path = model_dir / _SECONDS
        earlier = read_json(path) if path.is_file() else {}
        took = round(time.monotonic() - start, 1)
        with contextlib.suppress(OSError):  # what was raised inside says more
            write_json(path, {**earlier, what: round(earlier.get(what, 0) + took, 1)})


def _seeds(texts):
    try:
        seeds = tuple(map(int, texts))
    except ValueError:
        raise ConfigError(f"--seeds must be whole numbers. Received: {','.join(texts)}") from None
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds must name seeds, each once. Received: {','.join(texts)}")
    return seeds
