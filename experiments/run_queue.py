"""The queue of the runs that tables and figures need; it does those that are not yet done.

A run is a variant, a data set, a scale and a seed. It trains in a folder below `--runs_dir`, where
`train` continues an interrupted run, and writes one JSON record to `--results_dir`. A run that has
a record of the same settings is not repeated, whichever table needs it. The last checkpoint is
evaluated instead of the best one, which would be chosen on the reported split.
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
from absl import logging
from PIL import Image

from dilated_affinity.affinity.geometry import format_rates, parse_rates
from dilated_affinity.baselines.boundary import SIGMA
from dilated_affinity.baselines.crf import DenseCRF
from dilated_affinity.config import Config
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.errors import ConfigError, RunError
from dilated_affinity.evaluation import evaluate as evaluation
from dilated_affinity.evaluation.calibration import calibrate
from dilated_affinity.inference.refinement import as_refinement
from dilated_affinity.run_dir.load import load_run
from dilated_affinity.training.trainer import train
from experiments.records import read_json, recorded_settings, run_record, write_json
from experiments.variants import SCALES, VARIANTS, Scale

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}
_MAY_DIFFER = {
    field.name
    for field in dataclasses.fields(Config)
    if field.metadata["resumable"] and field.name != "backbone_weights"
}
"""Settings that do not change the results of a run."""

_OF_AFFINITY = {"beta", "affinity_head_multiplier"}
"""Settings that do not change those of a run without affinity."""

_DECODER_STRIDE = 4

VARIED = ("dataset", "seed", "objective", "rates", "beta", "weighting")
"""Settings that the variant, the data set and the seed of a run decide."""


@dataclasses.dataclass(frozen=True)
class Queue:
    """Runs of one data set and scale.

    Attributes:
        dataset: Name of the data set.
        scale: A key of `variants.SCALES`.
        seeds: Seeds of the runs.
        runs_dir: Folder to train in.
        results_dir: Folder for the records.
        given: Settings that override the recipe and the scale.
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
        """Trains and evaluates every run of the variants that is not done, seed after seed."""
        possible = [variant for variant in variants if self.is_possible(variant)]
        for variant in sorted(set(variants) - set(possible)):
            logging.warning(
                "%s: left out, for it propagates at the decoder's stride of %d, which does not "
                "divide its rates at the scale %s",
                variant,
                _DECODER_STRIDE,
                self.scale,
            )
        for seed in self.seeds:
            for variant in possible:
                config = self.config(variant, seed)
                if not self.is_done(variant, config):
                    self._do(variant, config)

    def is_possible(self, variant) -> bool:
        """Returns whether the rates of this scale allow what the variant does in training."""
        if not VARIANTS[variant].train_propagation:
            return True
        rates = self.rates(VARIANTS[variant].rates)
        return not any(side % _DECODER_STRIDE for rate in rates for side in rate)

    def name(self, variant, seed) -> str:
        """Name of a run, of its folder and of its record."""
        return f"{self.dataset}_{self.scale}_{variant}_seed{seed}"

    def model_dir(self, variant, seed) -> Path:
        """Folder of a run."""
        return self.runs_dir / self.name(variant, seed)

    def config(self, variant, seed, **overrides) -> Config:
        """Settings of a run."""
        chosen = VARIANTS[variant]
        # The last checkpoint is calibrated when it is evaluated.
        settings = {"calibrate": "none", **self.size.settings, **self.given}
        settings |= {"seed": seed, "objective": chosen.objective}
        if chosen.has_affinity:
            settings["rates"] = format_rates(self.rates(chosen.rates))
            settings["weighting"] = chosen.weighting
            settings["beta"] = self.beta(variant)
            if chosen.train_propagation:
                settings["train_propagation"] = chosen.train_propagation
                settings.setdefault("train_propagation_weight", chosen.train_propagation_weight)
            if variant in self.choices():
                # Choices of version 0.1.0 without it are of the mean.
                reduction = self.choices()[variant].get("affinity_reduction", "mean")
                settings["affinity_reduction"] = reduction
        if chosen.objective == "boundary":
            scaled = SIGMA / self.size.divisor
            settings["boundary_sigma"] = self.given.get("boundary_sigma", scaled)
        config = Config.for_dataset(self.dataset, **{**settings, **overrides})
        if self.size.halved:
            config = config.replace(data_dir=str(halved_camvid(config, self.runs_dir)))
        return config

    def rates(self, text):
        """The paper's rates divided by the divisor of this scale."""
        divisor = self.size.divisor
        return tuple((r1 // divisor, r2 // divisor) for r1, r2 in parse_rates(text))

    def beta(self, variant) -> float:
        """The beta that `beta_search` chose, by default the paper's times the scale's factor."""
        searched = self.choices().get(variant)
        return searched["beta"] if searched else self.default_beta(variant)

    def default_beta(self, variant) -> float:
        """The paper's beta times the scale's factor."""
        return VARIANTS[variant].beta * self.size.beta_factor

    @property
    def choices_path(self) -> Path:
        """File to which `beta_search` writes its choices."""
        return self.results_dir / f"choices_{self.dataset}_{self.scale}.json"

    def choices(self) -> dict:
        """The choices of `beta_search` by variant."""
        return read_json(self.choices_path)["choices"] if self.choices_path.is_file() else {}

    def is_done(self, variant, config) -> bool:
        """Returns whether the run has a record; raises `RunError` for one of other settings."""
        path = self.results_dir / f"{self.name(variant, config.seed)}.json"
        if not path.is_file():
            return False
        now = recorded_settings(dataclasses.asdict(config))
        # Settings that the record lacks were added later, with their defaults at that time.
        earlier = {**_DEFAULTS, **read_json(path)["config"]}
        unused = set() if VARIANTS[variant].has_affinity else _OF_AFFINITY
        changed = sorted(
            name for name in now if name not in _MAY_DIFFER | unused and earlier[name] != now[name]
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
        """Trains a run to its end, from its last checkpoint on."""
        keras.utils.clear_session()
        with _seconds(model_dir, "training"):
            train(config, model_dir)

    def measure(self, variant, config, model_dir) -> dict:
        """Evaluates a trained run, all its refinements in one pass; returns JSON types."""
        model = last_model(config, model_dir)
        source = load_source(config.dataset, config.val_split, config.data_dir)
        measurements, settings = self._measurements(variant, config, model)
        found = evaluation.evaluate_all(model, source, list(measurements.values()))
        return {
            name: {**settings.get(name, {}), **each.to_json()}
            for name, each in zip(measurements, found, strict=True)
        }

    def _measurements(self, variant, config, model):
        """What to measure, by name, and settings to record beside it."""
        measurements, settings = {}, {}
        if not VARIANTS[variant].has_affinity:
            measurements["predicted"] = evaluation.Measurement(iterations=(0,))
        else:
            for kind in evaluation.AFFINITY_SOURCES:
                measurements[kind] = evaluation.Measurement(affinity_source=kind)
            source = load_source(config.dataset, config.train_split, config.data_dir)
            calibration = calibrate(model, source, images=self.size.calibration_images)
            measurements["calibrated"] = evaluation.Measurement(calibration.refinement)
            settings["calibrated"] = {"calibration": calibration.to_json()}
            choice = self.choices().get(variant)
            if choice is not None:
                measurements["chosen"] = _chosen(choice["refinement"])
                settings["chosen"] = {"settings": choice["refinement"]}
        crf = self._dense_crf() if VARIANTS[variant].crf else None
        if crf is not None:
            refinement = as_refinement(crf)
            measurements["crf"] = evaluation.Measurement(refinement, (0, crf.iterations))
            settings["crf"] = {"settings": dataclasses.asdict(crf)}
        return measurements, settings

    def _dense_crf(self):
        """The CRF of Table 5 at this scale; None with a warning if the extra is not installed."""
        try:
            crf = DenseCRF(bilateral_xy=DenseCRF.bilateral_xy / self.size.divisor)
            crf.check_installed()
            return crf
        except ConfigError as error:
            logging.warning("%s Then remove the run's record to evaluate it again.", error)
            return None


def _chosen(settings):
    """What to measure of the settings that `beta_search` chose."""
    refinement = as_refinement(
        iterations=settings["propagation_iterations"],
        self_weight=settings["self_weight"],
        mu=settings["mu"],
        # Choices of version 0.1.0 lack these.
        threshold=settings.get("affinity_threshold"),
        symmetric=settings.get("symmetric_affinity"),
    )
    return evaluation.Measurement(refinement, tuple(sorted({0, refinement.iterations})))


def last_model(config: Config, model_dir: Path) -> keras.Model:
    """The model of a run's last checkpoint, at its evaluation output stride."""
    try:
        return load_run(model_dir, False, "last", eval_output_stride=config.eval_output_stride)[1]
    except RunError as error:
        raise RunError(f"{error} Remove the run's record to train it again.") from None


def halved_camvid(config: Config, folder: Path) -> Path:
    """Writes CamVid at 240x180 below `folder`, unless it is there, and returns its folder.

    Images are averaged over 2x2 pixels; labels keep every second row and column.
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
    """Adds the time spent in the context, interrupted or not, to the run's file of times."""
    start = time.monotonic()
    try:
        yield
    finally:
        path = model_dir / _SECONDS
        earlier = read_json(path) if path.is_file() else {}
        took = round(time.monotonic() - start, 1)
        with contextlib.suppress(OSError):  # an error raised inside matters more
            write_json(path, {**earlier, what: round(earlier.get(what, 0) + took, 1)})
