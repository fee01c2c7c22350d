"""Figure 4: accuracy of the predicted affinity for n0 to n8, by rate and weighting.

The paper draws, for R = {8,16,32,64} on PASCAL VOC 2012 val, sqrt-reweight and neighbor-reweight by
rate, and all weightings averaged over the rates. It gives no numbers; it reads: neighbor-reweight
is best for n0 to n3, sqrt-reweight and baseline for n4 to n8.

    python -m experiments.figure4_affinity_accuracy --data_dir=VOC
    python -m experiments.figure4_affinity_accuracy --dataset=camvid --scale=small --seeds=0,1,2 \\
        --data_dir=CamVid --backbone_weights=mobilenet_v2_imagenet_notop.weights.h5
    python -m experiments.figure4_affinity_accuracy --dataset=shapes --scale=smoke

Writes `figure4_<dataset>_<scale>.png` beside the JSON of the runs, and
`figure4_calibration_<dataset>_<scale>.png`: for the first seed of sqrt-reweight, how reliable the
affinity's logits are by neighbour count, and what calibration makes of them.

Cost: the runs of Table 1, none but these.
"""

from dilated_affinity.cli import app
from dilated_affinity.visualization import calibration_figure
from experiments.plots import accuracy_figure, save
from experiments.records import read_json
from experiments.runs import define_flags
from experiments.table1_weighting import TABLE
from experiments.tables import Records

_CALIBRATED = "weighting_sqrt_neighbor"


def main():
    """Entry point: does the runs and draws the figure."""
    make_queue = define_flags()

    def draw():
        queue = make_queue()
        queue.run(TABLE.variants)
        figure = accuracy_figure(Records(queue.results_dir), queue.dataset, queue.scale)
        path = queue.results_dir / f"figure4_{queue.dataset}_{queue.scale}.png"
        save(figure, path)
        print(path)
        record = read_json(queue.results_dir / f"{queue.name(_CALIBRATED, queue.seeds[0])}.json")
        # Runs recorded before there was calibration have none.
        if "calibrated" in record["evaluation"]:
            figure = calibration_figure(record["evaluation"]["calibrated"]["calibration"])
            path = path.with_name(f"figure4_calibration_{queue.dataset}_{queue.scale}.png")
            save(figure, path)
            print(path)

    app.run(draw)


if __name__ == "__main__":
    main()
