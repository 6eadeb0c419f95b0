"""Tests of lorkd_monailabel.tasks.aliases."""

import pytest

from lorkd_monailabel.tasks.aliases import aliases_of, with_aliases


def test_a_name_may_stand_for_tasks_of_several_kinds() -> None:
    aliases = aliases_of(" spleen=abdomen, spleen=finetune_abdomen,, seg_2.1 = thorax ,abdomen=thorax")
    assert aliases[:3] == (("spleen", "abdomen"), ("spleen", "finetune_abdomen"), ("seg_2.1", "thorax"))
    assert with_aliases({"abdomen": 1, "thorax": 2}, aliases) == {"abdomen": 1, "thorax": 2, "spleen": 1, "seg_2.1": 2}
    assert with_aliases({"finetune_abdomen": 3}, aliases) == {"finetune_abdomen": 3, "spleen": 3}


@pytest.mark.parametrize("text", ["spleen", "=abdomen", "a b=abdomen", "../x=abdomen", "x="])
def test_what_is_no_alias(text: str) -> None:
    with pytest.raises(ValueError, match=r"--conf aliases .* must be like NAME=TASK"):
        aliases_of(f"good=abdomen, {text}")
