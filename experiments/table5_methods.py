"""Table 5: methods that use structure, PASCAL VOC 2012 val.

The paper: DeepLabv3+ 77.93 %, with AAF 78.02 %, with CRF 78.63 %, with boundary reweighting
77.65 %, with dilated affinity 79.21 % (78.62 % before propagation, Table 4).

    python -m experiments.table5_methods --data_dir=VOC
    python -m experiments.table5_methods --dataset=camvid --scale=small --seeds=0,1,2 \\
        --data_dir=CamVid --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5
    python -m experiments.table5_methods --dataset=shapes --scale=smoke

The CRF needs the extra `crf`; its row refines the first row's runs, with the settings of
`baselines.crf.DenseCRF` (the bilateral distance divided as the rates are).

Cost: four runs for each seed, each as in Table 1; the CRF about a second for each image of 480x360
and core.
"""

from experiments.runs import main
from experiments.tables import Row, Table

TABLE = Table(
    name="table5_methods",
    title="Table 5, methods that use structure",
    dataset="voc2012_aug",
    rows=(
        Row("DeepLabv3+", "deeplab", paper=77.93),
        Row("+ AAF", "aaf", paper=78.02),
        Row("+ CRF", "deeplab", ("crf", None), paper=78.63),
        Row("+ boundary reweighting", "boundary", paper=77.65),
        Row("+ dilated affinity, no propagation", "rates_8_12x24_16", paper=78.62),
        Row(
            "+ dilated affinity, 10 iterations", "rates_8_12x24_16", ("predicted", 10), paper=79.21
        ),
        Row("+ dilated affinity, calibrated", "rates_8_12x24_16", ("calibrated", 10)),
        Row("+ dilated affinity, settings searched", "rates_8_12x24_16", ("chosen", None)),
    ),
)

if __name__ == "__main__":
    main(TABLE)
