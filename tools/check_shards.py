"""Check a folder of shards: ``python tools/check_shards.py DST``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, with nothing installed

from pipeline.check import main

if __name__ == "__main__":
    main()
