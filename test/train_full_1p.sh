#!/usr/bin/env bash
# The whole recipe on one card.
# bash test/train_full_1p.sh --data_path=FOLDER [--device_id=N] [FLAG of train.py]...    (--help says more)
exec bash "$(dirname "$0")/launch.sh" "$0" acc 1 --batch-size=155 --lr=.060546875 --epochs=240 --print-freq=5 -- "$@"
