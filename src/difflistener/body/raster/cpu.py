"""The C++ rasteriser behind torch.autograd, through ctypes: no Python or torch ABI, one library for all versions.

Knows nothing of CUDA. Axes as in the package's docstring.
"""

import ctypes
import functools
import os
from importlib import resources

import torch

from difflistener.errors import UserError

NAMES = ("means", "quats", "scales", "opacities", "colors")
LIBRARIES = ("libraster.so", "libraster.dylib", "raster.dll")

_floats = ctypes.c_void_p


class _Batch(ctypes.Structure):
    _fields_ = [*((name, _floats) for name in NAMES), *((f"{name}_stride", ctypes.c_int64) for name in NAMES),
                ("w2c", _floats), ("K", _floats), *((name, ctypes.c_int32) for name in ("batch", "n", "width", "height"))]


class _Gradients(ctypes.Structure):
    _fields_ = [*((name, _floats) for name in NAMES), ("absgrad", _floats)]


@functools.cache
def _library() -> ctypes.CDLL:
    folder = resources.files("difflistener.body.raster")
    for name in LIBRARIES:
        path = folder / name
        if path.is_file():
            library = ctypes.CDLL(str(path))
            break
    else:
        raise UserError("The CPU rasteriser was not built.",
                        "Run: pip install . (needs a C++17 compiler), or see CMakeLists.txt for a build in the source tree.")
    library.raster_forward.argtypes = [ctypes.POINTER(_Batch), _floats, _floats, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)]
    library.raster_forward.restype = ctypes.c_int32
    library.raster_paint.argtypes = [ctypes.POINTER(_Batch), _floats, ctypes.c_void_p]
    library.raster_paint.restype = ctypes.c_int32
    library.raster_backward.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Batch), _floats, _floats, ctypes.POINTER(_Gradients)]
    library.raster_backward.restype = None
    library.raster_release.argtypes = [ctypes.c_void_p]
    library.raster_release.restype = None
    library.raster_instruction_set.restype = ctypes.c_char_p
    library.raster_available.argtypes = [ctypes.c_int32]
    library.raster_available.restype = ctypes.c_char_p
    library.raster_force.argtypes = [ctypes.c_char_p]
    library.raster_force.restype = ctypes.c_int32
    library.raster_set_threads.argtypes = [ctypes.c_int32]
    library.raster_set_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0)
    return library


def instruction_set() -> str:
    """Name of the instruction set in use: avx512, avx2 or portable."""
    return _library().raster_instruction_set().decode()


def instruction_sets() -> list[str]:
    """Names of those that this processor has, best first."""
    return [name.decode() for index in range(3) if (name := _library().raster_available(index))]


def use_instruction_set(name: str | None) -> None:
    """Use the named instruction set from now on; None returns to the best. Raises `ValueError` if it is not there."""
    if not _library().raster_force(name.encode() if name else None):
        raise ValueError(f"this processor has no {name}; it has {', '.join(instruction_sets())}")


def set_threads(count: int) -> None:
    """Use `count` threads; 0 for as many as there are processors."""
    _library().raster_set_threads(count)


class _Kept:
    """What a backward pass needs, given back to the library when autograd lets go of it."""

    def __init__(self, handle: ctypes.c_void_p):
        self.handle = handle

    def __del__(self):
        if self.handle:
            _library().raster_release(self.handle)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, w2c, K, width, height, absgrad):
        tensors = _plain(means, quats, scales, opacities, colors, w2c, K)
        batch = len(w2c)
        rgb = torch.empty(batch, height, width, 3)
        alpha = torch.empty(batch, height, width, 1)
        kept = ctypes.c_void_p()
        needs_grad = any(ctx.needs_input_grad[:5])
        bad = _library().raster_forward(_describe(tensors, width, height), rgb.data_ptr(), alpha.data_ptr(), needs_grad, ctypes.byref(kept))
        if bad:
            _refuse(tensors, bad - 1)
        if needs_grad:
            ctx.save_for_backward(*tensors, rgb, alpha)
            ctx.kept, ctx.size, ctx.absgrad = _Kept(kept), (width, height), absgrad
            ctx.dtypes = [t.dtype for t in (means, quats, scales, opacities, colors)]
        return rgb, alpha

    @staticmethod
    def backward(ctx, grad_rgb, grad_alpha):
        *tensors, _, _ = ctx.saved_tensors
        gradients = [torch.empty_like(t) if needed else None for t, needed in zip(tensors[:5], ctx.needs_input_grad)]
        upstream = [None if g is None else g.to(torch.float32).contiguous() for g in (grad_rgb, grad_alpha)]
        absgrad = ctx.absgrad
        if absgrad is not None:
            assert absgrad.dtype == torch.float32 and absgrad.is_contiguous()
        out = _Gradients(*[_pointer(g) for g in gradients], _pointer(absgrad))
        _library().raster_backward(ctx.kept.handle, _describe(tensors, *ctx.size), *map(_pointer, upstream), ctypes.byref(out))
        gradients = [None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes)]
        return *gradients, None, None, None, None, None


def rasterize(means, quats, scales, opacities, colors, w2c, K, width, height, absgrad=None):
    """As `difflistener.body.raster.rasterize`, shapes already checked and N > 0."""
    return _Rasterize.apply(means, quats, scales, opacities, colors, w2c, K, width, height, absgrad)


def paint(means, quats, scales, opacities, colors, w2c, K, width, height, background):
    """As `difflistener.body.raster.paint`, shapes already checked and N > 0."""
    *tensors, background = _plain(means, quats, scales, opacities, colors, w2c, K, background)
    pictures = torch.empty(len(w2c), height, width, 3, dtype=torch.uint8)
    bad = _library().raster_paint(_describe(tensors, width, height), background.data_ptr(), pictures.data_ptr())
    if bad:
        _refuse(tensors, bad - 1)
    return pictures


def _plain(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.detach().to(torch.float32).contiguous() for t in tensors]


def _pointer(tensor: torch.Tensor | None):
    return None if tensor is None else tensor.data_ptr()


def _describe(tensors: list[torch.Tensor], width: int, height: int):
    gaussians, (w2c, K) = tensors[:5], tensors[5:]
    strides = [0 if len(t) == 1 else t[0].numel() for t in gaussians]
    return ctypes.byref(_Batch(*[t.data_ptr() for t in gaussians], *strides, w2c.data_ptr(), K.data_ptr(),
                               len(w2c), gaussians[0].shape[1], width, height))


def _refuse(tensors: list[torch.Tensor], scene: int) -> None:
    for name, tensor in zip(("w2c", "K"), tensors[5:]):
        if not torch.isfinite(tensor[scene]).all():
            raise ValueError(f"{name} of scene {scene} is not finite")
    for name, tensor in zip(NAMES, tensors):
        row = tensor[min(scene, len(tensor) - 1)]
        bad = ~torch.isfinite(row.reshape(len(row), -1)).all(1)
        if bad.any():
            raise ValueError(f"{name} of scene {scene} is not finite at Gaussian {int(bad.nonzero()[0])} ({int(bad.sum())} such)")
    raise AssertionError(f"scene {scene} was refused but all its inputs are finite")
