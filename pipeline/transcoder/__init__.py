"""Any JPEG -> the same picture, crop-addressed: read as coefficients, written as coefficients, not a pixel touched."""

from .coefficients import read_coefficients
from .crop_addressed import compile_kernels, to_crop_addressed
from .survey import Survey, survey_jpeg
from .tables import DamagedJpegError, NotTranscodableError

__all__ = [
    "DamagedJpegError",
    "NotTranscodableError",
    "Survey",
    "compile_kernels",
    "read_coefficients",
    "survey_jpeg",
    "to_crop_addressed",
]
