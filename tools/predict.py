"""What is in these pictures? Class names and probabilities, in the order in which the pictures were given."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, with nothing installed

from pipeline.console import at_least_one, run_tool
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation import decoded, find_pictures
from pipeline.files import printable
from pipeline.host import available_cores

EXAMPLE = """examples:
  python tools/predict.py photo.jpg --weights output/model_best.pth.tar
  python tools/predict.py /data/photos --weights inceptionv4.pth --classes names.txt --device cuda --json
"""


def main() -> int:
    """Returns 1 where a picture could not be decoded: it is named on stderr, and all others are predicted."""
    args = parse()
    files = find_pictures(args.pictures)

    import torch  # only now: decode processes, which import this file, have no use for it

    from model.precision import Precision
    from model.trained import load_trained, read_classes
    from model.weights import WeightsError
    from pipeline.device import find_device
    from pipeline.transfer import normalise

    try:
        classes = read_classes(args.classes) if args.classes else None
        trained = load_trained(args.weights, classes=classes, image_size=args.image_size)
    except WeightsError as error:
        raise DataError(str(error)) from error
    device = find_device(args.device)
    if device.images_per_s:
        raise ConfigError(f"--device {args.device} computes nothing: give npu, cuda or cpu")
    device.use()
    print(f"{trained.note}, on {device.name()}", file=sys.stderr)
    precision = Precision(level="O2" if args.amp else "O0", dtype=device.low_precision, device_type=device.kind)
    model = trained.model.to(device.torch_device).to(memory_format=device.memory_format)  # type: ignore[call-overload]
    precision.convert(model)
    top, failed, names = min(args.top, len(trained.classes)), 0, iter(files)
    for batch in decoded(files, image_size=trained.image_size, batch_size=args.batch_size, workers=args.workers):
        with torch.inference_mode():
            images = torch.from_numpy(batch.images).to(device.torch_device)
            ready = normalise(images, precision.input_dtype, device.memory_format)
            logits_NK = model(ready).float() if len(images) else ready.new_zeros(0, len(trained.classes)).float()
            best = logits_NK.softmax(1).topk(top)
        rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        for failure in batch.failures:
            name = next(names)
            if failure is not None:
                failed += 1
                print(f"{printable(name)}: {failure}", file=sys.stderr)
                continue
            values, numbers = next(rows)
            if args.json:
                found = [{"class": trained.classes[n], "index": n, "probability": v}
                         for v, n in zip(values, numbers, strict=True)]  # fmt: skip
                print(json.dumps({"file": name, "top": found}))
            else:
                said = (f"{trained.classes[n]} {100 * v:.1f} %" for v, n in zip(values, numbers, strict=True))
                print(f"{printable(name)}: {', '.join(said)}")
    if failed:
        print(f"{failed} of {len(files):,} pictures could not be decoded; the others are above", file=sys.stderr)
    return int(failed > 0)


def parse() -> argparse.Namespace:
    """The flags. Exits with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files, or folders of them at any depth")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE",
                        help="a checkpoint of train.py; weights of Cadene, timm or ours")  # fmt: skip
    parser.add_argument("--classes", type=Path, metavar="FILE",
                        help="names, one a line (default: the checkpoint's, else numbers)")  # fmt: skip
    parser.add_argument(
        "--top", type=at_least_one, default=5, metavar="K", help="how many classes of each (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON for each picture")
    parser.add_argument("--device", default="auto", help="auto, npu, npu:1, cuda, cuda:1, cpu")
    parser.add_argument("--amp", action="store_true", help="compute in low precision")
    parser.add_argument("--image-size", type=at_least_one, metavar="PIXELS",
                        help="(default: the checkpoint's, else 299)")  # fmt: skip
    parser.add_argument("-b", "--batch-size", type=at_least_one, default=32, metavar="N", help="(default: 32)")
    parser.add_argument("-j", "--workers", type=at_least_one, default=available_cores(), metavar="N",
                        help="processes that decode (default: the cores)")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    run_tool("predict.py", main)
