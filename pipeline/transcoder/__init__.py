"""Any JPEG -> the same picture, crop-addressed: read as coefficients, written as coefficients, not a pixel touched."""

from .crop_addressed import compile_kernels, to_crop_addressed
from .tables import NotTranscodableError

__all__ = ["NotTranscodableError", "compile_kernels", "to_crop_addressed"]
