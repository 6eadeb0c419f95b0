"""Tests of lorkd_monailabel.teachers.network."""

import torch

from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.text_encoder import QueryTable


def test_probabilities_are_those_of_the_network_and_nan_where_the_table_has_no_name(table: QueryTable) -> None:
    torch.manual_seed(0)
    network = build_segmenter("tiny").eval()
    teacher, image = NetworkTeacher(network, table), torch.randn(1, 8, 4, 6)
    with torch.no_grad():
        expected = network(image[None], table.queries(["spleen", "liver"], "ct"))[0].sigmoid()
        found = teacher(image, ["spleen", "liver"], "ct")
        partly = teacher(image, ["spleen", "horn", "liver"], "ct")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(partly[[0, 2]], expected)
    assert partly[1].isnan().all()
    assert teacher(image, ["horn"], "ct").isnan().all()
    assert teacher(image, ["liver"], "pet").isnan().all()
    assert teacher(image, ["liver"], "pet").shape == (1, 8, 4, 6)
