"""What the recipes that train can be told: one dataclass each, filled by ``train.config``."""

from dataclasses import dataclass, field

from lorkd_monailabel.learning.augmentation import ROTATION_RAD, SCALING


@dataclass(frozen=True)
class DataConfig:
    """Which cases a run learns from and how it cuts patches.

    Attributes:
        cases: JSON lines, see ``lorkd_monailabel.learning.cases``.
        splits: keep these.
        sources: keep these; empty keeps all.
        departments: keep these; empty keeps all that have a case.
        limit: most cases of a source for each department; 0 keeps all.
        spacing_mm: department -> spacing of its grid, one number or three; ``default`` for the others.
        weights: department -> how often it is drawn; ``default`` for the others.
        source_weights: source -> how often its cases are drawn, times the root of their number; ``default`` for the
            others. LoRKD lets some sources count threefold.
        patch: voxels along each axis, one number or three.
        margin_mm: of the body around a department's structures that is kept; half a patch at least. What a network
            never saw it may take for anything.
        max_queries: structures asked for at once.
        foreground: share of the patches that are cut around a structure; the others lie anywhere.
        negatives: largest share of absent structures among those asked for.
        intensities: that the networks see, ``fixed`` or ``sat``, see ``lorkd_monailabel.volumes.normalise``.
        all_structures: ask for structures of other departments too where the case has them; an expert never does.
        augment: vary geometry and intensities.
        variations: more of them, of ``gamma``, ``blur``, ``low_resolution`` and ``bias_field``.
        rotation_rad: the largest angle that a patch is turned by about each axis.
        scaling: the largest change of its lengths along each axis, 0.15 for 85 to 115 %.
        workers: processes that make samples, and that prepare cases.
        cache: folder of prepared cases.
    """

    cases: str
    splits: list[str] = field(default_factory=lambda: ["train"])
    sources: list[str] = field(default_factory=list)
    departments: list[str] = field(default_factory=list)
    limit: int = 0
    spacing_mm: dict[str, float | list[float]] = field(default_factory=lambda: {"default": 3.0})
    weights: dict[str, float] = field(default_factory=lambda: {"default": 1.0})
    source_weights: dict[str, float] = field(default_factory=dict)
    patch: int | list[int] = 64
    margin_mm: float = 100.0
    max_queries: int = 16
    foreground: float = 0.6
    negatives: float = 0.5
    intensities: str = "fixed"
    all_structures: bool = False
    augment: bool = True
    variations: list[str] = field(default_factory=list)
    rotation_rad: float = ROTATION_RAD
    scaling: float = SCALING
    workers: int = 1
    cache: str = ".cache/prepared"


@dataclass(frozen=True)
class EngineConfig:
    """How steps are computed, whatever is learned.

    Attributes:
        bf16: train under bfloat16 autocast.
        accumulate: parts that a process cuts its share of a batch into, to need the memory of one part.
        ema: decay of the average of what is trained, which is published in its place; 0 for none.
        compile: compile the networks, where there is a compiler.
        shard: spread the foundation over the processes (FSDP2): pretrain's own, decompose's teacher.
        save_every_s: seconds between checkpoints.
        tensorboard: write curves for TensorBoard into the folder of the run.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; several processes take a GPU each.
    """

    bf16: bool = True
    accumulate: int = 1
    ema: float = 0.0
    compile: bool = False
    shard: bool = False
    save_every_s: float = 60.0
    tensorboard: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class PretrainConfig:
    """A plain network that learns all of its weights: a foundation, or a specialist where there is one department.

    Attributes:
        data: cases.
        output: folder of the run; the network becomes ``foundation.safetensors`` there.
        network: its size.
        queries: path of its query table; empty for the package's own.
        start: what to go on from: the file of a foundation or base, or a store, whose base is fused with the expert of
            the only department; empty starts from scratch.
        steps: of the schedule.
        batch_size: samples a step.
        learning_rate: of all weights.
        balance: of the cross-entropy, see ``lorkd_monailabel.learning.losses.task_loss``.
        licence: of the weights, which their file states; what the licences of the cases ask for.
        seed: of everything drawn.
        engine: how steps are computed.
    """

    data: DataConfig
    output: str
    network: str = "toy_foundation"
    queries: str = ""
    start: str = ""
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3
    balance: float = 0.5
    licence: str = ""
    seed: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass(frozen=True)
class DecomposeConfig:
    """Base and experts from a teacher (LoRKD, Algorithm 1).

    Attributes:
        data: cases.
        output: folder of the run's state.
        store: where base and experts are published.
        teacher: path of a foundation, a MONAI Bundle, a TorchScript or an exported program; or ``precomputed``: the
            masks that the lines of the cases name.
        foundation: another name of ``teacher``.
        queries: path of the query table of the students and of a foundation; empty for the package's own.
        network: size of the base.
        rank: of every expert; r of Eq. 2 where the rule is ``loss_reduction``.
        rank_rule: ``equal`` (LoRKD) or ``loss_reduction`` of the warm-up (LoRKD*).
        rounding: of Eq. 2, ``floor_even`` or ``nearest_even``.
        least_rank: bound of what Eq. 2 gives.
        most_rank: bound of what Eq. 2 gives.
        probe_samples: of each department, whose loss is measured before and after the warm-up.
        ranks: department -> rank that wins over the rule.
        decoder_multiplier: rank of the pixel decoder over that of the encoder.
        alpha: scale times rank.
        beta: weight of the transfer loss.
        transfer: its form, ``bernoulli`` or ``sum``, see ``lorkd_monailabel.learning.losses.transfer_loss``.
        balance: of the cross-entropy, see ``lorkd_monailabel.learning.losses.task_loss``.
        start: store whose newest base and experts to start from, or the file of a base; empty starts from scratch.
            Experts keep their ranks.
        warmup_steps: of the base alone.
        steps: of base and experts together.
        batch_size: samples a step.
        learning_rate: of the base.
        expert_learning_rate: of the factors.
        half: publish in half precision.
        licence: of the weights, which their files and model cards state beside the teacher's own.
        seed: of everything drawn.
        engine: how steps are computed.
    """

    data: DataConfig
    output: str
    store: str
    teacher: str = ""
    foundation: str = ""
    queries: str = ""
    network: str = "toy"
    rank: int = 8
    rank_rule: str = "equal"
    rounding: str = "floor_even"
    least_rank: int = 2
    most_rank: int = 16
    probe_samples: int = 16
    ranks: dict[str, int] = field(default_factory=dict)
    decoder_multiplier: int = 2
    alpha: float = 16.0
    beta: float = 0.1
    transfer: str = "bernoulli"
    balance: float = 0.5
    start: str = ""
    warmup_steps: int = 300
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3
    expert_learning_rate: float = 1e-3
    half: bool = False
    licence: str = ""
    seed: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass(frozen=True)
class FinetuneConfig:
    """Retraining of one department's expert.

    Attributes:
        data: cases; spacing and intensities are those of the expert and its base.
        department: id.
        store: of the expert; the new revision is published there.
        output: folder of the run's state.
        steps: of the schedule.
        batch_size: samples a step.
        learning_rate: of the factors.
        balance: of the cross-entropy, see ``lorkd_monailabel.learning.losses.task_loss``.
        seed: of everything drawn.
        engine: how steps are computed.
    """

    data: DataConfig
    department: str
    store: str
    output: str
    steps: int = 200
    batch_size: int = 4
    learning_rate: float = 1e-3
    balance: float = 0.5
    seed: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)
