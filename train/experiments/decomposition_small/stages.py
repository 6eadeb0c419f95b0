"""The stages of the experiment as data: which recipe runs with which settings, and what it leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field

DEPARTMENTS = ("abdomen", "brain", "head_and_neck", "pelvis", "spine", "thorax")
"""Those with validation cases."""

ABLATION_STEPS = 1500
"""Joint steps of an ablation; they compare with each other, not with the main runs."""

BASE = "warmup/store/base/0001.safetensors"
RANKS = "warmup/ranks.json"
NEAR = "foundation_near/foundation.safetensors"
FOUNDATION = "foundation/foundation.safetensors"


@dataclass(frozen=True)
class Stage:
    """One run of a recipe; it is done when its product is there.

    Attributes:
        name: of the stage, and of its folder.
        recipe: module of ``train``.
        config: file of this folder.
        product: path that the recipe writes last, relative to the experiment's folder.
        sets: settings over the config's; those that are a path in ``paths`` are relative to the experiment's folder.
        paths: settings whose value is a file or folder of another stage.
        ranks: file whose ranks the stage takes, empty for none.
        runs: name in the tables -> evaluation that a comparison reads.
    """

    name: str
    recipe: str
    config: str
    product: str
    sets: Mapping[str, object] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    ranks: str = ""
    runs: Mapping[str, str] = field(default_factory=dict)


def joint(name: str, *, ranks: str = "", **sets: object) -> Stage:
    """Base and experts from the warmed-up base."""
    return Stage(
        name=name,
        recipe="decompose",
        config="joint.toml",
        product=f"{name}/store/thorax/0001.safetensors",
        sets=sets,
        paths={"teacher": FOUNDATION, "start": BASE, "output": name, "store": f"{name}/store"},
        ranks=ranks,
    )


def specialist(department: str) -> Stage:
    """A network of one department alone."""
    name = f"specialists/{department}"
    return Stage(
        name=name,
        recipe="pretrain",
        config="specialist.toml",
        product=f"{name}/foundation.safetensors",
        sets={"data.departments": [department]},
        paths={"output": name},
    )


def evaluation(name: str, model: str, **sets: object) -> Stage:
    """A model on the validation cases."""
    product = f"evaluation/{name}.csv"
    return Stage(
        name=f"evaluation/{name}",
        recipe="evaluate",
        config="evaluate.toml",
        product=product,
        sets=sets,
        paths={"model": model, "output": product},
    )


def comparison(name: str, runs: Mapping[str, str]) -> Stage:
    """Tables and a plot of evaluated models."""
    return Stage(
        name=f"results/{name}",
        recipe="compare",
        config="compare.toml",
        product=f"results/{name}/tables.md",
        paths={"output": f"results/{name}"},
        runs={title: f"evaluation/{run}.csv" for title, run in runs.items()},
    )


TRAINING = (
    Stage("foundation_near", "pretrain", "foundation_near.toml", NEAR, paths={"output": "foundation_near"}),
    Stage("foundation", "pretrain", "foundation.toml", FOUNDATION, paths={"output": "foundation", "start": NEAR}),
    Stage(
        "warmup",
        "decompose",
        "warmup.toml",
        "warmup/store/thorax/0001.safetensors",
        paths={"teacher": FOUNDATION, "output": "warmup", "store": "warmup/store"},
    ),
    joint("lorkd_star", ranks=RANKS),
    joint("lorkd"),
    *(specialist(department) for department in DEPARTMENTS),
)
"""The main comparison."""

ABLATIONS = (
    *(joint(f"rank_{rank}", rank=rank, steps=ABLATION_STEPS) for rank in (4, 8, 16)),
    *(joint(f"beta_{beta}", beta=beta, steps=ABLATION_STEPS) for beta in (0.05, 1.0, 10.0)),
)
"""Table VI's ranks and Table VII's weights of the transfer loss; rank 8 is also the one of beta 0.1."""

MAIN = (
    *TRAINING,
    evaluation("foundation", FOUNDATION),
    evaluation("specialists", "specialists"),
    evaluation("lorkd", "lorkd/store"),
    evaluation("lorkd_star", "lorkd_star/store"),
    comparison(
        "main",
        {"Foundation": "foundation", "Specialists": "specialists", "LoRKD": "lorkd", "LoRKD*": "lorkd_star"},
    ),
)

ABLATED = (
    *ABLATIONS,
    *(evaluation(stage.name, f"{stage.name}/store", limit=12) for stage in ABLATIONS),
    comparison("rank", {f"rank {rank}": f"rank_{rank}" for rank in (8, 4, 16)}),
    comparison("beta", {"beta 0.1": "rank_8", **{f"beta {beta}": f"beta_{beta}" for beta in (0.05, 1.0, 10.0)}}),
)

HELD_OUT = "acdc"
"""The source that no network of the transfer has seen before."""

KEPT = [
    *("chaos_t2", "msd_hippocampus", "ntustison_lunglobes", "openkbp"),
    *("pam50_small", "promise12", "qmritools_legs", "sct_testing_data"),
]

DOWNSTREAM: Mapping[str, object] = {"data.departments": ["thorax"], "data.sources": [HELD_OUT], "steps": 600}

TRANSFER = (
    Stage(
        "transfer/foundation",
        "pretrain",
        "foundation.toml",
        "transfer/foundation/foundation.safetensors",
        sets={"data.sources": KEPT, "steps": 4000, "learning_rate": 2e-3, "start": ""},
        paths={"output": "transfer/foundation"},
    ),
    Stage(
        "transfer/warmup",
        "decompose",
        "warmup.toml",
        "transfer/warmup/store/thorax/0001.safetensors",
        sets={"data.sources": KEPT, "warmup_steps": 1000},
        paths={
            "teacher": "transfer/foundation/foundation.safetensors",
            "output": "transfer/warmup",
            "store": "transfer/warmup/store",
        },
    ),
    Stage(
        "transfer/lorkd",
        "decompose",
        "joint.toml",
        "transfer/lorkd/store/thorax/0001.safetensors",
        sets={"data.sources": KEPT, "steps": 2000},
        paths={
            "teacher": "transfer/foundation/foundation.safetensors",
            "start": "transfer/warmup/store/base/0001.safetensors",
            "output": "transfer/lorkd",
            "store": "transfer/lorkd/store",
        },
    ),
    *(
        Stage(
            f"transfer/{name}",
            "pretrain",
            "specialist.toml",
            f"transfer/{name}/foundation.safetensors",
            sets=DOWNSTREAM,
            paths={"output": f"transfer/{name}", **start},
        )
        for name, start in {
            "scratch": {},
            "base": {"start": "transfer/lorkd/store/base/0001.safetensors"},
            "fused": {"start": "transfer/lorkd/store"},
        }.items()
    ),
    Stage(
        "transfer/expert",
        "finetune",
        "finetune.toml",
        "transfer/lorkd/store/thorax/0002.safetensors",
        paths={"store": "transfer/lorkd/store", "output": "transfer/expert"},
    ),
    *(
        evaluation(f"transfer_{name}", f"transfer/{model}", sources=[HELD_OUT])
        for name, model in {
            "scratch": "scratch/foundation.safetensors",
            "base": "base/foundation.safetensors",
            "fused": "fused/foundation.safetensors",
            "expert": "lorkd/store",
        }.items()
    ),
    comparison(
        "transfer",
        {
            "from scratch": "transfer_scratch",
            "from the base": "transfer_base",
            "from base and expert": "transfer_fused",
            "expert alone": "transfer_expert",
        },
    ),
)
"""Table III: a source that was held out of all training before. The store's expert is retrained last."""

GROUPS: Mapping[str, tuple[Stage, ...]] = {"main": MAIN, "ablations": ABLATED, "transfer": TRANSFER}
"""What can be run by itself, in order; the ablations start from the warm-up of the main comparison."""
