#!/usr/bin/env bash
# Score a checkpoint on eight cards.
# bash test/train_eval_8p.sh --data_path=FOLDER --pth_path=CHECKPOINT [FLAG of train.py]...    (--help says more)
exec bash "$(dirname "$0")/launch.sh" "$0" eval 8 --evaluate --batch-size=1240 --print-freq=30 -- "$@"
