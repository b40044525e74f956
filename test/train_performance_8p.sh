#!/usr/bin/env bash
# Two epochs on eight cards: how fast they are.
# bash test/train_performance_8p.sh --data_path=FOLDER [FLAG of train.py]...    (--help says more)
exec bash "$(dirname "$0")/launch.sh" "$0" perf 8 --batch-size=1024 --lr=.484375 --epochs=2 --print-freq=5 -- "$@"
