"""Pillow's own memory as a tensor, without a copy, which would be a tenth of the time that a JPEG takes.

Pillow keeps RGB as four bytes a pixel and hands them out through the Arrow PyCapsule interface
(`Image.__arrow_c_array__`, Pillow 11.3 and later). The structure that is read here is the ABI of
Arrow's C data interface, which is frozen: arrow.apache.org/docs/format/CDataInterface.html.
"""

from __future__ import annotations

import ctypes

import torch
from PIL import Image


class _ArrowArray(ctypes.Structure):
    pass


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]
_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def zero_copy_rgb(image: Image.Image) -> torch.Tensor | None:
    """uint8 (1, 4, height, width), channels last, of a loaded RGB image; the fourth channel means nothing.

    The tensor is a view: it must not be written to, and it keeps the image's memory alive. None where
    there is no such view: another mode, or an image so large that Pillow holds it in several pieces.
    """
    if image.mode != "RGB" or not hasattr(image, "__arrow_c_array__"):
        return None
    pixels = image.width * image.height
    try:
        capsules = image.__arrow_c_array__()
    except ValueError:  # in several pieces
        return None
    array = ctypes.cast(_pointer_in(capsules[1], b"arrow_array"), ctypes.POINTER(_ArrowArray)).contents
    # a list of four bytes for each pixel: one child, whose second buffer holds the numbers (the first: what is null)
    if (array.length, array.offset, array.n_children) != (pixels, 0, 1):
        return None
    child = array.children[0].contents
    if (child.length, child.offset, child.n_buffers) != (4 * pixels, 0, 2) or not child.buffers[1]:
        return None
    memory = (ctypes.c_uint8 * (4 * pixels)).from_address(child.buffers[1])
    memory.owner = capsules  # type: ignore[attr-defined]  # the tensor holds `memory`, and so all of it
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    return flat.view(image.height, image.width, 4).permute(2, 0, 1).unsqueeze(0)
