"""The stages of the experiment as data: which recipe runs with which settings, and what it leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorkd_monailabel import shipped

DEPARTMENTS = ("abdomen", "brain", "head_and_neck", "pelvis", "spine", "thorax")
"""Those with validation cases."""

ABLATION_STEPS = 1000
"""Joint steps of an ablation; they compare with each other, not with the main runs."""

SHIPPED_FOUNDATION = str(shipped.FOUNDATION)
"""It knows five of the sources; what the experiment starts from."""

SHIPPED_BASE = str(shipped.STORE / "base/0001.safetensors")
RANKS = "warmup/ranks.json"
FOUNDATION = "foundation/foundation.safetensors"
FOUNDATION_WHOLE = "foundation_whole/foundation.safetensors"

PLAIN: Mapping[str, object] = {
    "balance": 0.0,
    "data.variations": ["gamma", "blur", "low_resolution", "bias_field"],
}
"""The paper's cross-entropy, without a weight on the voxels of structures, and all variations of intensities."""

WHOLE: Mapping[str, object] = {**PLAIN, "data.margin_mm": 1000}
"""That, and whole images: what a network never saw it takes for anything, as shoulders for the brainstem."""

WIDE: Mapping[str, object] = {"data.rotation_rad": 0.5, "data.scaling": 0.3}
"""Patches turned and stretched as far as nnU-Net does; eleven livers and twenty hearts are few."""

FAR: Mapping[str, object] = {
    "data.foreground": 0.3,
    "data.weights.brain": 2.5,
    "data.source_weights.msd_hippocampus": 0.15,
}
"""More of what lies far from structures, and of whole heads: the brainstem was found in shoulders still."""

LATER_PARTS: tuple[tuple[str, Mapping[str, object]], ...] = (
    (FOUNDATION, {}),
    (FOUNDATION, {}),
    (FOUNDATION, PLAIN),
    (FOUNDATION_WHOLE, {**WHOLE, **WIDE, "steps": 8000}),
    (FOUNDATION_WHOLE, {**WHOLE, **WIDE, **FAR, "steps": 6000}),
)
"""Teacher and settings of the parts of LoRKD and LoRKD* after the first."""


@dataclass(frozen=True)
class Stage:
    """One run of a recipe; it is done when its product is there.

    Attributes:
        name: of the stage, and of its folder.
        recipe: module of ``train``.
        config: file of this folder.
        product: path that the recipe writes last, relative to the experiment's folder.
        sets: settings over the config's; those that are a path in ``paths`` are relative to the experiment's folder.
        paths: settings whose value is a file or folder of another stage, or of the package.
        ranks: file whose ranks the stage takes, empty for none.
        runs: name in the tables -> evaluation that a comparison reads.
        redraw: added to the seed of all: what goes on with another seed draws samples that it has not seen.
    """

    name: str
    recipe: str
    config: str
    product: str
    sets: Mapping[str, object] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    ranks: str = ""
    runs: Mapping[str, str] = field(default_factory=dict)
    redraw: int = 0


def plain(name: str, config: str, *, start: str = "", sets: Mapping[str, object] | None = None) -> Stage:
    """Train a plain network with all its weights, from scratch or from another stage's weights."""
    return Stage(
        name=name,
        recipe="pretrain",
        config=config,
        product=f"{name}/foundation.safetensors",
        sets=sets or {},
        paths={"output": name, **({"start": start} if start else {})},
    )


def decomposition(
    name: str,
    config: str,
    *,
    teacher: str = FOUNDATION,
    start: str = "",
    ranks: str = "",
    sets: Mapping[str, object] | None = None,
    redraw: int = 0,
) -> Stage:
    """Learn a base and experts from a teacher."""
    return Stage(
        name=name,
        recipe="decompose",
        config=config,
        product=f"{name}/store/thorax/0001.safetensors",
        sets=sets or {},
        paths={"teacher": teacher, "output": name, "store": f"{name}/store", **({"start": start} if start else {})},
        ranks=ranks,
        redraw=redraw,
    )


def joint(name: str, sets: Mapping[str, object] | None = None, *, teacher: str = FOUNDATION, ranks: str = "") -> Stage:
    """Base and new experts, from the package's base."""
    return decomposition(name, "joint.toml", teacher=teacher, start=SHIPPED_BASE, ranks=ranks, sets=sets)


