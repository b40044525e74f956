#!/usr/bin/env bash
# The whole recipe on eight cards.
# bash test/train_full_8p.sh --data_path=FOLDER [FLAG of train.py]...    (--help says more)
exec bash "$(dirname "$0")/launch.sh" "$0" acc 8 --batch-size=1024 --lr=.484375 --epochs=240 --print-freq=5 -- "$@"
