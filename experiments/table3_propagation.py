"""Table 3: mIoU by iterations of propagation, R = {8,16}, PASCAL VOC 2012 val.

The paper, at 0, 1, 3, 6, 10 iterations: predicted affinity 78.96, 79.03, 79.07, 79.10, 79.15 %;
ground truth 81.16, 81.58, 81.94, 82.22, 82.53 %. Its column 0 of the ground truth is not the
unrefined prediction, which is 78.96 %; ours is. The last row has lambda, mu and iterations that
`beta_search` chose on a part of train; the others lambda = 6, mu = 7.

    python -m experiments.table3_propagation --data_dir=VOC
    python -m experiments.table3_propagation --dataset=camvid --scale=small --seeds=0,1,2 \\
        --data_dir=CamVid --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5
    python -m experiments.table3_propagation --dataset=shapes --scale=smoke

Cost: one run for each seed, as in Table 1.
"""

from experiments.runs import main
from experiments.tables import propagation_table

TABLE = propagation_table(
    name="table3_propagation",
    title="Table 3, propagation with R = {8,16}",
    variant="rates_8_16",
    predicted=(78.96, 79.03, 79.07, 79.10, 79.15),
    ground_truth=(81.16, 81.58, 81.94, 82.22, 82.53),
)

if __name__ == "__main__":
    main(TABLE)
