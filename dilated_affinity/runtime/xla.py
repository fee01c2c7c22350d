"""Compilation by XLA, used for element-wise operations on full-resolution maps.

Without fusion, these take longer than the network.
"""

import functools

import keras


def compiled(function):
    """Compiles `function` with XLA under the TensorFlow and JAX backends; else returns it as it is.

    Tensors must be positional arguments; the function is compiled for each of their shapes, and is
    differentiable with respect to them. Other arguments must be hashable compile-time constants.
    """
    if keras.backend.backend() == "tensorflow":
        return _compiled_by_tensorflow(function)
    if keras.backend.backend() == "jax":
        return _compiled_by_jax(function)
    return function


def _compiled_by_tensorflow(function):
    import tensorflow as tf

    return functools.wraps(function)(
        tf.function(function, jit_compile=True, autograph=False, reduce_retracing=False)
    )


def _compiled_by_jax(function):
    import jax

    @functools.cache
    def compiled_for(constants):
        return jax.jit(function, static_argnums=constants)

    @functools.wraps(function)
    def call(*arguments):
        constants = (i for i, each in enumerate(arguments) if not hasattr(each, "dtype"))
        return compiled_for(tuple(constants))(*arguments)

    return call


def on_gpu():
    """Returns whether the current operations, eager or traced, will run on a GPU."""
    if keras.backend.backend() == "tensorflow":
        return _tensorflow_on_gpu()
    if keras.backend.backend() == "jax":
        return _jax_on_gpu()
    return False


def _tensorflow_on_gpu():
    import tensorflow as tf

    if not tf.config.list_logical_devices("GPU"):
        return False
    # In a graph this is the device of the scope; without one, TensorFlow will choose a GPU.
    device = tf.zeros(()).device
    return not device or tf.DeviceSpec.from_string(device).device_type in (None, "GPU")


def _jax_on_gpu():
    import jax

    device = jax.config.jax_default_device or jax.devices()[0]
    # In recent versions this may be the name of a platform.
    return getattr(device, "platform", device) in ("gpu", "cuda", "rocm")


def has_values(tensor):
    """Returns whether a tensor has values, which is False while a graph is traced."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return not tf.is_symbolic_tensor(tensor)
    if keras.backend.backend() == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return True


def trace_once(model, function):
    """Converts a function of uint8 images (B, H, W, 3) to a graph, traced once for all sizes.

    It is not compiled by XLA, which would compile it for each size. Under JAX, which knows no
    sizes that vary, it is compiled for each. Under other backends the function itself is returned.

    Args:
        model: The `keras.Model` that the function calls.
        function: The function.
    """
    if keras.backend.backend() == "jax":
        return compiled_with_weights(model, function)
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(
        function,
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
        autograph=False,
    )


def compiled_with_weights(model, function):
    """Compiles a function under JAX that calls a model in inference, for each shape of arguments.

    Weights are arguments of what is compiled, so that others need no new compilation.

    Args:
        model: The `keras.Model`.
        function: The function of tensors.
    """
    import jax

    @jax.jit
    def compiled_call(values, *arguments):
        mapping = list(zip(model.variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(*arguments)

    def call(*arguments):
        return compiled_call([variable.value for variable in model.variables], *arguments)

    return call
