"""Tests of lorkd_monailabel.learning.rank_report."""

from dataclasses import replace

from lorkd_monailabel.learning.rank_report import report
from lorkd_monailabel.learning.ranks import RankRule, choose_ranks

LOSSES = {
    "abdomen": (1.5, 1.0),
    "brain": (1.0, 0.9),
    "pelvis": (1.0, 1.0),
    "spine": (1.0, 1.25),
    "thorax": (1.0, 0.6),
}
TABLE = """\
| department | loss before | loss after | reduction | over the mean | Eq. 2 | rounded | bound | rank |
|---|---:|---:|---:|---:|---:|---:|---|---:|
| abdomen | 1.5000 | 1.0000 | 0.5000 | 2.5000 | 50.0000 | 50 | most | 16 |
| brain | 1.0000 | 0.9000 | 0.1000 | 0.5000 | 2.0000 | 2 | - | 2 |
| pelvis | 1.0000 | 1.0000 | 0.0000 | 0.0000 | 0.0000 | 0 | - | 5 |
| spine | 1.0000 | 1.2500 | -0.2500 | 0.0000 | 0.0000 | 0 | least | 2 |
| thorax | 1.0000 | 0.6000 | 0.4000 | 2.0000 | 32.0000 | 32 | - | 6 |
"""


def test_a_table_and_a_sentence_for_each_department() -> None:
    rule = RankRule("loss_reduction", rank=8, given={"pelvis": 5})
    choices = choose_ranks(rule, list(LOSSES), losses=LOSSES, kept={"thorax": 6})
    text = report(choices, rule, probe_samples=16, warmup_steps=900, parameters={"abdomen": 1000, "brain": 234})
    assert TABLE in text
    lines = text.splitlines()
    assert lines[0] == "# Ranks of the departments"
    for told in ("`loss_reduction`", "r = 8", "rounded down to an even number (`floor_even`)", "within 2 to 16"):
        assert told in lines[2]
    assert "same 16 samples" in lines[4]
    assert "900 warm-up steps" in lines[4]
    assert "The mean reduction is 0.2000." in lines[4]
    assert [line for line in lines if line.startswith("- ")] == [
        "- **abdomen** gets rank 16: its loss fell by 0.5000, 2.50 times the mean of 0.2000; 8 · 2.50² = 50.00, "
        "which is rounded to 50, above the most of 16.",
        "- **brain** gets rank 2: its loss fell by 0.1000, 0.50 times the mean of 0.2000; 8 · 0.50² = 2.00, "
        "which is rounded to 2.",
        "- **pelvis** gets rank 5: `ranks.pelvis` of the config wins over the rule.",
        "- **spine** gets rank 2: its loss rose by 0.2500 in the warm-up, which counts as no reduction, "
        "and 2 is the least.",
        "- **thorax** gets rank 6: the run starts from an expert of that rank.",
    ]
    assert lines[-1] == "Parameters of the experts: 1,234 (abdomen 1,000, brain 234)."
    assert text.endswith("\n")


def test_rounding_bounds_and_samples_left_out_are_told() -> None:
    rule = RankRule("loss_reduction", rank=2, rounding="nearest_even", least=4, most=6)
    choices = choose_ranks(rule, ["brain", "pelvis"], losses=LOSSES)
    choices["brain"] = replace(choices["brain"], samples=14)
    choices["pelvis"] = replace(choices["pelvis"], samples=16)
    text = report(choices, rule, probe_samples=16, warmup_steps=9)
    assert "rounded to the nearest even number, odd ones up (`nearest_even`), held within 4 to 6" in text
    assert (
        "which is rounded to 8, above the most of 6. Only 14 of the 16 samples had a finite loss both times.\n" in text
    )
    assert "**pelvis** gets rank 4: its loss stood still in the warm-up, which counts as no reduction, and 4 is" in text
    assert text.count("Only") == 1
    assert "Parameters" not in text
    low = choose_ranks(RankRule("loss_reduction", rank=8, least=4), ["abdomen", "brain"], losses=LOSSES)
    text = report(low, RankRule("loss_reduction", rank=8, least=4), probe_samples=1, warmup_steps=1)
    assert "which is rounded to 0, below the least of 4." in text


def test_where_nothing_was_learned_or_measured_the_report_says_so() -> None:
    rule = RankRule("loss_reduction", rank=8)
    text = report(choose_ranks(rule, ["spine"], losses=LOSSES), rule, probe_samples=2, warmup_steps=3)
    assert "- **spine** gets rank 8: no department's loss fell in the warm-up, so all get r = 8.\n" in text
    assert "| spine | 1.0000 | 1.2500 | -0.2500 | - | - | - | - | 8 |" in text
    text = report(choose_ranks(RankRule(rank=3), ["brain"]), RankRule(rank=3), probe_samples=2, warmup_steps=3)
    assert "Rule: `equal` (LoRKD): every department gets rank 3.\n" in text
    assert "| brain | - | - | - | - | - | - | - | 3 |" in text
    assert "- **brain** gets rank 3: all departments get the same.\n" in text
    assert "samples" not in text
