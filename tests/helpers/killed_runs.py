"""Runs that are killed repeatedly, and statistics of their results.

    PYTHONPATH=tests python -m helpers.killed_runs --folder=/tmp/kills --kills=60 --seed=1

It prints its figures as JSON; `experiments/results/kills.json` has those of 60 kills with
`--rates=2`. Every run is a process forked from this one after all imports and before TensorFlow has
computed anything, which saves the time of the imports.
"""

import argparse
import json
import os
import shutil
import signal
import time
from pathlib import Path

import keras
import numpy as np

from dilated_affinity.datasets.registry import load_source
from dilated_affinity.datasets.shapes import Shapes
from dilated_affinity.run_dir.checkpoints import Checkpoints
from dilated_affinity.run_dir.layout import CHECKPOINTS, LOG_FILE
from dilated_affinity.training.trainer import train
from dilated_affinity.version import __version__
from helpers.tiny import tiny_config

PATIENCE = 300
KINDS = ("while starting", "between saves", "inside a save")


class Killer:
    """Kills runs at random times and continues them after each kill.

    Args:
        folder: The folder of all files.
        seed: Seed of the times.
        settings: Settings of the run that differ from `run_config`.
    """

    def __init__(self, folder, seed, **settings):
        self.folder = Path(folder)
        self.config = run_config(self.folder / "data", **settings)
        self.rng = np.random.default_rng(seed)
        self.wait(self.fork(self.draw))

    def measure(self, kills):
        """Returns the figures of some kills, after each of which the run is continued."""
        undisturbed, killed = self.folder / "undisturbed", self.folder / "killed"
        begin = time.monotonic()
        process = self.start(undisturbed)
        self.watch(process, undisturbed, "step-*.keras", 1)
        starting = time.monotonic() - begin
        self.wait(process)
        counts, ended, same = dict.fromkeys(KINDS, 0), 0, 0
        while sum(counts.values()) < kills:
            before = stamps(killed)
            process = self.start(killed)
            if self.kill(process, killed, starting):
                new = {name for name, _ in stamps(killed) - before}
                writing = any(name.startswith(".writing-") for name in new)
                counts[KINDS[2] if writing else KINDS[1] if new else KINDS[0]] += 1
                if sum(counts.values()) < kills:
                    continue
                self.wait(self.start(killed))
            ended += 1
            same += self.status(self.fork(lambda: compare(undisturbed, killed))) == 0
            shutil.rmtree(killed)
        return {"kills": counts, "runs ended": ended, "identical to the undisturbed": same}

    def kill(self, process, folder, starting):
        """Kills a run at a random time; returns False if it had ended before."""
        kind = self.rng.choice(3, p=(0.15, 0.45, 0.4))
        if kind == 0:
            delay = self.rng.uniform(0, starting)
        else:
            pattern = ".writing-*" if kind == 2 else "step-*.keras"
            if not self.watch(process, folder, pattern, self.rng.integers(1, 4)):
                return False
            delay = self.rng.uniform(0, 0.02 if kind == 2 else 0.3)
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        return os.WIFSIGNALED(status)

    def watch(self, process, folder, pattern, count):
        """Waits for new files or the end of the process; returns False for the latter."""
        seen = set((folder / CHECKPOINTS).glob(pattern))
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            new = set((folder / CHECKPOINTS).glob(pattern)) - seen
            seen |= new
            count -= len(new)
            if count <= 0:
                return True
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                self.wait(process)
                return False
            time.sleep(0.0005)
        raise TimeoutError(f"{folder}: the run makes no progress.")

    def start(self, folder):
        return self.fork(lambda: train(self.config, folder))

    def draw(self):
        load_source("shapes", "val", self.config.data_dir)

    def fork(self, function):
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            function()
            status = 0
        finally:
            os._exit(status)

    def status(self, process):
        _, status = os.waitpid(process, 0)
        return status

    def wait(self, process):
        if status := self.status(process):
            raise RuntimeError(f"a run ended with status {status}.")


def run_config(data_dir, **settings):
    """12 steps of a small network on `shapes`, each with a checkpoint."""
    settings = {"train_steps": 12, "validate_every": 6, "crop_size": 65, **settings}
    return tiny_config(data_dir, checkpoint_every=1, **settings).replace(dataset="shapes")


def compare(one, other):
    """Raises an error unless two runs ended with bitwise equal weights, optimizer and log."""
    models = [keras.models.load_model(last(each)) for each in (one, other)]
    variables = ((*model.weights, *model.optimizer.variables) for model in models)
    for first, second in zip(*variables, strict=True):
        assert np.asarray(first).tobytes() == np.asarray(second).tobytes(), first.path
    assert (one / LOG_FILE).read_bytes() == (other / LOG_FILE).read_bytes()


def stamps(folder):
    """The files in the folder of checkpoints with their modification times."""
    return {(path.name, path.stat().st_mtime_ns) for path in (folder / CHECKPOINTS).glob("*")}


def last(folder):
    return Checkpoints(folder / CHECKPOINTS).latest()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rates", default="none")
    given = parser.parse_args()
    # Drawing the whole data set takes longer than a run. Not at import time, also done by pytest.
    Shapes.SPLIT_SIZES = {"train": 20, "val": 2}
    killer = Killer(given.folder, given.seed, rates=given.rates)
    about = {"package_version": __version__, "keras": keras.__version__}
    about |= {"rates": given.rates, "seed": given.seed}
    print(json.dumps({**about, **killer.measure(given.kills)}))


if __name__ == "__main__":
    main()
