"""Trainings that end where the first step would begin, once all before it was accepted."""


class FirstStepReachedError(Exception):
    """Training has accepted all and would begin."""


def stop_at_first_step(monkeypatch):
    """Has every training raise `FirstStepReachedError` in the place of its first step."""

    def stop(*_):
        raise FirstStepReachedError

    monkeypatch.setattr("dilated_affinity.training.trainer.Trainer.train", stop)
