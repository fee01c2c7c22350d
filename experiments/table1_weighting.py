"""Table 1: weightings of the affinity loss, R = {8,16,32,64}, PASCAL VOC 2012 val, no propagation.

The paper: baseline (plain cross entropy) 77.52 %, signal 77.96 %, neighbor 78.40 %, sqrt 78.74 %,
with beta 1.1, 1.3, 0.25, 1.5.

    python -m experiments.table1_weighting --data_dir=VOC
    python -m experiments.table1_weighting --dataset=camvid --scale=small --seeds=0,1,2 \\
        --data_dir=CamVid --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5
    python -m experiments.table1_weighting --dataset=shapes --scale=smoke

Cost, four runs for each seed: at the paper's scale 30,000 steps of batch 16 at crop 513 each, days
on 4 GPUs of the paper's time; small CamVid about 7 minutes each on one CPU core, small shapes about
5 on two; smoke a minute or two in all.
"""

from experiments.runs import main
from experiments.tables import Row, Table

TABLE = Table(
    name="table1_weighting",
    title="Table 1, weightings of the affinity loss",
    dataset="voc2012_aug",
    rows=(
        Row("baseline", "weighting_none", paper=77.52),
        Row("signal-reweight", "weighting_signal", paper=77.96),
        Row("neighbor-reweight", "weighting_neighbor", paper=78.40),
        Row("sqrt-reweight", "weighting_sqrt_neighbor", paper=78.74),
    ),
)

if __name__ == "__main__":
    main(TABLE)
