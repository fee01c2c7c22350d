"""A training step that is compared between backends and between numbers of processes."""

import keras
import numpy as np
import tensorflow as tf

from dilated_affinity import AffinityStatistics, affinity_targets
from dilated_affinity.run_dir.model import build_model
from dilated_affinity.runtime.distribution import find_replicas
from dilated_affinity.training.compile import compile_model
from helpers import networks
from helpers.tiny import tiny_config


def step():
    """A training step of all processes, whose images have very different numbers of pixels.

    It is followed by a short `fit` on the same batch.
    """
    keras.utils.clear_session()  # names do not depend on models built before
    config = tiny_config(
        "unused", batch_size=4, crop_size=49, rates="2", dropout=0.0, learning_rate=0.02
    )
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 11, (4, 7, 7)).repeat(7, 1).repeat(7, 2).astype(np.uint8)
    truth[0, 10:] = 255
    truth[1] = 255
    images = rng.uniform(0, 255, (4, 49, 49, 3)).astype(np.float32)
    statistics = AffinityStatistics.from_labels(truth[2:], config.affinity_rates)
    targets = {
        "semantic": truth,
        "affinity": affinity_targets(truth, config.affinity_rates).numpy(),
    }
    replicas = find_replicas()
    share = slice(*(len(images) // replicas.processes * (replicas.process + end) for end in (0, 1)))
    batch = keras.tree.map_structure(lambda each: each[share], (images, targets))
    with replicas.building():
        model = build_model(config, 11, statistics)
        model.set_weights(networks.random_weights(model))
        trained = compile_model(model, config, statistics)
    with replicas.fitting():
        batches = tf.data.Dataset.from_tensors(batch)
        history = trained.fit(batches, shuffle=False, verbose=0).history
        # After one step, velocities are gradients times the learning rate.
        states = {
            variable.path: np.array(variable)
            for variable in (*model.variables, *model.optimizer.variables)
        }
        fitted = trained.fit(batches, epochs=3, shuffle=False, verbose=0).history
        before = [np.array(variable) for variable in model.variables]
        broken = tf.data.Dataset.from_tensors((batch[0] * np.nan, batch[1]))
        loss = []
        note = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda _, logs: loss.append(logs["loss"])
        )
        trained.fit(broken, callbacks=[note], shuffle=False, verbose=0)
    same = [np.array_equal(v, np.array(w)) for v, w in zip(before, model.variables, strict=True)]
    taken_back = [all(same), np.isnan(loss).all(), int(model.optimizer.iterations) == 5]
    first = {f"first/{name}": values[0] for name, values in history.items()}
    return {**first, **states, "fitted": fitted["loss"], "taken_back": taken_back}
