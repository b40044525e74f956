"""Why is my accelerator starving? ``python tools/profile_loader.py --shards DST --demand 474.6 --devices 8``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, with nothing installed

from pipeline.console import run_tool
from pipeline.profiler.command import run

if __name__ == "__main__":
    run_tool("profile_loader", run)
