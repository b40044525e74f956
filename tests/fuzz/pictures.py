"""Pictures: headers, the transcoder, what make_shards does with them, and the decoder of batches."""

from __future__ import annotations

import base64
import contextlib
import io
import random
import zlib
from functools import cache, partial
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import features

from pipeline.backends.pillow import PillowBackend, decode_rgb
from pipeline.crop_jpeg import describe
from pipeline.folder import picture_size
from pipeline.jpeg import read_header
from pipeline.prepare import JPEG_MODES, Recode, prepare
from pipeline.transcoder import NotTranscodableError, to_crop_addressed
from pipeline.transcoder.coefficients import read_coefficients
from tests.fuzz.engine import Target
from tests.fuzz.mutations import mutate_bytes, mutate_jpeg
from tests.jpegs import SAMPLINGS, jpeg
from tests.photos import PicturesInMemory, photo

_PIXELS_MAX = 1 << 22  # a picture that claims more takes long to decode, and that is not what is looked for here
_RECODE = Recode(max_side=24, quality=80)

# Arithmetic-coded, by libjpeg: sequential with restarts, progressive, grey. Nothing else at hand writes such files.
_ARITHMETIC = (
    """
    c-s4a<NpH&0WUXCHwH#V1_nkTWcYuZ!I?o?NJLyjP+D9}Tuw$>LBmN~LseBH(8|`pDIqj9B|bDZI;&!4V^-mW;^^4ct!)$LEndBLb$Y{|le?B3pS
    fc75|AN`GIDYn${K#!+I~y&V)K@e4E~>F5aeJGWl&{iRAOKfWMmd({C|dli$Oqul~GZU`~O`A76zvOw-|Vs8G+Kwf(-Ty7kr-N94yhblG?6t*W$G
    OySJtW&$Enmz8_jq<!N#L_v-V!C9@sM#SU8hj=h*3`1ajQw?!|Rr$nT`b9Tym`1zp!bNMrSy)1rQ&{!Umv2+Tr&az*n+sfsdZpi;Wwj*Ef|AoKDW
    @>FX&beKGkz!0lxp&f(V~wxQFEI<2S~F$UM9&KDvZYPc<`!*l>pwG2W>pZ$_I$rKYMXj~V8j25e=aTf<CdgpJ^9unlcn`Pt$sbLsqlYeuxI1cl+(
    }ow|_sQYb|tr&iW|5my%Tx1|t7&0swd1xT^
    """,
    """
    c-s4a<NpH&0WUXCHwH#V1_nkTWcYuZ!I?o?NJLyjP+D9}Tuw$>LBmN~LseBH(8|`pDIqj9B|bDZI;&!4V^-mW;^^4ct!)$LEndBLb$Y{|le?B3pS
    fc75|AN`GIDYn${K#!+I~y&V)K@e4E~>D5aeJGWDsU%6l7o$WMmd({C|dljX{7>@&7Fb9%e=cCIMyvptGlJ>tDsv^+9uUiiiEKgD0}&fXY||Sb>T
    -fZk$cWm20cwbP3+DnsSVan}Tpq#!p~l9`dwo>6Yeg*6jI{`_6HJUukG-?DoCu376fkQ6b26vee}+iYom;70j`yaWZM)Vbf!IG|X<X3x~Wlrv+M$
    p%!r?G+Vn+0I(u@p|_$jw8(`IdXN6^VS`JIiG=<fq_9_^BbuJXpRz?%KGHjt^ElZhtn6=f4K3o0nI%EzwhRB$InsB-Onbgx&FFS1DdS@$4Y<a&o+
    7|H2L-Zj%#nH@-o=oXg<YJ`r7M7`yAy-E1W<4zX<@>@5Xu
    """,
    """
    c-jFB0rUR<*#F=F5K2Z#MgRc;000310RRC1+W<oV8xj;36cHO278f2I8z3k`D<~x;C{a2+FhXEeWn^DfU0Z5+nSp9?kaJsIg|&u|o};U+t7m|`$-
    1V;nW(Fz|H%Lg2ml@c6#)Se0RPMY1^^Hc1^?Xu1ONg5+5iXv0RR9$0MM_UI6??3x5)B<|IpeKDZM*b88b<^2>;Riq}}_=*bubRJaB>k(*B5+lhVj
    7Ay{7j)B9zAB#LP`VE@$p8x3n(OENJ`A3*=r`$pzh>26Y-|JLrRHI$Cc(0%^I|JT6Xmi6n@aD{!q|Iqy~1HX-X&v}6V(e?q<Ab2vzKmXFpx|u*6V
    $Y9SsQ=l)uX>m
    """,
)


