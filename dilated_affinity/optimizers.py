"""SGD with a learning rate of its own for some variables, which Keras does not offer."""

import keras


@keras.saving.register_keras_serializable("dilated_affinity")
class MultiplierSGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD` whose learning rate is multiplied for some variables.

    Momentum accumulates `learning_rate * gradient` in Keras, so a multiplied learning rate acts as
    it would in an optimizer of that variable alone.

    Args:
        *args: As for `keras.optimizers.SGD`.
        multipliers: Factor by variable path (`variable.path`); 1 for variables not named.
        **kwargs: As for `keras.optimizers.SGD`.
    """

    def __init__(self, *args, multipliers=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.multipliers = dict(multipliers or {})

    def build(self, variables):
        unknown = set(self.multipliers) - {variable.path for variable in variables}
        if unknown:
            raise ValueError(
                f"multipliers name variables that are not trained: {', '.join(sorted(unknown))}"
            )
        self._factors = [self.multipliers.get(variable.path, 1.0) for variable in variables]
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        factor = self._factors[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * factor)

    def get_config(self):
        return {**super().get_config(), "multipliers": self.multipliers}
