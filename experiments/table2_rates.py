"""Table 2: dilation rates R, sqrt weighting, PASCAL VOC 2012 val, no propagation.

The paper: {8,16} 78.96 %, {8,16,32} 78.81 %, {8,16,32,64} 78.69 %, {8,(12,24),16} 78.62 %,
{8,(12,24),16,(32,64),48} 77.62 %, with beta 1.5, 1.2, 1.6, 1.2, 0.9. At small scale rates are
halved with the images, at smoke scale quartered.

    python -m experiments.table2_rates --data_dir=VOC
    python -m experiments.table2_rates --dataset=camvid --scale=small --seeds=0,1,2 \\
        --data_dir=CamVid --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5
    python -m experiments.table2_rates --dataset=shapes --scale=smoke

Cost: five runs for each seed, each as in Table 1; two of them are Table 3's and Table 4's.
"""

from experiments.runs import main
from experiments.tables import Row, Table

TABLE = Table(
    name="table2_rates",
    title="Table 2, dilation rates",
    dataset="voc2012_aug",
    rows=(
        Row("{8,16}", "rates_8_16", paper=78.96),
        Row("{8,16,32}", "rates_8_16_32", paper=78.81),
        Row("{8,16,32,64}", "rates_8_16_32_64", paper=78.69),
        Row("{8,(12,24),16}", "rates_8_12x24_16", paper=78.62),
        Row("{8,(12,24),16,(32,64),48}", "rates_8_12x24_16_32x64_48", paper=77.62),
    ),
)

if __name__ == "__main__":
    main(TABLE)