@cache
def jpegs() -> list[bytes]:
    """Small JPEGs of all kinds."""
    sizes = ((37, 21), (16, 16), (8, 50), (33, 9), (40, 24), (66, 17), (23, 24))
    kinds = list(zip(sizes, SAMPLINGS, strict=True))
    baseline = [jpeg(n, *size, kind, quality=60) for n, (size, kind) in enumerate(kinds)]
    progressive = [jpeg(9 + n, *size, kind, progressive=True) for n, (size, kind) in enumerate(kinds)]
    restarts, exif = io.BytesIO(), io.BytesIO()
    photo(1, 48, 32).save(restarts, "JPEG", restart_marker_blocks=2, comment=b"a comment")
    photo(2, 20, 30).save(exif, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
    arithmetic = [zlib.decompress(base64.b85decode("".join(text.split()))) for text in _ARITHMETIC]
    written = [to_crop_addressed(data) for data in (baseline[0], baseline[3], arithmetic[1])]
    return [*baseline, *progressive, *arithmetic * 3, restarts.getvalue(), exif.getvalue(), *written]


@cache
def pictures() -> list[bytes]:
    """JPEGs and what else a folder may hold."""
    found = jpegs()
    modes = {"PNG": ("RGB", "L", "RGBA", "P", "1", "I;16", "LA"), "GIF": ("P", "L"), "BMP": ("RGB", "P", "1")}
    modes |= {"PPM": ("RGB", "L", "1"), "TIFF": ("RGB", "CMYK", "P", "F")}
    modes |= {"WEBP": ("RGB", "RGBA")} if features.check("webp") else {}
    for form, its in modes.items():
        for number, mode in enumerate(its):
            file = io.BytesIO()
            picture = photo(number, 19 + number, 23)
            (picture.convert("L").convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)).save(
                file, form
            )
            found = [*found, file.getvalue()]
    file = io.BytesIO()
    photo(1, 20, 20, "P").save(file, "PNG", transparency=3)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"  # Pillow would run a program
    return [*found, file.getvalue(), eps]


def mutate_picture(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A JPEG changed as one, or another picture's bytes."""
    data = rng.choice(seeds)
    return mutate_jpeg(rng, data, seeds) if data[:2] == b"\xff\xd8" else mutate_bytes(rng, data, seeds)


def is_large(data: bytes) -> bool:
    """Whether a picture claims so many pixels that it is left to the tests of that."""
    header = read_header(data)
    if header:
        return header.width * header.height > _PIXELS_MAX
    try:
        width, height = picture_size(data)
    except Exception:
        return False
    return width * height > _PIXELS_MAX


def libjpeg(data: bytes) -> np.ndarray | None:
    """What libjpeg decodes without a warning, or None."""
    header = read_header(data)
    try:
        colours = {1: "GRAY", 3: "RGB", 4: "CMYK"}[header.components if header else 0]
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, colours)
    except (ValueError, KeyError):
        return None
    return pixels


def _check_header(data: bytes, rng: random.Random, folder: Path) -> str:
    header = read_header(data)
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError:
        height = width = 0
    if header is None:
        return "none, libjpeg has one" if width else "none"
    assert (width, height) in ((0, 0), (header.width, header.height))
    return "header"


def _check_transcoder(data: bytes, rng: random.Random, folder: Path) -> str:
    written = to_crop_addressed(data)
    header = read_header(written)
    assert header
    assert describe(written)[0]
    assert to_crop_addressed(written) == written
    before, after = read_coefficients(data), read_coefficients(written)
    for a, b in zip(before.components, after.components, strict=True):
        assert np.array_equal(a.blocks, b.blocks)
        assert np.array_equal(before.quantisation[a.table], after.quantisation[b.table])
    if header.width * header.height > _PIXELS_MAX:
        return "written, large"
    got, want = libjpeg(written), libjpeg(data)
    assert got is not None, "libjpeg does not take what was written"
    assert want is not None, "libjpeg does not take what was read"
    assert np.array_equal(got, want)
    return "written"


def _check_prepare(mode: str, data: bytes, rng: random.Random, folder: Path) -> str:
    if is_large(data):
        return "large"
    prepared = prepare(mode, data, _RECODE)
    picture = decode_rgb(prepared.data)
    assert picture.size == (prepared.width, prepared.height)
    assert (prepared.header, prepared.crc) == describe(prepared.data)
    if mode == "recode":
        assert prepared.header
        assert max(picture.size) <= _RECODE.max_side
        assert libjpeg(prepared.data) is not None
    elif mode == "verbatim":
        assert prepared.data == data
    else:
        assert prepared.header
    if mode == "crop" and not any(remark.kind == "normalised" for remark in prepared.remarks):
        assert np.array_equal(np.asarray(picture), np.asarray(decode_rgb(data)))
    return "crop-addressed" if prepared.header else "kept"


def _check_decoder(data: bytes, rng: random.Random, folder: Path) -> str:
    if is_large(data):
        return "large"
    width, height = picture_size(data)
    pictures = PicturesInMemory([data], [(width, height)])
    w, h = rng.randint(1, width), rng.randint(1, height)
    x, y = rng.randint(0, width - w), rng.randint(0, height - h)
    backend = PillowBackend(image_size=16, max_pictures=1)
    pixels = backend.cut(pictures, 0, (x, y, w, h), pictures.whole(0))
    at = pixels.first + np.arange(h)[:, None, None] * pixels.stride + np.arange(w)[:, None] * pixels.step + np.arange(3)
    want = np.asarray(decode_rgb(data))
    if not np.array_equal(pixels.memory[at], want[y : y + h, x : x + w]):
        # Of a picture that ends before its last scan, with EOI, libjpeg shows what it likes, and does not warn.
        with contextlib.suppress(NotTranscodableError):
            read_coefficients(data)
            raise AssertionError("other pixels than Pillow's")
        return "without all its scans"
    return "damaged" if pictures.damaged else "decoded"


TARGETS = (
    Target(name="header", share=10, seeds=jpegs, mutate=mutate_picture, check=_check_header),
    Target(name="transcoder", share=30, seeds=jpegs, mutate=mutate_picture, check=_check_transcoder),
    Target(name="decoder", share=10, seeds=pictures, mutate=mutate_picture, check=_check_decoder),
    *(
        Target(
            name=f"prepare-{mode}", share=5, seeds=pictures, mutate=mutate_picture, check=partial(_check_prepare, mode)
        )
        for mode in JPEG_MODES
    ),
)
