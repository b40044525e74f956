"""Turn an ImageNet folder into webdataset tar shards: ``python tools/make_shards.py SRC DST``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, with nothing installed

from pipeline.make_shards import main

if __name__ == "__main__":
    main()
