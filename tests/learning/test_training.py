"""Tests of lorkd_monailabel.learning.training."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorkd_monailabel.learning.checkpoint import load_checkpoint, save_checkpoint
from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.samples import Sample, Samples
from lorkd_monailabel.learning.trainer import Trainer
from lorkd_monailabel.learning.training import Interrupted, Loop, Progress, run, stop_on_signal
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.text_encoder import QueryTable
from tests.learning.trainers import DEPARTMENTS, copies, trainer_of

MakeSamples = Callable[..., Samples]


def new_run(
    folder: Path, table: QueryTable, samples: Samples, *, stop_after: int = 0, seed: int = 0, workers: int = 0
) -> tuple[list[float], Trainer]:
    """Run six steps with dropout; the losses seen and the trainer."""
    torch.manual_seed(seed)
    trainer = trainer_of(Decomposition(build_segmenter("tiny"), ranks=dict.fromkeys(DEPARTMENTS, 1)), table, steps=6)
    seen: list[Progress] = []
    sentence = f"stopped after step {stop_after} of 6; run again to go on"
    with pytest.raises(Interrupted, match=sentence) if stop_after else nullcontext():
        run(
            trainer,
            samples,
            Loop(3, lambda: bool(stop_after) and trainer.step == stop_after, workers=workers),
            checkpoint=folder / "run.pt",
            report=seen.append,
        )
    assert trainer.step == (stop_after or 6)
    for progress in seen:
        assert progress.steps == 6
        assert progress.loss == pytest.approx(sum(progress.losses.values()) / len(progress.losses))
        assert progress.seconds_left >= 0
    return [progress.loss for progress in seen], trainer


@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_resumed_run_is_an_unbroken_run(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, stop_after: int
) -> None:
    samples = make_samples(*DEPARTMENTS)
    unbroken, whole = new_run(tmp_path / "whole", table, samples)
    assert len(unbroken) == 6
    first, _ = new_run(tmp_path / "parts", table, samples, stop_after=stop_after)
    assert len(first) == stop_after
    # Another process: its weights and random numbers are others until the checkpoint is loaded.
    rest, resumed = new_run(tmp_path / "parts", table, samples, seed=99)
    assert first + rest == pytest.approx(unbroken, abs=1e-6)
    for name, tensor in whole.trained.items():
        torch.testing.assert_close(resumed.trained[name], tensor, atol=1e-6, rtol=1e-6)
    assert new_run(tmp_path / "parts", table, samples)[0] == []  # finished


def test_workers_change_nothing(tmp_path: Path, table: QueryTable, make_samples: MakeSamples) -> None:
    samples = make_samples(*DEPARTMENTS)
    alone, _ = new_run(tmp_path / "alone", table, samples)
    helped, _ = new_run(tmp_path / "helped", table, samples, workers=2)
    assert helped == pytest.approx(alone, abs=1e-6)


def test_state_is_saved_on_the_way(tmp_path: Path, table: QueryTable, make_samples: MakeSamples) -> None:
    torch.manual_seed(0)
    engine = Engine(bf16=False, save_every_s=0)
    trainer = trainer_of(Decomposition(build_segmenter("tiny"), ranks={"abdomen": 1}), table, steps=5, engine=engine)

    class PowerCut(Exception):
        pass

    def report(progress: Progress) -> None:
        if progress.step == 3:
            raise PowerCut

    with pytest.raises(PowerCut):
        run(
            trainer,
            make_samples("abdomen"),
            Loop(1, lambda: False, workers=0),
            checkpoint=tmp_path / "run.pt",
            report=report,
        )
    state = load_checkpoint(tmp_path / "run.pt")
    assert state is not None
    assert state["step"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_become_a_question_and_their_handlers_come_back(number: signal.Signals) -> None:
    def mine(*arguments: object) -> None:
        raise AssertionError("the handler of before was called")

    kept = {each: signal.signal(each, mine) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with stop_on_signal() as stop:
            assert stop() is False
            os.kill(os.getpid(), number)
            assert stop() is True
        assert all(signal.getsignal(each) is mine for each in kept)
        with pytest.raises(KeyError), stop_on_signal():
            raise KeyError
        assert all(signal.getsignal(each) is mine for each in kept)
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)


def test_the_average_takes_the_place_of_what_was_trained(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples
) -> None:
    samples = make_samples("abdomen", "spine")

    def begin(seed: int) -> Trainer:
        torch.manual_seed(seed)
        decomposition = Decomposition(build_segmenter("tiny"), ranks=dict.fromkeys(("abdomen", "spine"), 1))
        return trainer_of(decomposition, table, steps=4, engine=Engine(bf16=False, ema=0.3, save_every_s=0))

    def go(trainer: Trainer, folder: Path, *, stop_after: int = 0) -> list[dict[str, Tensor]]:
        trail = [copies(trainer.trained)]
        with pytest.raises(Interrupted) if stop_after else nullcontext():
            run(
                trainer,
                samples,
                Loop(2, lambda: trainer.step == stop_after, workers=0),
                checkpoint=folder / "run.pt",
                report=lambda progress: trail.append(copies(trainer.trained)),
            )
        return trail

    whole = begin(0)
    trail = go(whole, tmp_path / "whole")
    assert len(trail) == 5
    for name, tensor in whole.trained.items():
        expected = trail[0][name]
        for step, decay in enumerate((0.1, 2 / 11, 0.25, 0.3)):  # (1 + step) / (10 + step), at most 0.3
            expected = decay * expected + (1 - decay) * trail[step + 1][name]
        torch.testing.assert_close(tensor.detach(), expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(whole.trained["mask_embedding.2.bias"], trail[-1]["mask_embedding.2.bias"])

    go(begin(0), tmp_path / "parts", stop_after=2)
    for _ in range(2):  # a run that is over gives its averages again
        resumed = begin(9)
        go(resumed, tmp_path / "parts")
        for name, tensor in whole.trained.items():
            torch.testing.assert_close(resumed.trained[name], tensor, atol=1e-6, rtol=1e-6)


def test_a_checkpoint_of_before_goes_on(tmp_path: Path, table: QueryTable, make_samples: MakeSamples) -> None:
    samples = make_samples(*DEPARTMENTS)
    _, first = new_run(tmp_path, table, samples, stop_after=4)
    state = load_checkpoint(tmp_path / "run.pt")
    assert state is not None
    save_checkpoint({key: state[key] for key in ("step", "trained", "optimizer", "random")}, tmp_path / "run.pt")
    rest, trainer = new_run(tmp_path, table, samples)
    assert len(rest) == 2
    assert trainer.dropout_seed == first.dropout_seed  # drawn from the same seed


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_want_of_memory_is_one_sentence_with_the_next_smaller_setting_and_the_state_is_saved(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, error: Exception
) -> None:
    trainer = trainer_of(Decomposition(build_segmenter("tiny"), ranks={"abdomen": 1}), table, steps=5)
    loss = trainer.loss

    def lacking(*arguments: object) -> Tensor:
        if trainer.step == 2:
            raise error
        return loss(*arguments)

    trainer.loss = lacking  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="step 3 lacked memory") as caught:
        run(
            trainer,
            make_samples("abdomen"),
            Loop(4, lambda: False, workers=0),
            checkpoint=tmp_path / "run.pt",
            report=lambda progress: None,
        )
    assert "\n" not in str(caught.value)
    assert "its state is saved; set engine.accumulate to 2 and run again to go on" in str(caught.value)
    state = load_checkpoint(tmp_path / "run.pt")
    assert state is not None
    assert state["step"] == 2
    assert all(tensor.grad is None for tensor in trainer.trained.values())


def test_progress_tells_pace_waiting_and_learning_rate(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples
) -> None:
    trainer = trainer_of(Decomposition(build_segmenter("tiny"), ranks={"abdomen": 1}), table, steps=4)
    samples, seen = make_samples("abdomen"), []
    cut = samples.__class__.__getitem__

    class Slow(Samples):
        def __getitem__(self, index: int) -> Sample:
            time.sleep(0.15)
            return cut(self, index)

    samples.__class__ = Slow
    began = time.monotonic()
    run(trainer, samples, Loop(2, lambda: False, workers=0), checkpoint=tmp_path / "run.pt", report=seen.append)
    seconds = time.monotonic() - began
    assert [progress.learning_rate for progress in seen] == pytest.approx([1e-2, 1e-2, 0.75e-2, 0.25e-2])
    last = seen[-1]
    assert 8 / seconds <= last.samples_per_second <= 8 / (8 * 0.15)
    assert 8 * 0.15 / seconds <= last.waiting <= 1
    assert last.seconds_left == 0
