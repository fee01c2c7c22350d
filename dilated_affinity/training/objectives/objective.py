"""The interface of an objective, and the objective `none`."""

import dataclasses

import keras

from dilated_affinity.config import Config


@dataclasses.dataclass(frozen=True)
class TrainedOutput:
    """Loss and metrics of one output of a model.

    Attributes:
        loss: Its loss.
        weight: Weight of the loss in the total. Defaults to 1.
        metrics: Its metrics, logged with the losses. Defaults to none.
        output: A float32 tensor of the model, for an output that the saved model does not have,
            or has in another form; only the model that is fitted has it. None, the default, for
            an output of the saved model.
    """

    loss: keras.losses.Loss
    weight: float = 1.0
    metrics: tuple = ()
    output: keras.KerasTensor | None = None


class Objective:
    """Training objective beside the classes. This base class has none; subclasses add to it.

    The setting `objective` of a run names its objective, which the input pipeline, the model and
    its compilation ask for what they need. `register_objective` adds one of your own.

    Attributes:
        predicts_affinity: Whether the model has an affinity head for the run's `rates`, for which
            `AffinityStatistics` are counted over the training labels.
        class_layers: Names of its layers whose weights belong to classes; a run that starts from
            a model of other classes leaves them out.
    """

    predicts_affinity = False
    class_layers: tuple[str, ...] = ()

    def targets(self, labels, config: Config) -> dict:
        """Returns the targets of its outputs, by name. Runs in the graph of the input pipeline.

        Args:
            labels: uint8 tensor (B, H, W): classes 0 to C-1, and 255 for void.
            config: The run's settings.
        """
        return {}

    def sample_weights(self, labels, config: Config) -> dict | None:
        """Returns sample weights, or None, the default, for none. See `targets`.

        Keras takes weights for all outputs that are trained, `"semantic"` included, or for none.
        """
        return None

    def extra_outputs(self, model: keras.Model, config: Config) -> dict:
        """Returns outputs to add to the saved model, by name; for layers that have weights.

        Args:
            model: The model of the run, with the float32 outputs `"semantic"` (B, H, W, C) and,
                with affinity, `"affinity"` (B, H, W, 8|R|), both logits.
            config: The run's settings.
        """
        return {}

    def outputs(
        self, model: keras.Model, config: Config, statistics=None, class_weights=None
    ) -> dict[str, TrainedOutput]:
        """Returns the losses and metrics of its outputs, by name.

        An entry `"semantic"` replaces the semantic loss.

        Args:
            model: The saved model, with `extra_outputs`.
            config: The run's settings.
            statistics: `AffinityStatistics` of the training labels; None without affinity.
            class_weights: As for `SemanticLoss`.
        """
        return {}

    def fitted_outputs(
        self, model: keras.Model, config: Config, statistics=None, class_weights=None
    ) -> dict[str, TrainedOutput]:
        """Returns those of the model that is fitted; by default those of `outputs`."""
        return self.outputs(model, config, statistics, class_weights)

    def multipliers(self, config: Config) -> dict[str, float]:
        """Returns learning-rate factors by layer name, each in the place of `head_multiplier`."""
        return {}

    def check(self, model: keras.Model, config: Config):
        """Raises `ConfigError` for settings with which it cannot train the model."""
