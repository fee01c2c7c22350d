"""The runs: the variants that the paper compares, and the scales they are run at."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
    """Settings in which the runs of one data set and scale differ.

    Attributes:
        objective: The setting of this name.
        rates: R at the size of the paper's images.
        beta: The paper's weight of the affinity loss.
        weighting: The setting of this name.
        train_propagation: The setting of this name.
        train_propagation_weight: The setting of this name.
        crf: Whether the dense CRF is measured too.
    """

    objective: str = "affinity"
    rates: str = "none"
    beta: float | None = None
    weighting: str = "sqrt_neighbor"
    train_propagation: int = 0
    train_propagation_weight: float = 1.0
    crf: bool = False

    @property
    def has_affinity(self) -> bool:
        return self.objective == "affinity"


FOUR_RATES = "8,16,32,64"

VARIANTS = {
    # Table 5
    "deeplab": Variant("none", crf=True),
    "boundary": Variant("boundary", crf=True),
    "aaf": Variant("aaf", crf=True),
    # Table 1
    "weighting_none": Variant(rates=FOUR_RATES, beta=1.1, weighting="none"),
    "weighting_signal": Variant(rates=FOUR_RATES, beta=1.3, weighting="signal"),
    "weighting_neighbor": Variant(rates=FOUR_RATES, beta=0.25, weighting="neighbor"),
    "weighting_sqrt_neighbor": Variant(rates=FOUR_RATES, beta=1.5),
    # Table 2. The third has the rates of Table 1 with another beta.
    "rates_8_16": Variant(rates="8,16", beta=1.5),
    "rates_8_16_32": Variant(rates="8,16,32", beta=1.2),
    "rates_8_16_32_64": Variant(rates=FOUR_RATES, beta=1.6),
    "rates_8_12x24_16": Variant(rates="8,(12,24),16", beta=1.2, crf=True),
    "rates_8_12x24_16_32x64_48": Variant(rates="8,(12,24),16,(32,64),48", beta=0.9),
    # Beyond the paper
    "trained_through": Variant(
        rates="8,(12,24),16", beta=1.2, train_propagation=3, train_propagation_weight=0.25
    ),
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of the runs of one data set.

    Attributes:
        settings: Settings that override the data set's recipe.
        divisor: Divides the paper's rates, the CRF's bilateral distance and the sigma of the
            boundary weights, for smaller images.
        beta_factor: Multiplies the paper's betas where none was searched.
        halved: Whether images are first halved in size.
        calibration_images: Number of training images for calibration.
    """

    settings: dict = dataclasses.field(default_factory=dict)
    divisor: int = 1
    beta_factor: float = 1.0
    halved: bool = False
    calibration_images: int = 100


_SMOKE = Scale(
    {
        "backbone": "mobilenet_v2_0.35",
        "backbone_weights": "none",
        "train_split": "train[:8]",
        "val_split": "val[:2]",
        "eval_output_stride": 16,
        "filters": 16,
        "train_steps": 2,
        "batch_size": 2,
        "crop_size": 65,
        "head_batch_norm_momentum": 0.0,
        "validate_every": 2,
    },
    divisor=4,
    calibration_images=1,
)

# Minutes on two CPU cores: the backbone has been trained for the segmentation of VOC before.
_ANIMALS = {
    "backbone": "mobilenet_v2",
    "eval_output_stride": 16,
    "filters": 128,
    "batch_norm": "frozen",
    "batch_size": 8,
    "learning_rate": 0.001,
    "crop_size": 257,
}

SCALES = {
    "paper": {name: Scale() for name in ("voc2012_aug", "cityscapes")},
    # Larger betas were better in short trainings of `shapes`. On CamVid, whose recipe freezes batch
    # norm, 7.5 for R = {8,16} gave 3 instead of 41 % on the held-out part of train.
    "small": {
        "camvid": Scale(
            {
                "crop_size": 161,
                "atrous_rates": "3,6,9",
                "filters": 128,
                "train_steps": 400,
                "validate_every": 200,
            },
            divisor=2,
            halved=True,
        ),
        "shapes": Scale(divisor=2, beta_factor=5.0),
    },
    # Minutes on one NVIDIA H100.
    "medium": {
        "camvid": Scale({"train_steps": 2000, "validate_every": 2000}, beta_factor=5.0),
        "voc2012_aug": Scale(
            {
                "train_split": "train",
                "backbone": "mobilenet_v2",
                "eval_output_stride": 16,
                "batch_norm": "frozen",
                "train_steps": 3000,
                "batch_size": 8,
                "learning_rate": 0.001,
                "head_multiplier": 10.0,
                "crop_size": 321,
                "max_scale": 1.5,
                "validate_every": 3000,
                # The recipe has DeepLab's, which suit its long schedule.
                "head_batch_norm_momentum": 0.0,
                "bias_multiplier": 1.0,
            }
        ),
    },
    "animals": {
        # Twice the sum's rate: see `affinity_head_multiplier` in `Config`.
        "folder": Scale(
            {
                **_ANIMALS,
                "train_steps": 400,
                "validate_every": 400,
                "head_multiplier": 20.0,
                "max_scale": 1.5,
                "affinity_head_multiplier": 64.0,
            },
            beta_factor=2.0,
        )
    },
    # Twice as long.
    "animals_800": {
        "folder": Scale(
            {
                **_ANIMALS,
                "train_steps": 800,
                "validate_every": 800,
                "head_multiplier": 10.0,
                "max_scale": 2.0,
                "affinity_head_multiplier": 1.0,
            },
            beta_factor=5.0,
        )
    },
    "smoke": {name: _SMOKE for name in ("shapes", "camvid", "voc2012_aug", "cityscapes")},
}
