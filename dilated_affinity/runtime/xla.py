"""One decision on compilation, made here for every part: element-wise passes over full-resolution
maps are compiled by XLA, where unfused they cost more than the network."""

import functools

import keras


def compiled(function):
    """Compiles `function` with XLA under the TensorFlow and JAX backends; elsewhere it stays.

    Tensors must be passed by position (their shapes make the compilation's key, and gradients
    flow through them); other arguments must be hashable and are compile-time constants.
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
    """Whether what is traced or computed now will run on a GPU, as the backend places it."""
    if keras.backend.backend() == "tensorflow":
        return _tensorflow_on_gpu()
    if keras.backend.backend() == "jax":
        return _jax_on_gpu()
    return False


def _tensorflow_on_gpu():
    import tensorflow as tf

    if not tf.config.list_logical_devices("GPU"):
        return False
    # In a graph the device of the scope, and none where TensorFlow is to choose, which takes a GPU.
    device = tf.zeros(()).device
    return not device or tf.DeviceSpec.from_string(device).device_type in (None, "GPU")


def _jax_on_gpu():
    import jax

    device = jax.config.jax_default_device or jax.devices()[0]
    # In recent versions it may be the name of a platform.
    return getattr(device, "platform", device) in ("gpu", "cuda", "rocm")


def has_values(tensor):
    """False for a tensor that stands for values while a graph is traced."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return not tf.is_symbolic_tensor(tensor)
    if keras.backend.backend() == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return True


def trace_once(function):
    """Makes a graph of a function of uint8 images (B, H, W, 3), traced once for all sizes.

    Not compiled by XLA: it compiles anew for each size. Under other backends the function itself.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(
        function,
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
        autograph=False,
    )
