"""Trains as ``gnnsys train`` does and logs to Weights & Biases; without it, to a JSON Lines file.

    python examples/log_to_wandb.py my-graph --epochs 20 --project products

The hook is ``run_training(config, on_epoch=…)``: a function that is told after each epoch. There
are ``on_batch``, ``on_stats`` and ``on_evaluation``, too. An error in one of them ends the run as
any error does, and the checkpoint of the epoch before stays.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from gnnsys.config.train import TrainConfig
from gnnsys.training import EpochRecord, run_training


class FileRun:
    """The methods of ``wandb.Run`` that are used here, over a file."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self._path = path
        path.write_text(json.dumps({"config": config}) + "\n")

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(values if step is None else {**values, "step": step}) + "\n")

    def finish(self) -> None:
        print(f"wrote {self._path}")


def start(project: str, config: dict[str, Any]) -> Any:
    """A run of W&B where it is installed, else a file."""
    try:
        import wandb
    except ImportError:
        return FileRun(Path(f"{project}.jsonl"), config)
    return wandb.init(project=project, config=config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", help="a dataset folder or a name, as of gnnsys train")
    parser.add_argument("--project", default="gnnsys")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", help="folder for the run")
    options = parser.parse_args()

    config = TrainConfig(dataset=options.dataset, epochs=options.epochs, out=options.out)
    run = start(options.project, dataclasses.asdict(config))

    def log(record: EpochRecord) -> None:
        values = {"train/loss": record.loss, "val": record.val, "test": record.test}
        run.log({key: value for key, value in values.items() if value is not None}, record.epoch)

    result = run_training(config, on_epoch=log)
    best = {"best_epoch": result.best_epoch, "best_val": result.best_val}
    run.log({**best, "best_test": result.best_test})
    run.finish()


if __name__ == "__main__":
    main()
