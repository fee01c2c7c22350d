"""The interface of a method of refinement."""

from collections.abc import Iterable, Iterator

from keras import layers, ops

from dilated_affinity.inference.network import ImageOutputs


class Refiner:
    """A method of refining predictions. This class returns them unchanged; subclasses override it.

    Args:
        model: As `DeepLabV3Plus` builds it.
        refinement: `Refinement`, the settings.

    Raises:
        ConfigError: If the model does not allow the method.
    """

    def __init__(self, model, refinement):
        self.model = model
        self.refinement = refinement

    def __call__(self, outputs: ImageOutputs, iterations=None) -> Iterator:
        """Refines the prediction of one image.

        Args:
            outputs: Outputs of `Network` for the image.
            iterations: Ascending numbers of iterations. Defaults to None: that of the settings.

        Returns:
            Iterator over the refined probabilities, float32 (1, H, W, C), after each number of
            iterations.
        """
        for _ in self.counts(iterations):
            yield outputs.probabilities

    def map(self, outputs: Iterable[ImageOutputs], iterations=None) -> Iterator[Iterable]:
        """Refines the predictions of many images; a method may work on several of them at once.

        Args:
            outputs: Outputs of `Network` for each image.
            iterations: As for a call.

        Returns:
            Iterator over the result of a call for each image, in order. Consume each result before
            the next.
        """
        return (self(each, iterations) for each in outputs)

    def in_graph(self, images):
        """Builds the network and the refinement by the settings as Keras layers.

        Args:
            images: `keras.Input` of uint8 (B, H, W, 3).

        Returns:
            The model's dict of logits, and the refined probabilities, float32 (B, H, W, C).

        Raises:
            ConfigError: If the method cannot be a part of a Keras model.
        """
        logits = self.model(ops.cast(images, "float32"))
        return logits, layers.Softmax(dtype="float32")(logits["semantic"])

    def counts(self, iterations) -> tuple[int, ...]:
        """The numbers of iterations that a call asks for."""
        return (self.refinement.iterations,) if iterations is None else tuple(iterations)
