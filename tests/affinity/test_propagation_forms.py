"""Tests of all forms of Eq. 6 against the same loops over pixels, under TensorFlow and JAX."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import jax_processes, reference
from helpers.jax_processes import needs_jax, run_under_jax
from keras import ops

from dilated_affinity import propagate
from dilated_affinity.affinity.early_stopping import EarlyStop, propagate_until_stable
from dilated_affinity.affinity.forms import select
from dilated_affinity.affinity.propagation import AffinityPropagation
from dilated_affinity.errors import ConfigError

RATES = ((2, 3), (1, 1))
SHAPE = (3, 13, 17)
CLASSES = 5
TILES = (4, 8), (16, 16)
SIZES = {"odd": SHAPE, "row": (1, 1, 9), "column": (2, 11, 1)}


def inputs(shape=SHAPE, seed=0):
    probabilities = reference.random_probabilities(seed, (*shape, CLASSES))
    affinities = np.random.default_rng(seed).normal(0.5, 0.6, (*shape, 8 * len(RATES)))
    return probabilities, affinities.clip(0, 1).astype(np.float32)


def mask():
    """A mask with holes, different for each image."""
    valid = np.random.default_rng(1).random(SHAPE) > 0.1
    valid[0, 9:] = False
    valid[1, :, 11:] = False
    return valid


def masked_inputs():
    given = inputs()
    for each in given:
        each[~mask()] = np.nan
    return given


def loops(probabilities, affinities, iterations, self_weight=6.0, valid=None):
    """Eq. 6 by `reference`, without the pixels that are not valid."""
    valid = np.ones(probabilities.shape[:3], bool) if valid is None else valid
    probabilities, affinities = (np.array(each) for each in (probabilities, affinities))
    refined = probabilities.copy()
    for image, inside in enumerate(valid):
        probabilities[image][~inside], affinities[image][~inside] = 0, 0
        for channel, (s, t) in enumerate(reference.offsets(RATES)):
            for y, x in np.argwhere(inside):
                if reference.inside(y + s, x + t, inside.shape) and not inside[y + s, x + t]:
                    affinities[image, y, x, channel] = 0
        refined[image][inside] = reference.propagate(
            probabilities[image], affinities[image], RATES, iterations, self_weight
        )[inside]
    return refined


def weights():
    return np.random.default_rng(2).normal(size=(*SHAPE, CLASSES)).astype(np.float32)


def gradients(iterations, valid=None):
    """Gradients of a scalar function of the refined probabilities."""
    given = [ops.convert_to_tensor(each) for each in inputs()]

    def value(*given):
        refined = propagate(*given, RATES, iterations, 2.0, valid_mask=valid)
        return ops.sum(weights() * refined)

    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(value, (0, 1))(*given)
    with tf.GradientTape() as tape:
        tape.watch(given)
        result = value(*given)
    return tape.gradient(result, given)


def computations():
    """The compared computations as functions, by name."""
    stop = EarlyStop(1, 0.03)
    masked = {"valid_mask": mask()}
    found = {
        size: lambda shape=shape: propagate(*inputs(shape), RATES, 3)
        for size, shape in SIZES.items()
    }
    for iterations in (0, 1, 10):
        found[f"{iterations} iterations"] = lambda n=iterations: propagate(*inputs(), RATES, n)
    found["no self weight"] = lambda: propagate(*inputs(), RATES, 3, 0.0)
    found["masked"] = lambda: propagate(*masked_inputs(), RATES, 3, **masked)
    found["bfloat16"] = lambda: propagate(*inputs(), RATES, 10, storage_dtype="bfloat16")
    found["stopped"] = lambda: propagate_until_stable(
        *masked_inputs(), RATES, 10, stop=stop, **masked
    )
    for name, by in (("by probabilities", 0), ("by affinities", 1)):
        found[f"gradient {name}"] = lambda by=by: gradients(3)[by]
        found[f"masked gradient {name}"] = lambda by=by: gradients(3, mask())[by]
    return found


def results_of(form, *names):
    with select.form(form):
        return {
            name: np.asarray(compute())
            for name, compute in computations().items()
            if name in (names or computations())
        }


def under_jax():
    """`results_of` every form, and of the interpreted kernel over several tiles."""
    import jax

    from dilated_affinity.affinity.forms.kernel_grid import KernelGrid

    found = {
        f"{form}/{name}": value
        for form in ("fused", "kernel")
        for name, value in results_of(form).items()
    }

    def interpreted(given, valid, iterations, tile, storage_dtype="float32"):
        given = [ops.convert_to_tensor(each) for each in given]
        if valid is not None:
            valid = ops.cast(valid, "float32")[..., None]
        grid = KernelGrid(
            *given,
            valid,
            ops.convert_to_tensor(6.0),
            RATES,
            storage_dtype=storage_dtype,
            tile=tile,
            interpret=True,
        )
        return grid.end(grid.iterate(grid.start(given[0]), iterations), given[0])

    for tile in TILES:
        for size, shape in SIZES.items():
            found[f"{tile}/{size}"] = interpreted(inputs(shape), None, 3, tile)
        found[f"{tile}/masked"] = interpreted(masked_inputs(), mask(), 3, tile)
    found["(4, 8)/bfloat16"] = interpreted(inputs(), None, 10, (4, 8), "bfloat16")

    # Lowered for CUDA: the code that Triton is given, or the error.
    shapes = [jax.ShapeDtypeStruct((2, 33, 70, channels), "float32") for channels in (21, 16)]

    @jax.jit
    def kernel_step(probabilities, affinities):
        grid = KernelGrid(probabilities, affinities, None, ops.convert_to_tensor(6.0), RATES)
        return grid.step(grid.start(probabilities))

    device = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=None, platform="cuda")
    mesh = jax.sharding.AbstractMesh((1,), ("batch",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = kernel_step.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    found["for CUDA"] = "triton" in lowered
    found["for CPU"] = "triton" in kernel_step.trace(*shapes).lower().as_text()
    return found


@pytest.fixture(scope="module")
def expected():
    """Results of the loops; for gradients, those of the form for CPUs, which has its own tests."""
    found = {size: loops(*inputs(shape), 3) for size, shape in SIZES.items()}
    for iterations in (0, 1, 10):
        found[f"{iterations} iterations"] = loops(*inputs(), iterations)
    found["no self weight"] = loops(*inputs(), 3, 0.0)
    found["masked"] = loops(*masked_inputs(), 3, valid=mask())
    found["bfloat16"] = loops(*inputs(), 10)
    return {**found, **results_of("lanes", *(set(computations()) - set(found)))}


@pytest.fixture(scope="module")
def of_fused():
    return results_of("fused")


@pytest.fixture(scope="module")
def of_jax(tmp_path_factory):
    return run_under_jax(__file__, "under_jax", tmp_path_factory.mktemp("forms"))[0]


def check(results, expected):
    assert set(results) == set(expected)
    for name, value in results.items():
        tolerance = 0.02 if name == "bfloat16" else 2e-5
        np.testing.assert_allclose(value, expected[name], atol=tolerance, rtol=1e-4, err_msg=name)


def test_fused_form_equals_loops(of_fused, expected):
    check(of_fused, expected)


@needs_jax
@pytest.mark.parametrize("form", ["fused", "kernel"])
def test_forms_equal_loops_under_jax(form, expected, of_jax):
    prefix = f"{form}/"
    found = {k.removeprefix(prefix): v for k, v in of_jax.items() if k.startswith(prefix)}
    check(found, expected)


@needs_jax
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_kernel_equals_loops(tile, expected, of_jax):
    for name in (*SIZES, "masked"):
        np.testing.assert_allclose(
            of_jax[f"{tile}/{name}"], expected[name], atol=2e-5, err_msg=name
        )


@needs_jax
def test_kernel_in_bfloat16_equals_loops(expected, of_jax):
    found = of_jax["(4, 8)/bfloat16"]
    np.testing.assert_allclose(found, expected["bfloat16"], atol=0.02)
    assert np.abs(found - expected["bfloat16"]).max() > 1e-4


@needs_jax
def test_kernel_is_compiled_for_cuda_only(of_jax):
    assert of_jax["for CUDA"] and not of_jax["for CPU"]


def test_bfloat16_storage(of_fused, expected):
    errors = {
        name: np.abs(of_fused[name] - expected[name]).max()
        for name in ("bfloat16", "10 iterations")
    }
    assert errors["bfloat16"] > 1e-4 > 1e-5 > errors["10 iterations"]


def test_fused_gradients_equal_finite_differences():
    """`test_propagation_gradient` has the same for the form for CPUs."""
    probabilities, affinities = (each.astype(np.float64) for each in inputs())
    with select.form("fused"):
        found = [np.asarray(each) for each in gradients(3)]
    rng = np.random.default_rng(3)
    image = 1

    def value(probabilities, affinities):
        refined = reference.propagate(probabilities[image], affinities[image], RATES, 3, 2.0)
        return (refined * weights()[image]).sum()

    for _ in range(15):
        place = (image, *(rng.integers(side) for side in SHAPE[1:]))
        channel = rng.integers(affinities.shape[-1])
        # Two classes change in opposite directions, so that probabilities still sum to 1.
        one, other = rng.choice(CLASSES, 2, replace=False)
        ends = []
        for step in (1e-5, -1e-5):
            moved = affinities.copy()
            moved[(*place, channel)] += step
            shifted = probabilities.copy()
            shifted[(*place, one)] += step
            shifted[(*place, other)] -= step
            ends.append([value(shifted, affinities), value(probabilities, moved)])
        by_probabilities, by_affinities = np.subtract(*ends) / 2e-5
        assert found[1][(*place, channel)] == pytest.approx(by_affinities, rel=2e-3, abs=2e-5)
        difference = found[0][(*place, one)] - found[0][(*place, other)]
        assert difference == pytest.approx(by_probabilities, rel=2e-3, abs=2e-5)


# Selection.


def test_form_on_cpu():
    assert select.suitable_form() == "lanes"
    assert select.suitable_form("bfloat16") == "fused"


def test_form_on_gpu(monkeypatch):
    monkeypatch.setattr(select, "on_gpu", lambda: True)
    assert select.suitable_form() == "fused"
    taken = []
    build = select.grid
    monkeypatch.setattr(select, "grid", lambda *a: taken.append(a[0]) or build(*a))
    propagate(*inputs((1, 3, 4)), RATES, 2)
    assert taken == ["fused"]


def test_form_context():
    with select.form("fused"):
        assert select.suitable_form() == "fused"
        with select.form("lanes"):
            assert select.suitable_form() == "lanes"
    assert select.suitable_form() == "lanes"
    with pytest.raises(ConfigError, match="Received: 'quick'"), select.form("quick"):
        pass


@pytest.mark.parametrize("storage_dtype", ["float16", "half", None])
def test_unknown_storage_dtype_is_refused(storage_dtype):
    with pytest.raises(ConfigError, match="Received: storage_dtype"):
        propagate(*inputs(), RATES, 1, storage_dtype=storage_dtype)
    with pytest.raises(ConfigError, match="Received: storage_dtype"):
        AffinityPropagation(RATES, storage_dtype=storage_dtype)


def test_layer_with_bfloat16_storage():
    probabilities, logits = inputs()
    layer = AffinityPropagation(RATES, 10, mu=np.e, storage_dtype="bfloat16")
    expected = loops(probabilities, 1 / (1 + np.exp(-logits)), 10)
    error = np.abs(np.asarray(layer([probabilities, logits])) - expected).max()
    assert 1e-4 < error < 0.02
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert again.storage_dtype == "bfloat16"


if __name__ == "__main__":
    jax_processes.main(globals(), *sys.argv[1:])
