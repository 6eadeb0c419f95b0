"""Trainers of tiny networks, for the tests of steps and of runs."""

from torch import Tensor

from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.trainer import Trainer
from lorkd_monailabel.text_encoder import QueryTable

DEPARTMENTS = ("abdomen", "spine", "thorax")


def trainer_of(decomposition: Decomposition, table: QueryTable, **changed: object) -> Trainer:
    trained = [(decomposition.weights, 1e-2), (decomposition.factor_tensors(), 2e-2)]
    settings = {"queries": table, "steps": 10, "weight_decay": 0.1, "engine": Engine(bf16=False), **changed}
    return Trainer(decomposition.network, decomposition.weights_of, trained, **settings)


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
