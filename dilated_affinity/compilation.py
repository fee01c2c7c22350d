"""One decision on compilation, made here for every part: element-wise passes over full-resolution
maps are compiled by XLA under TensorFlow, where unfused they cost more than the network."""

import functools

import keras


def compiled(function):
    """Compiles `function` with XLA under the TensorFlow backend; returns it as it is elsewhere.

    Tensors must be passed as arguments (their shapes make the compilation's key, and gradients
    flow through it); other arguments must be hashable and are compile-time constants. Under JAX
    and PyTorch the caller's own `jit` decides.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return functools.wraps(function)(
        tf.function(function, jit_compile=True, autograph=False, reduce_retracing=False)
    )


def any_image_size(function):
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
