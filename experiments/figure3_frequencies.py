"""Figure 3: how the shares of n0 to n8 change with the dilation rate, over the training labels.

The paper draws them for PASCAL VOC 2012 and Cityscapes train and gives no numbers.

    python -m experiments.figure3_frequencies --data_dir=VOC
    python -m experiments.figure3_frequencies --dataset=camvid --scale=small --data_dir=CamVid
    python -m experiments.figure3_frequencies --dataset=shapes --scale=smoke

Writes the counts, `frequencies_<dataset>_<scale>.json`, and `figure3_<dataset>_<scale>.png`. The
counts of VOC's 10,582 masks are recorded already, in `voc2012_trainaug_statistics.json`.

Cost: no training. A pass over the labels: about 7 minutes for VOC on 2 CPU cores, seconds for
CamVid.
"""

from dilated_affinity.affinity.geometry import format_rates
from dilated_affinity.affinity.statistics import AffinityStatistics
from dilated_affinity.cli import app
from dilated_affinity.datasets.registry import label_readers, load_source
from dilated_affinity.visualization import count_frequency_figure
from experiments.plots import save
from experiments.runs import define_flags

RATES = "8,16,24,32,40,48,56,64"


def main():
    """Entry point: counts, and draws the figure."""
    make_queue = define_flags()

    def draw():
        queue = make_queue()
        config = queue.config("deeplab", queue.seeds[0])
        source = load_source(config.dataset, config.train_split, config.data_dir)
        rates = queue.rates(RATES)
        statistics = AffinityStatistics.from_labels(label_readers(source), rates)
        name = f"{queue.dataset}_{queue.scale}"
        statistics.save(queue.results_dir / f"frequencies_{name}.json")
        save(count_frequency_figure(statistics), queue.results_dir / f"figure3_{name}.png")
        print(f"{name}, {len(source)} label maps, rates {format_rates(rates)}")
        print(statistics.table())

    app.run(draw)


if __name__ == "__main__":
    main()
