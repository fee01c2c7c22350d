"""Eq. 6 as a Pallas (Triton) kernel for CUDA GPUs under the JAX backend.

XLA's loops compute one class of one pixel at a time and read that pixel's affinities again for
each class. The kernel reads them once and keeps them in registers while it iterates over the
classes, plane by plane, so that the neighbours' probabilities come from the cache.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas
from jax.experimental.pallas import triton

from dilated_affinity.affinity.forms.fused_grid import FusedGrid

_TILE = 16, 64
"""Height and width of the tile that a program of the kernel computes, powers of two."""

_WARPS = 8


@dataclasses.dataclass(frozen=True)
class Planes:
    """Layout of an image in a plane of the state, a whole number of tiles in both directions.

    Rows are separated by a gap of zeros, which serves as the right margin of one row and the left
    margin of the next; above and below are as many rows of zeros as neighbours reach. A neighbour
    is thus at a fixed distance in memory, and the kernel needs no check of the image's borders.

    Args:
        height: Height of the image.
        width: Width of the image.
        vertical: Largest vertical distance of a neighbour.
        horizontal: Largest horizontal distance of a neighbour.
        tile: Height and width of the tiles.
    """

    height: int
    width: int
    vertical: int
    horizontal: int
    tile: tuple[int, int]

    @property
    def rows(self) -> int:
        """The image's rows, rounded up to whole tiles."""
        return _rounded_up(self.height, self.tile[0])

    @property
    def columns(self) -> int:
        """The image's columns, rounded up to whole tiles."""
        return _rounded_up(self.width, self.tile[1])

    @property
    def top(self) -> int:
        """Rows above the image; one extra for the neighbours above and left of the first pixel."""
        return _rounded_up(self.vertical + 1, self.tile[0])

    @property
    def all_rows(self) -> int:
        """Rows of a plane."""
        return self.rows + 2 * self.top

    @property
    def all_columns(self) -> int:
        """Distance in memory from one row to the next."""
        return _rounded_up(max(self.columns, self.width + self.horizontal), self.tile[1])


def _rounded_up(size, multiple):
    return -(-size // multiple) * multiple


class KernelGrid(FusedGrid):
    """Form for CUDA GPUs under JAX, with a state of shape (B, C, length of a plane), see `Planes`.

    Compiled for any other device, it computes `FusedGrid`'s step instead.

    Args:
        tile: Height and width of the tiles, powers of two.
        warps: Warps of 32 threads that compute a tile.
        interpret: Run the kernel in Pallas' interpreter, on any device.

    For the others see `FusedGrid`.
    """

    class_axis = 1

    def __init__(self, *arguments, tile=_TILE, warps=_WARPS, interpret=False, **options):
        super().__init__(*arguments, **options)
        self._arguments = arguments, options
        reach = self.vertical, self.horizontal
        self._planes = Planes(self.height, self.width, *reach, tile)
        planes = self._planes
        self._affinity_planes = _as_planes(self.affinities, 0, (planes.rows, planes.columns))
        kernel = functools.partial(
            _step, classes=self.classes, planes=planes, offsets=tuple(map(tuple, self.offsets))
        )
        batch = self.affinities.shape[0]
        tiles = planes.all_columns // tile[1], planes.all_rows // tile[0], batch
        length = planes.all_rows * planes.all_columns
        self._call = pallas.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct((batch, self.classes, length), self.storage_dtype),
            grid=tiles,
            compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
            interpret=interpret,
            name="affinity_propagation",
        )
        self._interpret = interpret

    def _state(self, values):
        planes = self._planes
        size = planes.all_rows, planes.all_columns
        return _as_planes(values.astype(self.storage_dtype), planes.top, size)

    def values(self, state):
        planes = self._planes
        state = state.reshape(*state.shape[:2], planes.all_rows, planes.all_columns)
        inside = state[:, :, planes.top : planes.top + self.height, : self.width]
        return jnp.moveaxis(inside, 1, -1).astype("float32")

    def step(self, state):
        operands = jnp.reshape(self.self_weight, 1), state, self._affinity_planes
        if self._interpret:
            return self._call(*operands)
        return jax.lax.platform_dependent(*operands, cuda=self._call, default=self._plain_step)

    def _plain_step(self, self_weight, state, affinity_planes):
        del self_weight, affinity_planes
        current = self.values(state)
        return self._state(self.refine(current, self.neighbors(current)))

    def gradient(self, upstream, probabilities, iterations):
        """See `Grid.gradient`; computed by `FusedGrid`."""
        arguments, options = self._arguments
        return FusedGrid(*arguments, **options).gradient(upstream, probabilities, iterations)


def _as_planes(values, top, size):
    """Reshapes (B, H, W, X) to (B, X, rows * columns), padded to `size` below `top` rows of 0."""
    batch, height, width, channels = values.shape
    below, behind = size[0] - top - height, size[1] - width
    planes = jnp.moveaxis(values, -1, 1)
    planes = jnp.pad(planes, [(0, 0), (0, 0), (top, below), (0, behind)])
    return planes.reshape(batch, channels, size[0] * size[1])


def _step(self_weight, state, affinities, refined, *, classes, planes, offsets):
    """One program of the kernel: computes a tile of all classes, zeros outside the image.

    Args:
        self_weight: Reference to lambda, (1,).
        state: Reference to the state, (B, C, length).
        affinities: Reference to (B, 8|R|, rows * columns), 0 where there is no neighbour.
        refined: Reference to the new state.
        classes: C.
        planes: `Planes`.
        offsets: (dy, dx) of the neighbours.
    """
    column, row, image = (pallas.program_id(axis) for axis in range(3))
    height, width = planes.tile
    stride = planes.all_columns
    first_row, rows = planes.top // height, planes.rows // height
    columns = planes.columns // width
    down = jax.lax.broadcasted_iota("int32", planes.tile, 0)
    right = jax.lax.broadcasted_iota("int32", planes.tile, 1)
    places = (row * height + down) * stride + column * width + right
    in_image = (row >= first_row) & (row < first_row + rows) & (column < columns)

    def load(channel, distance=0):
        return triton.load(state.at[image, channel, places + distance]).astype("float32")

    def store(channel, values):
        triton.store(refined.at[image, channel, places], values.astype(refined.dtype))

    @pallas.when(in_image)
    def refine():
        there = ((row - first_row) * height + down) * planes.columns + column * width + right
        weights = [
            # Read once only, so they should not evict probabilities from the cache.
            triton.load(affinities.at[image, channel, there], eviction_policy="evict_first")
            for channel in range(len(offsets))
        ]
        weights = [weight.astype("float32") for weight in weights]
        peak = jax.lax.fori_loop(
            1, classes, lambda channel, peak: jnp.maximum(peak, load(channel)), load(0)
        )
        own = self_weight[0] * peak
        total = own + functools.reduce(jnp.add, weights)
        positive = total > 0
        share = 1.0 / jnp.where(positive, total, 1.0)

        def refine_class(channel, _):
            current = load(channel)
            mixed = own * current
            for weight, (dy, dx) in zip(weights, offsets, strict=True):
                mixed += weight * load(channel, dy * stride + dx)
            store(channel, jnp.where(positive, mixed * share, current))
            return 0

        jax.lax.fori_loop(0, classes, refine_class, 0)

    @pallas.when(jnp.logical_not(in_image))
    def clear():
        def clear_class(channel, _):
            store(channel, jnp.zeros(planes.tile, "float32"))
            return 0

        jax.lax.fori_loop(0, classes, clear_class, 0)
