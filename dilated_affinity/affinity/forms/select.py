"""Selects the form of Eq. 6 for the device. All forms compute the same."""

import contextlib
import contextvars
import functools

import keras
from absl import logging

from dilated_affinity.affinity.forms.fused_grid import FusedGrid
from dilated_affinity.affinity.forms.lanes_grid import LanesGrid
from dilated_affinity.errors import ConfigError, first_line
from dilated_affinity.runtime.xla import on_gpu

STORAGE_DTYPES = ("float32", "bfloat16")

FORMS = ("lanes", "fused", "kernel")
"""`LanesGrid` for CPUs, `FusedGrid` for GPUs, `KernelGrid` for CUDA GPUs under JAX."""

_chosen = contextvars.ContextVar("form", default=None)


@contextlib.contextmanager
def form(name):
    """Context in which propagation uses the form `name`, one of `FORMS`, on any device.

    For functions that are traced on one device to run on another, and for tests.
    """
    if name not in FORMS:
        raise ConfigError(f"A form must be one of {', '.join(FORMS)}. Received: {name!r}")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def suitable_form(storage_dtype="float32"):
    """The form for the device on which the current operations will run."""
    name = _chosen.get() or _form_of_device()
    # The form for CPUs stores float32 only.
    return "fused" if name == "lanes" and storage_dtype != "float32" else name


def _form_of_device():
    if not on_gpu():
        return "lanes"
    # XLA cannot partition the kernel and would gather the whole batch on every device.
    several = keras.distribution.distribution() is not None
    return "kernel" if not several and _kernel_compiles() else "fused"


def grid(form, storage_dtype, *arguments):
    """Builds the `Grid` of a form; the other arguments are those of `Grid`."""
    if form == "lanes":
        return LanesGrid(*arguments)
    options = {"storage_dtype": storage_dtype}
    if form == "fused":
        return FusedGrid(*arguments, **options)
    # Imported here since it needs JAX.
    from dilated_affinity.affinity.forms.kernel_grid import KernelGrid

    return KernelGrid(*arguments, **options)


def check_storage_dtype(storage_dtype):
    """Raises `ConfigError` unless the dtype is one of `STORAGE_DTYPES`."""
    if storage_dtype not in STORAGE_DTYPES:
        raise ConfigError(
            f"storage_dtype must be one of {', '.join(STORAGE_DTYPES)}. "
            f"Received: storage_dtype={storage_dtype!r}"
        )


@functools.cache
def _kernel_compiles():
    """Compiles a small kernel once and returns whether that worked; logs a warning if not."""
    if keras.backend.backend() != "jax":
        return False
    import jax

    if "cuda" not in jax.devices("gpu")[0].client.platform_version.lower():
        return False

    def step(probabilities, affinities):
        arguments = probabilities, affinities, None, keras.ops.ones(()), ((1, 1),)
        tried = grid("kernel", "float32", *arguments)
        return tried.step(tried.start(probabilities))

    shapes = [jax.ShapeDtypeStruct((1, 4, 4, channels), "float32") for channels in (2, 8)]
    try:
        jax.jit(step).lower(*shapes).compile()
    except Exception as error:  # JAX, Triton and the driver raise errors of many types
        logging.warning(
            "propagation uses the slower XLA form, since its CUDA kernel does not compile: %s: %s",
            type(error).__name__,
            first_line(error),
        )
        return False
    return True
