"""What a training run tells while it runs: console, `train.log`, `metrics.jsonl`, loss curves, and other trackers."""
