"""The table of epochs, with values by hand."""

import math

from peftly.report.epochs import epoch_rows


def step(number, loss, trained=1, per_epoch=2):
    return {"kind": "step", "step": number, "epoch": number / per_epoch, "loss": loss, "trained_tokens": trained}


def evaluation(number, loss, *, best=False, per_epoch=2, **scores):
    return {"kind": "evaluation", "step": number, "epoch": number / per_epoch, "loss": loss, "best": best, **scores}


def test_losses_and_perplexities_of_epochs():
    records = [step(1, 3.0, 10), step(2, 1.0, 30), evaluation(2, 2.0, best=True), step(3, 1.0), step(4, 0.0)]
    records += [evaluation(4, 2.5)]
    found = epoch_rows(records, has_tokens=True)
    names = ("training loss", "training perplexity", "validation loss", "validation perplexity")
    assert found.columns == ["epoch", "step", *names]
    assert found.rows == [
        ["1", "2", "1.5", f"{math.exp(1.5):.4g}", "2", f"{math.exp(2):.4g}"],  # (3 * 10 + 1 * 30) / 40
        ["2", "4", "0.5", f"{math.exp(0.5):.4g}", "2.5", f"{math.exp(2.5):.4g}"],
    ]
    assert found.best == 0


def test_the_last_evaluation_of_an_epoch_counts():
    records = [
        step(1, 1.0),
        evaluation(1, 3.0, best=True),
        step(2, 1.0),
        evaluation(2, 4.0, accuracy=0.5),
        step(3, 1.0),
    ]
    found = epoch_rows(records, has_tokens=False)
    assert found.columns == ["epoch", "step", "training loss", "validation loss", "accuracy"]
    assert found.rows == [["1", "2", "1", "4", "50.0%"], ["1.5", "3", "1", "—", "—"]]
    assert found.best == 0


def test_runs_without_validation_or_with_numbers_that_overflow():
    found = epoch_rows([step(1, 1.0), step(2, 800.0)], has_tokens=True)
    assert found.columns == ["epoch", "step", "training loss", "training perplexity"]
    assert (found.rows, found.best) == ([["1", "2", "400.5", f"{math.exp(400.5):.4g}"]], None)
    assert epoch_rows([step(1, 800.0)], has_tokens=True).rows == [["0.5", "1", "800", "inf"]]
    assert epoch_rows([], has_tokens=True).rows == []
    assert epoch_rows([{**step(1, 1.0), "loss": None}], has_tokens=True).rows == [["0.5", "1", "—", "—"]]
