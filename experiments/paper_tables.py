"""The paper's tables as data: rows, the runs that fill them, and the paper's numbers."""

import dataclasses

from dilated_affinity.evaluation.evaluate import ITERATIONS

DATASETS = {
    "voc2012_aug": ("PASCAL VOC 2012 val", "VOC"),
    "cityscapes": ("Cityscapes val", "Cityscapes"),
}
"""The paper's name of each data set and split, and the folder of it in examples."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: The paper's name for it.
        variant: Name of the runs that fill it, a key of `variants.VARIANTS`.
        measured: Key of a record's evaluation and number of iterations of its refinement; None for
            the last number in the record.
        paper: The paper's mIoU in %; None where it gives none.
    """

    label: str
    variant: str
    measured: tuple[str, int | None] = ("predicted", 0)
    paper: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        title: Its number and subject.
        dataset: The paper's data set, a key of `DATASETS`.
        rows: The first one is the reference of the others.
        notes: Settings that the rows do not show, and the cost.
    """

    title: str
    dataset: str
    rows: tuple[Row, ...]
    notes: str

    @property
    def variants(self) -> tuple[str, ...]:
        """The runs that fill the table, each once."""
        return tuple(dict.fromkeys(row.variant for row in self.rows))


def iterations_text(count: int) -> str:
    """The number of iterations in words: `"1 iteration"`, `"3 iterations"`."""
    return f"{count} iteration" if count == 1 else f"{count} iterations"


def _propagation_rows(variant, predicted, ground_truth):
    """Rows of Tables 3 and 4; `predicted` and `ground_truth` are the paper's, by `ITERATIONS`."""
    rows = [
        Row(f"{label}, {iterations_text(count)}", variant, (kind, count), paper)
        for label, kind, numbers in (
            ("predicted", "predicted", predicted),
            ("ground truth", "ground_truth", ground_truth),
        )
        for count, paper in zip(ITERATIONS, numbers, strict=True)
    ]
    rows += [
        Row(f"predicted, calibrated, {iterations_text(count)}", variant, ("calibrated", count))
        for count in ITERATIONS[1:]
    ]
    return (*rows, Row("predicted, settings searched", variant, ("chosen", None)))


_METHOD = "rates_8_12x24_16"
_THROUGH = "trained_through"

TABLES = {
    "table1": Table(
        "Table 1, weightings of the affinity loss",
        "voc2012_aug",
        (
            Row("baseline", "weighting_none", paper=77.52),
            Row("signal-reweight", "weighting_signal", paper=77.96),
            Row("neighbor-reweight", "weighting_neighbor", paper=78.40),
            Row("sqrt-reweight", "weighting_sqrt_neighbor", paper=78.74),
        ),
        """\
R = {8,16,32,64}, no propagation, beta = 1.1, 1.3, 0.25 and 1.5. The baseline is plain cross
entropy.

Cost: four runs for each seed. At the paper's scale each has 30,000 steps of batch 16 at crop 513,
days on the four GPUs of the paper; at scale small about 7 minutes on one CPU core for camvid, about
5 on two for shapes; smoke takes a minute or two in all.""",
    ),
    "table2": Table(
        "Table 2, dilation rates",
        "voc2012_aug",
        (
            Row("{8,16}", "rates_8_16", paper=78.96),
            Row("{8,16,32}", "rates_8_16_32", paper=78.81),
            Row("{8,16,32,64}", "rates_8_16_32_64", paper=78.69),
            Row("{8,(12,24),16}", _METHOD, paper=78.62),
            Row("{8,(12,24),16,(32,64),48}", "rates_8_12x24_16_32x64_48", paper=77.62),
        ),
        """\
sqrt-reweight, no propagation, beta = 1.5, 1.2, 1.6, 1.2 and 0.9. The scale small halves the rates
with the images, smoke divides them by four.

Cost: five runs for each seed, each as in Table 1; two of them are those of Tables 3 and 4.""",
    ),
    "table3": Table(
        "Table 3, propagation with R = {8,16}",
        "voc2012_aug",
        _propagation_rows(
            "rates_8_16",
            predicted=(78.96, 79.03, 79.07, 79.10, 79.15),
            ground_truth=(81.16, 81.58, 81.94, 82.22, 82.53),
        ),
        """\
The paper's ground-truth numbers at 0 iterations are not those of the unrefined prediction (78.96);
ours are. The last row has the lambda, mu and iterations that beta_search chose on a part of train,
the calibrated rows those that calibration found, the others lambda = 6 and mu = 7.

Cost: one run for each seed, as in Table 1.""",
    ),
    "table4": Table(
        "Table 4, propagation with R = {8,(12,24),16}",
        "voc2012_aug",
        _propagation_rows(
            _METHOD,
            predicted=(78.62, 78.91, 79.09, 79.17, 79.21),
            ground_truth=(82.33, 82.94, 83.10, 83.37, 83.59),
        ),
        """\
0 iterations, lambda and mu as in Table 3.

Cost: one run for each seed, as in Table 1; Tables 5 and 6 use the same.""",
    ),
    "table5": Table(
        "Table 5, methods that use structure",
        "voc2012_aug",
        (
            Row("DeepLabv3+", "deeplab", paper=77.93),
            Row("+ AAF", "aaf", paper=78.02),
            Row("+ CRF", "deeplab", ("crf", None), paper=78.63),
            Row("+ boundary reweighting", "boundary", paper=77.65),
            Row("+ dilated affinity, no propagation", _METHOD, paper=78.62),
            Row("+ dilated affinity, 10 iterations", _METHOD, ("predicted", 10), paper=79.21),
            Row("+ dilated affinity, calibrated", _METHOD, ("calibrated", 10)),
            Row("+ dilated affinity, settings searched", _METHOD, ("chosen", None)),
            Row("+ AAF + CRF", "aaf", ("crf", None)),
            Row("+ boundary reweighting + CRF", "boundary", ("crf", None)),
            Row("+ dilated affinity + CRF", _METHOD, ("crf", None)),
            Row("+ dilated affinity trained through propagation, before", _THROUGH),
            Row("the same, calibrated", _THROUGH, ("calibrated", 10)),
        ),
        """\
The CRF needs the extra `crf`. It refines the unrefined predictions of the runs it is added to, with
the settings of `baselines.crf.DenseCRF`, its bilateral distance divided as the rates are. "Trained
through propagation" goes beyond the paper: a second semantic loss after 3 iterations.

Cost: five runs for each seed, each as in Table 1; the CRF takes about a second for an image of
480x360 on one core.""",
    ),
    "table6": Table(
        "Table 6, Cityscapes",
        "cityscapes",
        (
            Row("DeepLabv3+", "deeplab", paper=77.15),
            Row("+ dilated affinity, no propagation", _METHOD),
            Row("+ dilated affinity, 10 iterations", _METHOD, ("predicted", 10), paper=78.70),
            Row("+ dilated affinity, calibrated", _METHOD, ("calibrated", 10)),
        ),
        """\
R = {8,(12,24),16}.

Cost: two runs for each seed, both also in Table 5. At the paper's scale each has 90,000 steps of
batch 12 at crop 769; at the others they cost as much as in Table 1.""",
    ),
}
"""The tables by the names of their commands."""
