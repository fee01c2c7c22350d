"""Table 4: mIoU by iterations of propagation, R = {8,(12,24),16}, PASCAL VOC 2012 val.

The paper, at 0, 1, 3, 6, 10 iterations: predicted affinity 78.62, 78.91, 79.09, 79.17, 79.21 %;
ground truth 82.33, 82.94, 83.10, 83.37, 83.59 %. See Table 3 for its column 0 and our last row.

    python -m experiments.table4_propagation_large --data_dir=VOC
    python -m experiments.table4_propagation_large --dataset=camvid --scale=small --seeds=0,1,2 \\
        --data_dir=CamVid --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5
    python -m experiments.table4_propagation_large --dataset=shapes --scale=smoke

Cost: one run for each seed, as in Table 1; it is also the method's run of Tables 5 and 6.
"""

from experiments.runs import main
from experiments.tables import propagation_table

TABLE = propagation_table(
    name="table4_propagation_large",
    title="Table 4, propagation with R = {8,(12,24),16}",
    variant="rates_8_12x24_16",
    predicted=(78.62, 78.91, 79.09, 79.17, 79.21),
    ground_truth=(82.33, 82.94, 83.10, 83.37, 83.59),
)

if __name__ == "__main__":
    main(TABLE)
