"""Figure 1: one image, DeepLabv3+'s labels, and the affinity of a pixel with its neighbours.

As in the paper, neighbours predicted to be of the same class are yellow, others blue, at every
rate. The refined prediction and the ground truth stand beside them. The pixel is one that
DeepLabv3+ gets wrong and the method right, where there is one.

    python -m experiments.figure1_affinity --data_dir=VOC --index=17
    python -m experiments.figure1_affinity --dataset=camvid --scale=small --data_dir=CamVid \\
        --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5
    python -m experiments.figure1_affinity --dataset=shapes --scale=smoke

Writes `figure1_<dataset>_<scale>_<index>.png` below `--runs_dir`, not beside the results: it shows
an image of the data set, whose licence need not allow to publish it.

Cost: two runs, those of Table 6.
"""

import numpy as np
from absl import flags

from dilated_affinity.cli import app
from dilated_affinity.datasets.registry import load_source
from dilated_affinity.inference.predictor import Predictor
from dilated_affinity.inference.refinement import Refinement
from experiments.plots import affinity_example, save
from experiments.runs import define_flags, last_model

METHOD = "rates_8_12x24_16"

_INDEX = flags.DEFINE_integer("index", 0, "Number of the validation image.", lower_bound=0)


def main():
    """Entry point: does the runs and draws the figure."""
    make_queue = define_flags()

    def draw():
        queue = make_queue()
        queue.run(("deeplab", METHOD))
        seed = queue.seeds[0]
        predictors = []
        for variant in ("deeplab", METHOD):
            config = queue.config(variant, seed)
            model = last_model(config, queue.model_dir(variant, seed))
            predictors.append(Predictor(model, refinement=Refinement.from_config(config)))
        source = load_source(config.dataset, config.val_split, config.data_dir)
        example = source[_INDEX.value % len(source)]
        plain, refined = (predict(example["image"]) for predict in predictors)
        point = corrected_pixel(example["label"], plain.labels, refined.labels)
        figure = affinity_example(
            example["image"],
            example["label"],
            plain,
            refined,
            predictors[-1].rates,
            point,
            source.classes,
        )
        path = queue.runs_dir / f"figure1_{queue.dataset}_{queue.scale}_{_INDEX.value}.png"
        save(figure, path)
        print(path)

    app.run(draw)


def corrected_pixel(label, before, after) -> tuple[int, int]:
    """The pixel nearest to the middle of those set right; the middle itself without any."""
    middle = np.array(label.shape) // 2
    corrected = np.argwhere((before != label) & (after == label))
    if not len(corrected):
        return tuple(middle.tolist())
    distances = np.abs(corrected - middle).sum(axis=1)
    return tuple(corrected[distances.argmin()].tolist())


if __name__ == "__main__":
    main()
