"""What differs from the defaults of `Config`, which are the paper's for PASCAL VOC, by data set."""

_DEEPLAB = {"head_batch_norm_momentum": 0.9997, "bias_multiplier": 2.0}
"""What DeepLab's authors train with, and which not every schedule bears."""

RECIPES = {
    # Weight decay is that of ResNets in the three recipes with a MobileNet, whose runs were
    # recorded with it; DeepLab's for MobileNets is 4e-5. `batch_norm_momentum` of 0.9, not that of
    # DeepLab either, lets moving averages follow in a few hundred steps.
    #
    # A few minutes on two cores, from random initial weights.
    "shapes": {
        "backbone": "mobilenet_v2_0.35",
        "backbone_weights": "none",
        "rates": "4,8",
        "beta": 6.0,
        "eval_output_stride": 16,
        "filters": 64,
        "dropout": 0.0,
        "batch_norm_momentum": 0.9,
        "train_steps": 350,
        "batch_size": 8,
        "crop_size": 129,
        "learning_rate": 0.1,
        "min_scale": 1.0,
        "max_scale": 1.0,
        "validate_every": 175,
    },
    # About two hours on two cores. beta and the affinity head's rate are those of `animals`
    # in experiments/variants.py.
    "folder": {
        "backbone": "mobilenet_v2",
        "eval_output_stride": 16,
        "batch_norm": "frozen",
        "beta": 2.4,
        "train_steps": 2000,
        "batch_size": 8,
        "learning_rate": 0.001,
        "head_multiplier": 10.0,
        "affinity_head_multiplier": 64.0,
        "crop_size": 321,
    },
    # The paper's experiments (sections 4.1 and 4.3, on 4 GPUs: mIoU 79.21 % on VOC val, 78.70 % on
    # Cityscapes val with propagation). The defaults are its settings for VOC, and DeepLab's where
    # it gives none ("the rest settings are the same with DeepLabv3+") and they suit any schedule.
    "voc2012_aug": {"train_split": "trainaug", **_DEEPLAB},
    "cityscapes": {"train_steps": 90000, "batch_size": 12, "crop_size": 769, **_DEEPLAB},
    # About 40 minutes on two cores; experiments/results/camvid_recipe.json.
    "camvid": {
        "backbone": "mobilenet_v2",
        "eval_output_stride": 16,
        "batch_norm": "frozen",
        "batch_norm_momentum": 0.9,
        "beta": 6.0,
        "train_steps": 520,
        "batch_size": 8,
        "learning_rate": 0.003,
        "head_multiplier": 10.0,
        "crop_size": 321,
        "min_scale": 0.75,
        "max_scale": 1.5,
        "validate_every": 130,
    },
}
