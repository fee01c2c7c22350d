"""Devices for training, and communication between processes.

Under TensorFlow the devices are those of one machine. Under JAX they may be those of several
processes, each of which runs the same program and computes its part of every batch.
"""

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import ops

from dilated_affinity import errors
from dilated_affinity.errors import ConfigError, DilatedAffinityError

PROCESS_VARIABLES = (
    "KERAS_DISTRIBUTION_JOB_ADDRESSES",
    "KERAS_DISTRIBUTION_NUM_PROCESSES",
    "KERAS_DISTRIBUTION_PROCESS_ID",
)
"""Keras' environment variables for training in several processes."""


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The devices that compute a training step together, see `find_replicas`.

    Attributes:
        count: Number of devices, over all processes.
        processes: Number of processes.
        process: Index of this process, from 0.
        strategy: `tf.distribute.Strategy` or `keras.distribution.Distribution` over the devices;
            None for a single device of another backend than TensorFlow.
    """

    count: int = 1
    processes: int = 1
    process: int = 0
    strategy: object = None

    @property
    def is_first(self) -> bool:
        """True in the first process, which writes files."""
        return self.process == 0

    def building(self):
        """Context in which to build a model and its optimizer."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def fitting(self):
        """Context of `model.fit`. Under TensorFlow the model keeps its strategy."""
        if keras.backend.backend() == "tensorflow":
            return contextlib.nullcontext()
        return self.building()


def find_replicas(num_replicas=0) -> Replicas:
    """Finds the devices to train on.

    Args:
        num_replicas: Number of devices of each process; 0 for all visible GPUs, or the CPU if
            there is none.

    Raises:
        ConfigError: If there are fewer devices, or the backend does not support several.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        strategy = replica_strategy(num_replicas)
        return Replicas(strategy.num_replicas_in_sync, strategy=strategy)
    if backend == "jax":
        return _jax_replicas(num_replicas)
    if num_replicas > 1:
        raise ConfigError(
            f"Several devices need the TensorFlow or JAX backend, not {backend}. "
            f"Received: num_replicas={num_replicas}"
        )
    return Replicas()


def replica_strategy(num_replicas=0):
    """Returns the `tf.distribute` strategy for a number of this machine's devices.

    Args:
        num_replicas: Number of devices; 0 for all visible GPUs, or the CPU if there is none.

    Returns:
        `MirroredStrategy` over the first GPUs (logical CPU devices if there are no GPUs), or
        TensorFlow's default strategy for one device.

    Raises:
        ConfigError: If there are fewer devices.
    """
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    count = _checked_count(num_replicas, len(devices), bool(gpus))
    if count == 1:
        return tf.distribute.get_strategy()
    return _mirrored_strategy(tuple(device.name for device in devices[:count]))


@functools.cache
def _mirrored_strategy(devices):
    """Creates one strategy for the same devices, since several interfere with each other."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(devices)


def gpu_names() -> list[str]:
    """Product names of the GPUs that this process can use."""
    if keras.backend.backend() == "jax":
        import jax

        return [each.device_kind for each in jax.local_devices() if each.platform == "gpu"]
    import tensorflow as tf

    return [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]


def _jax_replicas(num_replicas):
    import jax

    _hide_gpus_from_tensorflow()
    processes = jax.process_count()
    by_process = [
        [device for device in jax.devices() if device.process_index == process]
        for process in range(processes)
    ]
    own = by_process[jax.process_index()]
    count = _checked_count(num_replicas, len(own), own[0].platform != "cpu")
    # In the order of the processes, as the parts of a batch are concatenated.
    names = [f"{device.platform}:{device.id}" for each in by_process for device in each[:count]]
    strategy = None
    if len(names) > 1:
        strategy = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
    return Replicas(len(names), processes, jax.process_index(), strategy)


def _hide_gpus_from_tensorflow():
    """Hides the GPUs from TensorFlow, which only provides data, so that it reserves no memory."""
    import tensorflow as tf

    # Fails if TensorFlow has used a GPU before; JAX then has less memory.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


def _checked_count(num_replicas, available, gpus):
    count = num_replicas or (available if gpus else 1)
    if count > available:
        kind = "GPUs" if gpus else "CPU devices, and no GPU"
        raise ConfigError(f"There are {available} {kind}. Received: num_replicas={num_replicas}")
    return count


def check_batch_split(config, replicas: Replicas):
    """Raises `ConfigError` unless the batches of a run can be split over the devices.

    Args:
        config: The run's settings, a `Config`.
        replicas: The devices.
    """
    settings = dataclasses.asdict(config)
    given = [broadcast(lambda: settings, process) for process in range(replicas.processes)]
    for process, values in enumerate(given):
        first, other = config.replace(**given[0]), config.replace(**values)
        changes = first.changes(other, f"in process {process}")
        if changes:
            raise ConfigError(f"All processes must have the same settings. Received: {changes}")
    if config.batch_size // config.accumulation % replicas.count:
        raise ConfigError(
            f"batch_size / accumulation must be a multiple of the {replicas.count} replicas. "
            f"Received: batch_size={config.batch_size}, accumulation={config.accumulation}"
        )
    tensorflow = keras.backend.backend() == "tensorflow"
    if replicas.count > 1 and tensorflow and config.accumulation > 1:
        raise ConfigError(
            "accumulation over several devices needs KERAS_BACKEND=jax; Keras does not support it "
            "under TensorFlow. "
            f"Received: accumulation={config.accumulation}, {replicas.count} replicas"
        )
    share = config.batch_size // config.accumulation // replicas.count
    if config.batch_norm == "local" and share < 2:
        raise ConfigError(
            "batch_norm over single replicas needs at least 2 images on each. "
            f"Received: batch_norm='local', batch_size={config.batch_size}, "
            f"{replicas.count} replicas"
        )
    several = replicas.count > 1 and not tensorflow
    if several and config.batch_norm == "local":
        raise ConfigError(
            "batch_norm over single replicas needs the TensorFlow backend; under others it is "
            f"over all of them. Received: batch_norm='local', {replicas.count} replicas"
        )


