#!/usr/bin/env bash
# Two epochs on one card: how fast it is.
# bash test/train_performance_1p.sh --data_path=FOLDER [--device_id=N] [FLAG of train.py]...    (--help says more)
exec bash "$(dirname "$0")/launch.sh" "$0" perf 1 --batch-size=155 --lr=.060546875 --epochs=2 --print-freq=5 -- "$@"
