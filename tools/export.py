"""A trained network as ONNX, as torch.export's program, or as weights for timm; compared before it gets its name.

ONNX and program take uint8 [N, S, S, 3] pictures in RGB, of any number, and normalise them themselves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, with nothing installed

from pipeline.console import at_least_one, run_tool
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation import decoded, find_pictures
from pipeline.host import available_cores

EXAMPLE = """examples:
  python tools/export.py --weights output/model_best.pth.tar --onnx inceptionv4.onnx --check /data/photos
  python tools/export.py --weights output/model_best.pth.tar --pt2 inceptionv4.pt2 --timm inceptionv4.safetensors
"""
NOISE = 8  # pictures, where there are none to check with
MOST = 1000  # pictures to check with: at a tenth of a second each on a CPU, twice for each file that is written


def main() -> int:
    """Write what was asked for, and say how it compares."""
    args = parse()
    files = find_pictures(args.check) if args.check else []

    import torch  # only now: decode processes, which import this file, have no use for it

    from model.deployment import ExportError, export_onnx, export_pt2, export_timm
    from model.trained import load_trained, read_classes
    from model.weights import WeightsError

    try:
        classes = read_classes(args.classes) if args.classes else None
        trained = load_trained(args.weights, classes=classes, image_size=args.image_size)
    except WeightsError as error:
        raise DataError(str(error)) from error
    print(trained.note)
    size = trained.image_size
    if len(files) > MOST:
        print(f"note: of {len(files):,} pictures {MOST:,} are compared, evenly spread")
        files = [files[number * len(files) // MOST] for number in range(MOST)]
    if files:
        batches = list(decoded(files, image_size=size, batch_size=32, workers=available_cores()))
        images = torch.cat([torch.from_numpy(batch.images) for batch in batches])
        if len(images) < len(files):
            print(f"note: {len(files) - len(images)} of {len(files):,} pictures cannot be decoded; the others are used")
    else:
        images = torch.randint(
            256, (NOISE, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    if len(images) < 2:
        raise DataError(f"--check needs at least 2 pictures, found {len(images)}")
    for path, export in ((args.onnx, export_onnx), (args.pt2, export_pt2), (args.timm, export_timm)):
        if path:
            try:
                found = export(trained, path, images)
            except ExportError as error:
                raise DataError(str(error)) from error
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; {found}{'' if files else ' (of noise)'}", flush=True)
    return 0


def parse() -> argparse.Namespace:
    """The flags. Exits with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="export.py", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE",
                        help="a checkpoint of train.py; weights of Cadene, timm or ours")  # fmt: skip
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="(needs pip install onnx onnxscript onnxruntime)")
    parser.add_argument("--pt2", type=Path, metavar="FILE", help="for torch.export.load, in any later torch")
    parser.add_argument("--timm", type=Path, metavar="FILE", help="for timm's inception_v4: .pth or .safetensors")
    parser.add_argument("--classes", type=Path, metavar="FILE",
                        help="names, one a line (default: the checkpoint's, else numbers)")  # fmt: skip
    parser.add_argument("--image-size", type=at_least_one, metavar="PIXELS",
                        help="(default: the checkpoint's, else 299)")  # fmt: skip
    parser.add_argument("--check", nargs="+", metavar="PICTURE",
                        help="pictures, or folders of them, to compare with (default: noise)")  # fmt: skip
    args = parser.parse_args()
    outputs = [path for path in (args.onnx, args.pt2, args.timm) if path]
    if not outputs:
        raise ConfigError("nothing to do: give --onnx FILE, --pt2 FILE or --timm FILE")
    for path in outputs:
        if not path.parent.is_dir():
            raise ConfigError(f"no such folder: {path.parent}")
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: give the name of a file in it")
    return args


if __name__ == "__main__":
    run_tool("export.py", main)