def in_parts(name: str, *, ranks: str = "") -> tuple[Stage, ...]:
    """Base and experts in six parts; the second draws the samples of the first again, the others new ones."""
    parts = [joint(name, ranks=ranks)]
    for number, (teacher, sets) in enumerate(LATER_PARTS, 2):
        start = parts[-1].paths["store"]
        parts.append(
            decomposition(
                f"{name}_{number}",
                "joint_more.toml",
                teacher=teacher,
                start=start,
                ranks=ranks,
                sets=sets,
                redraw=number - 2,
            )
        )
    return tuple(parts)


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


MAIN = (
    plain("foundation", "foundation.toml", start=SHIPPED_FOUNDATION),
    plain("foundation_whole", "foundation.toml", start=FOUNDATION, sets={**WHOLE, "learning_rate": 5e-4, "steps": 700}),
    decomposition("warmup", "warmup.toml"),
    *in_parts("lorkd_star", ranks=RANKS),
    evaluation("foundation", FOUNDATION_WHOLE),
    evaluation("lorkd_star", "lorkd_star_6/store"),
    *in_parts("lorkd"),
    evaluation("lorkd", "lorkd_6/store"),
    *(plain(f"specialists/{name}", "specialist.toml", sets={"data.departments": [name]}) for name in DEPARTMENTS),
    evaluation("specialists", "specialists"),
    comparison(
        "main",
        {"Foundation": "foundation", "Specialists": "specialists", "LoRKD": "lorkd", "LoRKD*": "lorkd_star"},
    ),
)
"""The main comparison."""

ABLATIONS = (
    *(joint(f"rank_{rank}", {"rank": rank, "steps": ABLATION_STEPS}) for rank in (4, 8, 16)),
    *(joint(f"beta_{beta}", {"beta": beta, "steps": ABLATION_STEPS}) for beta in (0.05, 0.1, 1.0, 10.0)),
)
"""Table VI's ranks, and Table VII's weights of the transfer loss at the rank of the main comparison."""

ABLATED = (
    *ABLATIONS,
    *(evaluation(stage.name, f"{stage.name}/store", limit={"default": 12, "openkbp": 4}) for stage in ABLATIONS),
    comparison("rank", {f"rank {rank}": f"rank_{rank}" for rank in (8, 4, 16)}),
    comparison("beta", {f"beta {beta}": f"beta_{beta}" for beta in (0.1, 0.05, 1.0, 10.0)}),
)

HELD_OUT = "acdc"
"""The source that no network of the transfer has seen before."""

KEPT = [
    *("chaos_t2", "msd_hippocampus", "ntustison_lunglobes", "openkbp"),
    *("pam50_small", "promise12", "qmritools_legs", "sct_testing_data"),
]

DOWNSTREAM: Mapping[str, object] = {"data.departments": ["thorax"], "data.sources": [HELD_OUT], "steps": 1200}

TEACHER = "transfer/foundation/foundation.safetensors"

TRANSFER = (
    plain(
        "transfer/foundation",
        "foundation.toml",
        start=SHIPPED_FOUNDATION,
        sets={"data.sources": KEPT, "steps": 1500},
    ),
    joint("transfer/lorkd", {"data.sources": KEPT, "steps": 2000}, teacher=TEACHER),
    plain("transfer/scratch", "specialist.toml", sets=DOWNSTREAM),
    plain("transfer/base", "specialist.toml", start="transfer/lorkd/store/base/0001.safetensors", sets=DOWNSTREAM),
    plain("transfer/fused", "specialist.toml", start="transfer/lorkd/store", sets=DOWNSTREAM),
    Stage(
        "transfer/expert",
        "finetune",
        "finetune.toml",
        "transfer/lorkd/store/thorax/0002.safetensors",
        paths={"store": "transfer/lorkd/store", "output": "transfer/expert"},
    ),
    *(
        evaluation(f"transfer_{name}", f"transfer/{name}/foundation.safetensors", sources=[HELD_OUT])
        for name in ("scratch", "base", "fused")
    ),
    evaluation("transfer_expert", "transfer/lorkd/store", sources=[HELD_OUT]),
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
