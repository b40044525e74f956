"""Do ONNX, torch.export's program and tools/predict.py say of each picture what the network says?

    python benchmarks/exports.py PICTURES

The network is whole, at 299 pixels and with 1,000 classes. Its features are random, with these pictures' own
statistics; its classifier is fitted to them, so that each picture has a class of its own: a network that says the same
of all pictures would agree with anything.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, with nothing installed

import torch
from torch import Tensor

from model.inceptionv4 import InceptionV4
from pipeline.evaluation import decoded, find_pictures
from pipeline.host import available_cores
from pipeline.transfer import normalise

TOOLS = Path(__file__).resolve().parents[1] / "tools"
BATCH = 25
RIDGE = 0.01


def random_network(images: Tensor) -> InceptionV4:
    """In ``eval``. ``images``: uint8 [N, 299, 299, 3]."""
    torch.manual_seed(0)
    model = InceptionV4(1000)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        for batch in images[: 12 * BATCH].split(BATCH):
            model(normalise(batch, torch.float32, torch.channels_last))
        model.eval()
        last, model.last_linear = model.last_linear, torch.nn.Identity()  # type: ignore[assignment]
        features_NC = logits(model, images).double()
        model.last_linear = last
        # Ridge regression on each picture's own number, with ten as its logit.
        centred = features_NC - features_NC.mean(0)
        ridge = centred @ centred.T + RIDGE * centred.square().sum(1).mean() * torch.eye(len(images))
        weight_NC = 10 * torch.linalg.solve(ridge, centred)
        last.weight.zero_()[: len(images)] = weight_NC
        last.bias.fill_(-5)[: len(images)] = -weight_NC @ features_NC.mean(0)
    return model


@torch.inference_mode()
def logits(model: InceptionV4, images: Tensor) -> Tensor:
    """[N, K], in fp32."""
    return torch.cat([model(normalise(batch, torch.float32, torch.channels_last)) for batch in images.split(BATCH)])


def main() -> None:
    """Print how many agree."""
    pictures = sys.argv[1]
    files = find_pictures([pictures])
    batches = decoded(files, image_size=299, batch_size=BATCH, workers=available_cores())
    images = torch.cat([torch.from_numpy(batch.images) for batch in batches])
    model = random_network(images)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        torch.save(model.state_dict(), weights)
        outputs = [f"--{kind}={folder}/a.{kind}" for kind in ("onnx", "pt2", "timm")]
        subprocess.run(
            [sys.executable, TOOLS / "export.py", "--weights", weights, *outputs, "--check", pictures], check=True
        )
        command = [sys.executable, TOOLS / "predict.py", pictures, "--weights", weights, "--json", "--device", "cpu"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    best = logits(model, images).argmax(1).tolist()
    predicted = {line["file"]: line["top"][0]["index"] for line in map(json.loads, said)}
    agree = sum(predicted[file] == number for file, number in zip(files, best, strict=True))
    print(f"predict.py: the same best class for {agree} of {len(files)} pictures ({len(set(best))} different ones)")


if __name__ == "__main__":
    main()