def join_processes():
    """Connects this process to the others given by Keras' environment variables.

    Does nothing if none of `PROCESS_VARIABLES` is set, or if it is connected already. Call it
    before anything is computed.

    Raises:
        ConfigError: If the backend is not JAX, a variable is missing or not a number, or the
            processes cannot connect.
    """
    given = [name for name in PROCESS_VARIABLES if os.environ.get(name)]
    if not given:
        return
    if keras.backend.backend() != "jax":
        raise ConfigError(
            "Training in several processes needs KERAS_BACKEND=jax. "
            f"Received: KERAS_BACKEND={keras.backend.backend()}, {given[0]} is set"
        )
    if len(given) < len(PROCESS_VARIABLES):
        raise ConfigError(
            f"Of {', '.join(PROCESS_VARIABLES)} set all or none. Received: {', '.join(given)}"
        )
    import jax

    if jax.distributed.is_initialized():
        return
    try:
        keras.distribution.initialize()
    except (ValueError, RuntimeError) as error:
        settings = ", ".join(f"{name}={os.environ[name]}" for name in PROCESS_VARIABLES)
        reason = " ".join(str(error).split())
        raise ConfigError(f"Cannot join the processes: {reason} Received: {settings}") from error


def broadcast(function, process=0):
    """Calls `function` on one process and returns its result, or raises its error, on every one.

    All processes must call this together; only one of them calls the function.

    Args:
        function: Function without arguments that returns JSON types.
        process: The process that calls it.

    Returns:
        Its result. A `DilatedAffinityError` or `OSError` is raised on all processes, which would
        otherwise wait for the one that failed.
    """
    if not _several_processes():
        return function()
    return json.loads(_bytes_from_process(lambda: json.dumps(function()).encode(), process))


def _bytes_from_process(function, process=0):
    """Does the same as `broadcast` for a function that returns bytes.

    Processes exchange bytes and JSON only, since unpickling would run code from the network.
    """
    import jax
    from jax.experimental import multihost_utils

    calls, message = jax.process_index() == process, b""
    if calls:
        try:
            message = _RESULT + function()
        except (DilatedAffinityError, OSError) as error:
            message = _ERROR + json.dumps(_error_to_json(error)).encode()
    size = multihost_utils.broadcast_one_to_all(np.int32(len(message)), calls)
    content = np.zeros(size, np.uint8)
    if calls:
        content[:] = np.frombuffer(message, np.uint8)
    message = multihost_utils.broadcast_one_to_all(content, calls).tobytes()
    if message[:1] == _ERROR:
        raise _error_from_json(json.loads(message[1:]))
    return message[1:]


_RESULT, _ERROR = b"+", b"-"


def _error_to_json(error):
    if isinstance(error, OSError):
        return ["OSError", error.errno, error.strerror or str(error), error.filename]
    return [type(error).__name__, str(error)]


def _error_from_json(description):
    name, *arguments = description
    return {"OSError": OSError, **vars(errors)}[name](*arguments)


def any_process(flag: bool) -> bool:
    """Returns whether a flag is set on any process; all must call this together."""
    if not _several_processes():
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.bool_(flag)).any())


def first_process_first(function):
    """Calls `function` on the first process, then on the others.

    The first one may prepare files for all. Its errors are raised on every process.
    """
    results = []
    broadcast(lambda: results.append(function()))
    return results[0] if results else function()


@contextlib.contextmanager
def file_of_first_process(path):
    """Returns on every process a path to a copy of the first one's file, or None without the file.

    The processes need no shared file system.
    """
    path = Path(path)
    if not _several_processes():
        yield path if path.is_file() else None
        return
    if not broadcast(path.is_file):
        yield None
        return
    content = _bytes_from_process(path.read_bytes)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_bytes(content)
        yield copy


@contextlib.contextmanager
def on_own_devices():
    """Context in which Keras uses only the default device of this process."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def _several_processes():
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.process_count() > 1


def sum_over_replicas(value):
    """Sums a scalar over the replicas that compute this step together.

    Returns the value itself on a single replica, and under backends other than TensorFlow, where
    it already is that of the whole batch.
    """
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def mean_over_counted(sums, counted):
    """Scales values so that their mean over all replicas is the sum of `sums` per counted pixel.

    Keras takes the mean of the values on each replica and averages it over the replicas.

    Args:
        sums: float32 values of any shape, the same on every replica.
        counted: Number of counted pixels, or the sum of their weights, float32 scalar.

    Returns:
        `sums` times a common factor; 0 if nothing is counted on any replica.
    """
    size = ops.cast(ops.size(sums), "float32")
    total = sum_over_replicas(ops.stack([size, counted]))
    return sums * (total[0] / ops.where(total[1] > 0, total[1], 1.0))
