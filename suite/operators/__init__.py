"""Linear operators with exact adjoints: an algebra that composes, stacks, scales, and solves.

An operator maps a batch `(B, *domain)` to a batch `(B, *range)`; every batch item is independent. The inner product of
both spaces is the real one, `Re <a, b>`, so an operator from real images to complex measurements has an adjoint too.
"""

from suite.linalg import (
    adjoint_error,
    conjugate_gradient,
    dot,
    expand,
    lanczos_function,
    operator_norm,
    pseudo_inverse,
)
from suite.operators.base import SVD, Adjoint, Compose, Diagonal, Identity, LinearOperator, Sum
from suite.operators.dense import InverseCholesky, Matrix
from suite.operators.fourier import (
    FFT,
    Convolve,
    FourierDiagonal,
    circulant_preconditioner,
    circulant_symbol,
    gaussian_kernel,
)
from suite.operators.separable import Separable
from suite.operators.structure import (
    Block,
    CoilSensitivities,
    Downsample,
    SliceAxis,
    Stack,
    Subsample,
    ToComplex,
)
from suite.operators.tangent import Tangent

__all__ = [
    "FFT",
    "SVD",
    "Adjoint",
    "Block",
    "CoilSensitivities",
    "Compose",
    "Convolve",
    "Diagonal",
    "Downsample",
    "FourierDiagonal",
    "Identity",
    "InverseCholesky",
    "LinearOperator",
    "Matrix",
    "Separable",
    "SliceAxis",
    "Stack",
    "Subsample",
    "Sum",
    "Tangent",
    "ToComplex",
    "adjoint_error",
    "circulant_preconditioner",
    "circulant_symbol",
    "conjugate_gradient",
    "dot",
    "expand",
    "gaussian_kernel",
    "lanczos_function",
    "operator_norm",
    "pseudo_inverse",
]
