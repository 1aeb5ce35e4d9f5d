# mypy: ignore-errors
# (numba types these functions itself)
"""Compiled inner loops of the projector: Joseph's interpolation for a group of slices at once.

The slices of a group are the lanes of one SIMD vector: an image is an array of vectors, one per pixel, so the geometry
of a step along a ray is computed once for the whole group. `Vector` brings the vector into numba; `load`, `store`,
`fma` and `zero` are its only operations.

A ray's position across the image is a 64-bit integer with 32 fractional bits, `a + b n` at step `n`. Integers do
not round, so `forward` and `adjoint` see the same weights to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int32, int64, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

FRACTION_BITS = 32
_UNIT = np.float32(2.0**-24)
_ONE = np.float32(1.0)


def lane_dtype(dtype: Any, lanes: int) -> np.dtype[Any]:
    """The element of a group's arrays: one number for each slice of the group."""
    return np.dtype([("lanes", dtype, (lanes,))])


class Vector(types.Type):
    """A SIMD register of `lanes` numbers, as a numba type."""

    def __init__(self, dtype: types.Float, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"Vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        scalar = ir.FloatType() if fe_type.dtype == types.float32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(scalar, fe_type.lanes))


def _vector_of(array: types.Array) -> Vector:
    nested = array.dtype.fields["lanes"].type
    return Vector(nested.dtype, nested.shape[0])


def _address(context: Any, builder: Any, array_type: types.Array, array: Any, index: Any) -> tuple[Any, int]:
    vector = _vector_of(array_type)
    data = cgutils.create_struct_proxy(array_type)(context, builder, value=array).data
    pointer = builder.bitcast(builder.gep(data, [index]), context.get_value_type(vector).as_pointer())
    return pointer, vector.dtype.bitwidth // 8


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """`array[index]` as a vector."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, align = _address(context, builder, signature.args[0], args[0], args[1])
        value = builder.load(pointer)
        value.align = align
        return value

    return _vector_of(array)(array, types.intp), build


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """`array[index] = value`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, align = _address(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], pointer).align = align
        return context.get_dummy_value()

    return types.none(array, types.intp, value), build


@intrinsic
def fma(typingctx: Any, factor: Any, vector: Any, addend: Any) -> Any:
    """`factor * vector + addend` for a scalar factor, rounded once."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[1].type
        undefined = ir.Constant(kind, ir.Undefined)
        first = builder.insert_element(undefined, args[0], int32_constant(0))
        splat = builder.shuffle_vector(
            first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
        )
        name = f"llvm.fma.v{kind.count}f{signature.return_type.dtype.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(function, [splat, args[1], args[2]])

    return addend(vector.dtype, vector, addend), build


@intrinsic
def zero(typingctx: Any, array: Any) -> Any:
    """A vector of zeros, fit for the elements of `array`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return _vector_of(array)(array), build


def int32_constant(value: int) -> Any:
    return ir.Constant(ir.IntType(32), value)


@njit(nogil=True, cache=True)
def forward(image, sinogram, ray, a, b, weight, first, last, start, stop, steps, row, band):
    """Add to `sinogram[ray[r]]` the sum along ray `r` of the image, for `start <= r < stop`.

    At step `n` (one image row of `row` vectors) the ray crosses at `a[r] + b[r] n`, which lies between two pixels of
    the row; it takes their linear interpolation. Only the steps `first[r] <= n < last[r]` meet the image. The image is
    taken in bands of `band` rows, which stay in the cache while all rays pass.
    """
    for low in range(0, steps, band):
        for r in range(start, stop):
            n0, n1 = max(int64(first[r]), low), min(int64(last[r]), low + band)
            if n0 >= n1:
                continue
            slope = b[r]
            position = a[r] + slope * n0
            base = n0 * row
            left = right = zero(image)
            for _ in range(n1 - n0):
                at = base + (position >> 32)
                f = np.float32(int32((position >> 8) & 0xFFFFFF)) * _UNIT
                left = fma(_ONE - f, load(image, at), left)
                right = fma(f, load(image, at + 1), right)
                position += slope
                base += row
            k = int64(ray[r])
            store(sinogram, k, fma(weight[r], left, fma(weight[r], right, load(sinogram, k))))


@njit(nogil=True, cache=True)
def adjoint(image, sinogram, ray, a, b, weight, first, last, low, high, row):
    """Add to the rows `low <= n < high` of the image what `forward`'s transpose sends there from all rays."""
    for r in range(ray.size):
        n0, n1 = max(int64(first[r]), low), min(int64(last[r]), high)
        if n0 >= n1:
            continue
        slope = b[r]
        position = a[r] + slope * n0
        base = n0 * row
        value = fma(weight[r], load(sinogram, int64(ray[r])), zero(sinogram))
        for _ in range(n1 - n0):
            at = base + (position >> 32)
            f = np.float32(int32((position >> 8) & 0xFFFFFF)) * _UNIT
            store(image, at, fma(_ONE - f, value, load(image, at)))
            store(image, at + 1, fma(f, value, load(image, at + 1)))
            position += slope
            base += row


@njit(nogil=True, cache=True)
def pack(x, along, across):
    """Slices `(S, ny, nx)` as lanes of two images, `along` `(ny, nx + 2, lanes)` and, turned, `across` `(nx, ny + 2, lanes)`.

    Both have an empty column at either side.
    """
    slices, ny, nx = x.shape
    lanes = along.shape[2]
    along[:, 0] = along[:, nx + 1] = across[:, 0] = across[:, ny + 1] = 0
    for i in range(ny):
        for j in range(nx):
            for k in range(slices):
                along[i, j + 1, k] = x[k, i, j]
            along[i, j + 1, slices:] = 0
    for i in range(ny):
        for j in range(nx):
            for k in range(lanes):
                across[j, i + 1, k] = along[i, j + 1, k]


@njit(nogil=True, cache=True)
def unpack(along, across, out):
    """The transpose of `pack`: the sum of both images, as slices `(S, ny, nx)`; `along` is overwritten."""
    slices, ny, nx = out.shape
    lanes = along.shape[2]
    for i in range(ny):
        for j in range(nx):
            for k in range(lanes):
                along[i, j + 1, k] += across[j, i + 1, k]
        for k in range(slices):
            for j in range(nx):
                out[k, i, j] = along[i, j + 1, k]


@njit(nogil=True, cache=True)
def mirror(x, out):
    """The eight mirror images of a square slice `(n, n)` as lanes `4 d + 2 r + c` of `out`, `(n, n + 2, 8)`."""
    n = x.shape[0]
    for i in range(n):
        out[i, 0] = out[i, n + 1] = 0
        for j in range(n):
            for d in range(2):
                for r in range(2):
                    for c in range(2):
                        u, v = (n - 1 - i if r else i), (n - 1 - j if c else j)
                        out[i, j + 1, 4 * d + 2 * r + c] = x[v, u] if d else x[u, v]


@njit(nogil=True, cache=True)
def mirror_adjoint(lanes, out):
    """The transpose of `mirror`: the sum of the eight mirror images, each turned back, `(n, n)`."""
    n = out.shape[0]
    for i in range(n):
        for j in range(n):
            total = lanes[i, j + 1, 0]
            for lane in range(1, 8):
                d, r, c = lane >> 2, (lane >> 1) & 1, lane & 1
                u, v = (j, i) if d else (i, j)
                u, v = (n - 1 - u if r else u), (n - 1 - v if c else v)
                total += lanes[u, v + 1, lane]
            out[i, j] = total
