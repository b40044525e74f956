"""Why is my accelerator starving? ``python tools/profile_loader.py --shards DST --demand 474.6 --devices 8``."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, with nothing installed

from pipeline import ConfigError, PipelineConfig
from pipeline.console import run_tool
from pipeline.profiler.command import Say, run
from pipeline.profiler.on_device import OnDevice, measure_on_device


def on_device(name: str, config: PipelineConfig, seconds: float, flags: Sequence[str], say: Say) -> OnDevice:
    """Measure train.py's very step, with these flags of it, on a real device."""
    import torch

    import train
    from model.options import parse_options
    from model.precision import Precision
    from model.ranks import Ranks
    from pipeline.device import find_device
    from pipeline.source import open_source
    from pipeline.transfer import Feed

    flag = "--shards" if config.shards is not None else "--data"
    options = parse_options([flag, str(config.root), "--device", name, "--image-size", str(config.image_size), *flags])
    device = find_device(name)
    if device.images_per_s:
        raise ConfigError("a simulated device has no step to measure: --demand 474.6 --devices 8")
    device.use()
    dtype = getattr(torch, options.amp_dtype) if options.amp_dtype else device.low_precision
    precision = Precision(level=options.opt_level, dtype=dtype, device_type=device.kind)
    source = open_source(config)
    training = train.build_run(options, Ranks(), device, precision, source.classes)
    source.close()
    training.parallel.train()
    say(f"the step on {device.name()}")
    measured = measure_on_device(
        lambda loader: Feed(loader, device, precision.input_dtype),
        lambda batch: train.train_step(training, batch),
        config,
        seconds,
    )
    training.checkpoints.close()
    return measured


if __name__ == "__main__":
    run_tool("profile_loader", lambda: run(trainer=on_device))
