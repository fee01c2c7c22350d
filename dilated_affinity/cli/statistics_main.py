"""Counts how often each number of agreeing neighbours occurs (section 3.2, Fig. 3).

    statistics_main --dataset=camvid --data_dir=CamVid --rates=8,16,32 --output=camvid.json
    statistics_main --masks=SegmentationClassAug.tar --num_classes=21 --rates=8,16 --plot=voc.png

over the labels of a data set, or over masks without images in a folder or a tar archive. The JSON
file can be given to train_main as --statistics.
"""

from pathlib import Path

from absl import flags

from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.cli import app, config_flags
from dilated_affinity.config import Config
from dilated_affinity.datasets.classes import IGNORE_LABEL
from dilated_affinity.datasets.files.masks import MaskFiles
from dilated_affinity.datasets.registry import label_readers, load_source
from dilated_affinity.errors import ConfigError
from dilated_affinity.runtime.files import write_atomically
from dilated_affinity.runtime.progress import progress
from dilated_affinity.visualization import count_frequency_figure

_PLOT_SUFFIXES = (".png", ".pdf", ".svg")

_given = config_flags.define(("dataset", "data_dir", "rates"))
_SPLIT = flags.DEFINE_string("split", None, "Split to count. Default: the training split.")
_MASKS = flags.DEFINE_string(
    "masks",
    None,
    "Count these label masks (grey or palette PNG) instead of a data set: a folder, a .tar, "
    ".tar.gz or .tgz file. An archive is not unpacked.",
)
_IGNORE_LABEL = flags.DEFINE_integer(
    "ignore_label", IGNORE_LABEL, "With --masks: the void label.", lower_bound=0, upper_bound=255
)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes",
    None,
    "With --masks: refuse masks with other values than 0 to num_classes - 1 and the void label.",
    lower_bound=1,
    upper_bound=256,
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_PLOT = flags.DEFINE_string(
    "plot", None, f"Figure to write, like Fig. 3 of the paper ({', '.join(_PLOT_SUFFIXES)})."
)


def _count():
    if _PLOT.value and Path(_PLOT.value).suffix.lower() not in _PLOT_SUFFIXES:
        raise ConfigError(
            f"--plot must end in one of {', '.join(_PLOT_SUFFIXES)}. Received: {_PLOT.value}"
        )
    name, count, statistics = _of_dataset() if _MASKS.value is None else _of_masks()
    print(f"{name}: {count} label maps, % of pixels by positive neighbours")
    print(statistics.table())
    if _OUTPUT.value:
        statistics.save(_OUTPUT.value)
    if _PLOT.value:
        figure = count_frequency_figure(statistics)
        write_atomically(_PLOT.value, lambda path: figure.savefig(path, dpi=120))


def _of_dataset():
    for name in ("ignore_label", "num_classes"):
        if flags.FLAGS[name].present:
            raise ConfigError(f"--{name} is for --masks; a data set knows its own.")
    config = config_flags.recipe_with(_given())
    rates = _rates(config)
    source = load_source(config.dataset, _SPLIT.value or config.train_split, config.data_dir)
    readers = progress(label_readers(source), "affinity statistics")
    statistics = AffinityStatistics.from_labels(readers, rates)
    return config.dataset, len(source), statistics


def _of_masks():
    for name in ("dataset", "data_dir", "split"):
        if flags.FLAGS[name].present:
            raise ConfigError(f"--masks counts masks instead of a data set; drop --{name}.")
    rates = _rates(Config(**_given()))
    masks = MaskFiles(_MASKS.value, _NUM_CLASSES.value, _IGNORE_LABEL.value)
    readers = progress(masks, "affinity statistics", masks.count)
    statistics = AffinityStatistics.from_labels(readers, rates, _IGNORE_LABEL.value)
    return _MASKS.value, masks.count, statistics


def _rates(config):
    if config.affinity_rates is None:
        raise ConfigError("--rates=none leaves nothing to count.")
    return config.affinity_rates


def main():
    """Entry point of the console script."""
    app.run(_count)


if __name__ == "__main__":
    main()
