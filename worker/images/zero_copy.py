"""Zero-copy view of a Pillow image as a tensor; a copy would be a tenth of the time that a JPEG takes.

Pillow stores RGB in four bytes a pixel and exports them through the Arrow PyCapsule interface
(`Image.__arrow_c_array__`, Pillow 11.3 and later). The structure below is the ABI of Arrow's C data
interface, which is frozen: arrow.apache.org/docs/format/CDataInterface.html.
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
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def zero_copy_rgb(image: Image.Image) -> torch.Tensor | None:
    """uint8 (1, 4, height, width), channels last, of a loaded RGB image; the fourth channel is undefined.

    The tensor is a read-only view that keeps the image's memory alive. None where there is no such view:
    another mode, or an image so large that Pillow stores it in several blocks.
    """
    if image.mode != "RGB" or not hasattr(image, "__arrow_c_array__"):
        return None
    pixels = image.width * image.height
    try:
        capsules = image.__arrow_c_array__()
    except ValueError:  # several blocks
        return None
    array = ctypes.cast(_capsule_pointer(capsules[1], b"arrow_array"), ctypes.POINTER(_ArrowArray)).contents
    # a fixed-size list of four bytes per pixel: one child, whose second buffer has the values (the first: the nulls)
    if (array.length, array.offset, array.n_children) != (pixels, 0, 1):
        return None
    child = array.children[0].contents
    if (child.length, child.offset, child.n_buffers) != (4 * pixels, 0, 2) or not child.buffers[1]:
        return None
    memory = (ctypes.c_uint8 * (4 * pixels)).from_address(child.buffers[1])
    memory.owner = capsules  # type: ignore[attr-defined]  # the tensor keeps `memory` alive, and so the image's
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    return channels_last(flat.view(image.height, image.width, 4))


def channels_last(pixels: torch.Tensor) -> torch.Tensor:
    """(1, channels, height, width) of (height, width, channels), without a copy.

    Not `permute(2, 0, 1).unsqueeze(0)`, whose stride over the one image is too small for torch to take it for channels
    last: resizing such a tensor takes up to three times as long.
    """
    return pixels.unsqueeze(0).permute(0, 3, 1, 2)
