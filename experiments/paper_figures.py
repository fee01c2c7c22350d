"""The paper's figures: the runs that each needs, and what it draws from them.

The docstring of a figure's function is the help of its command.
"""

import numpy as np

from dilated_affinity.affinity.geometry import format_rates
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.datasets.registry import label_readers, load_source
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.inference.refinement import Refinement
from dilated_affinity.visualization import calibration_figure, count_frequency_figure
from experiments.paper_tables import TABLES
from experiments.plots import accuracy_figure, affinity_example, save
from experiments.records import read_json
from experiments.run_queue import Queue, last_model
from experiments.tables import Records

_METHOD = "rates_8_12x24_16"
_CALIBRATED = "weighting_sqrt_neighbor"
_RATES = "8,16,24,32,40,48,56,64"


def figure1(queue: Queue, index: int):
    """Figure 1, the affinity of a pixel with its neighbours, and what propagation makes of it.

    For one image: the labels of DeepLabv3+, the neighbours of a pixel at every rate (yellow where
    the same class is predicted, blue elsewhere, as in the paper), the refined labels and the ground
    truth. The pixel is one that DeepLabv3+ gets wrong and the method right, where there is one.

        python -m experiments.run figure1 --data_dir=VOC --index=17
        python -m experiments.run figure1 --dataset=camvid --scale=small --data_dir=CamVid \\
            --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5
        python -m experiments.run figure1 --dataset=shapes --scale=smoke

    Writes figure1_<dataset>_<scale>_<index>.png below --runs_dir instead of --results_dir: it shows
    an image of the data set, whose licence may not allow publishing it.

    Cost: two runs, those of Table 6.
    """
    queue.run(("deeplab", _METHOD))
    predictors = []
    for variant in ("deeplab", _METHOD):
        config = queue.config(variant, queue.seeds[0])
        model = last_model(config, queue.model_dir(variant, queue.seeds[0]))
        predictors.append(Predictor(model, refinement=Refinement.from_config(config)))
    source = load_source(config.dataset, config.val_split, config.data_dir)
    example = source[index % len(source)]
    plain, refined = (predict(example["image"]) for predict in predictors)
    figure = affinity_example(
        example["image"],
        example["label"],
        plain,
        refined,
        predictors[-1].rates,
        corrected_pixel(example["label"], plain.labels, refined.labels),
        source.classes,
    )
    path = queue.runs_dir / f"figure1_{queue.dataset}_{queue.scale}_{index}.png"
    save(figure, path)
    print(path)


def figure3(queue: Queue):
    """Figure 3, frequencies of n0 to n8 by dilation rate, over the training labels.

    The paper draws them for PASCAL VOC 2012 and Cityscapes train and gives no numbers.

        python -m experiments.run figure3 --data_dir=VOC
        python -m experiments.run figure3 --dataset=camvid --scale=small --data_dir=CamVid
        python -m experiments.run figure3 --dataset=shapes --scale=smoke

    Writes the counts, frequencies_<dataset>_<scale>.json, and figure3_<dataset>_<scale>.png. The
    counts of VOC's 10,582 masks are recorded in voc2012_trainaug_statistics.json.

    Cost: no training. A pass over the labels, which takes about 7 minutes for VOC on two CPU cores
    and seconds for CamVid.
    """
    config = queue.config("deeplab", queue.seeds[0])
    source = load_source(config.dataset, config.train_split, config.data_dir)
    rates = queue.rates(_RATES)
    statistics = AffinityStatistics.from_labels(label_readers(source), rates)
    name = f"{queue.dataset}_{queue.scale}"
    statistics.save(queue.results_dir / f"frequencies_{name}.json")
    save(count_frequency_figure(statistics), queue.results_dir / f"figure3_{name}.png")
    print(f"{name}, {len(source)} label maps, rates {format_rates(rates)}")
    print(statistics.table())


def figure4(queue: Queue):
    """Figure 4, accuracy of the predicted affinity for n0 to n8, by rate and weighting.

    For R = {8,16,32,64} on PASCAL VOC 2012 val, the paper draws sqrt-reweight and neighbor-reweight
    by rate, and all weightings averaged over the rates. It gives no numbers; by its text,
    neighbor-reweight is best for n0 to n3, sqrt-reweight and the baseline for n4 to n8.

        python -m experiments.run figure4 --data_dir=VOC
        python -m experiments.run figure4 --dataset=camvid --scale=small --seeds=0,1,2 \\
            --data_dir=CamVid --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5
        python -m experiments.run figure4 --dataset=shapes --scale=smoke

    Writes figure4_<dataset>_<scale>.png beside the records of the runs, and
    figure4_calibration_<dataset>_<scale>.png, a reliability diagram of the affinity by neighbour
    count before and after calibration, for the first seed of sqrt-reweight.

    Cost: the runs of Table 1.
    """
    queue.run(TABLES["table1"].variants)
    figure = accuracy_figure(Records(queue.results_dir), queue.dataset, queue.scale)
    path = queue.results_dir / f"figure4_{queue.dataset}_{queue.scale}.png"
    save(figure, path)
    print(path)
    record = read_json(queue.results_dir / f"{queue.name(_CALIBRATED, queue.seeds[0])}.json")
    # Records of version 0.1.0 may have no calibration.
    if "calibrated" in record["evaluation"]:
        figure = calibration_figure(record["evaluation"]["calibrated"]["calibration"])
        path = path.with_name(f"figure4_calibration_{queue.dataset}_{queue.scale}.png")
        save(figure, path)
        print(path)


def corrected_pixel(label, before, after) -> tuple[int, int]:
    """The corrected pixel nearest to the middle of the image; the middle if none was corrected."""
    middle = np.array(label.shape) // 2
    corrected = np.argwhere((before != label) & (after == label))
    if not len(corrected):
        return tuple(middle.tolist())
    distances = np.abs(corrected - middle).sum(axis=1)
    return tuple(corrected[distances.argmin()].tolist())
