"""Every objective by its name, the value of the setting `objective`."""

from dilated_affinity.config import OBJECTIVES, Config
from dilated_affinity.errors import ConfigError
from dilated_affinity.training.objectives.aaf import AAFObjective
from dilated_affinity.training.objectives.affinity import AffinityObjective
from dilated_affinity.training.objectives.boundary import BoundaryObjective
from dilated_affinity.training.objectives.objective import Objective

_BUILT_IN = {
    "none": Objective(),
    "affinity": AffinityObjective(),
    "aaf": AAFObjective(),
    "boundary": BoundaryObjective(),
}
_registered: dict[str, Objective] = dict(_BUILT_IN)


def register_objective(name: str, objective: Objective):
    """Makes an objective available to `Config(objective=name)` and `train_main --objective=name`.

    Each program that trains or loads a run with it has to register it first. Registering a name
    again replaces its objective.

    Args:
        name: Its name.
        objective: The objective.

    Raises:
        ConfigError: If the name is that of an objective of this package, or `objective` is not an
            `Objective`.
    """
    if name in _BUILT_IN or not isinstance(objective, Objective):
        raise ConfigError(
            "register_objective needs an Objective and a name other than "
            f"{', '.join(_BUILT_IN)}. Received: name={name!r}, objective={objective!r}"
        )
    _registered[name] = objective
    OBJECTIVES[name] = objective.predicts_affinity


def objective_of(config: Config) -> Objective:
    """Returns the objective that the settings of a run name."""
    return _registered[config.objective]


def class_layers() -> set[str]:
    """Returns the names of the layers of all objectives whose weights belong to classes."""
    return {name for objective in _registered.values() for name in objective.class_layers}
