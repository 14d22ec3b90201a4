"""RunConfig, the whole description of one pretraining run, and CHOICES, the components of a run that can be chosen."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from openjepa.settings.fields import AT_LEAST_1, AT_LEAST_2, NOT_NEGATIVE, POSITIVE, SHARE, SHARE_BELOW_1, Choice, Range
from openjepa.settings.masks import MASKS, MaskSettings, MultiblockSettings
from openjepa.settings.methods import METHODS, IJepaSettings, MethodSettings
from openjepa.settings.models import ModelSettings
from openjepa.settings.sources import SOURCES, DataSettings, FolderSettings

Optimizers = Literal["adamw", "muon"]
LIDAR_DRAWS = Range(2, math.inf, "at least 2, because LiDAR compares draws; or 0 for no LiDAR", also=(0,))


@dataclass(frozen=True, kw_only=True)
class OptimizationSettings:
    """Optimizer, batch and schedules. Every schedule is a pure function of the step."""

    batch_size: Annotated[int, AT_LEAST_1] = 2048
    """Images per optimizer step, over all processes and microbatches."""
    microbatch_size: Annotated[int | None, AT_LEAST_1] = None
    """Images per forward and backward of one process. None: near `images_per_device`; without it the whole batch (divided by
    the processes)."""
    images_per_device: Annotated[int | None, AT_LEAST_1] = None
    """Approximate size of a microbatch and of a group of I-JEPA's masks, if they are not set. Both become divisors of the
    batch."""
    epochs: Annotated[float, POSITIVE] = 300
    """Passes over the training images. Ignored if `total_steps` is set."""
    total_steps: Annotated[int | None, AT_LEAST_1] = None
    """Optimizer steps of the whole run. Required for streams of unknown length."""
    lr: Annotated[float, POSITIVE] = 1e-3
    """Peak learning rate, absolute (no scaling with the batch)."""
    start_lr: Annotated[float, NOT_NEGATIVE] = 1e-4
    """Learning rate from which the linear warm-up starts (paper 1e-4, code 2e-4)."""
    final_lr: Annotated[float, NOT_NEGATIVE] = 1e-6
    """Learning rate at the end of training."""
    warmup_epochs: Annotated[float | None, NOT_NEGATIVE] = 15
    """Length of the warm-up in epochs (paper 15, code 40). None: follows `warmup_share`."""
    warmup_steps: Annotated[int | None, NOT_NEGATIVE] = None
    """Length of the warm-up in steps; overrides `warmup_epochs`."""
    warmup_share: Annotated[float | None, SHARE_BELOW_1] = None
    """Length of the warm-up as a share of the run, if it is given neither in steps nor in epochs."""
    lr_schedule: Literal["cosine", "constant_cooldown"] = "cosine"
    """After the warm-up: cosine to `final_lr`, or constant and then linear to `final_lr` over `cooldown` of the run."""
    cooldown: Annotated[float, SHARE] = 0.2
    """Share of the run in which `constant_cooldown` lowers the learning rate."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.04
    """Weight decay at the start. Biases and 1-D parameters are never decayed."""
    final_weight_decay: Annotated[float, NOT_NEGATIVE] = 0.4
    """Weight decay at the end."""
    weight_decay_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the weight decay changes from start to end (paper: linear, code: cosine)."""
    schedule_stretch: Annotated[float, AT_LEAST_1] = 1.0
    """Length of the schedules divided by the length of the training (released code: `ipe_scale`, 1.0)."""
    beta1: Annotated[float, SHARE_BELOW_1] = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: Annotated[float, SHARE_BELOW_1] = 0.999
    """AdamW's decay rate of the second moment."""
    eps: Annotated[float, POSITIVE] = 1e-8
    """AdamW's epsilon."""
    optimizer: Optimizers = "adamw"
    """`muon`: Muon (K. Jordan 2024) moves the weight matrices of the transformer blocks, by as much as AdamW would (0.2 times
    the root of the longer side, arXiv 2502.16982), so that rates and decay are shared. AdamW moves all else."""
    muon_momentum: Annotated[float, SHARE_BELOW_1] = 0.95
    """Muon's momentum, with Nesterov's look-ahead (Jordan 2024: 0.95)."""
    schedule_steps: Literal["from_one", "from_zero", "inclusive"] = "from_one"
    """How schedules number the steps: from 1 (I-JEPA, MSN) or from 0 (MAE). `inclusive`: from 0, and the last step of the
    warm-up has the peak rate already, the last step of a cooldown the final rate (DINO, iBOT, data2vec)."""
    clip_grad: Annotated[float | None, POSITIVE] = None
    """Largest gradient norm. None: no clipping (I-JEPA, MAE)."""
    clip_mode: Literal["global", "per_tensor"] = "global"
    """Clip by the norm of all gradients (MSN, data2vec), or by the norm of each parameter's gradient (DINO, iBOT)."""

    def images_at_a_time(self, processes: int) -> int:
        """Images per forward and backward of one of the `processes`."""
        return self.microbatch_size or self.batch_size // processes


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The run folder, the seed and the arithmetic."""

    name: str | None = None
    """Name of the run folder. None: made of the names of recipe, preset, data set and starting weights."""
    output: str = "runs"
    """Folder that holds the run folders."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of weights, order, crops and masks."""
    init: str | None = None
    """Weights to start from instead of random ones, short `--init`: a run, an encoder folder, a file of published weights, a
    Hugging Face folder or a name on the Hub. The model's settings follow them (docs/continue.md)."""
    init_encoder: Literal["both", "target", "context"] = "both"
    """Which encoder of the weights to use if they hold two, short `--init-encoder`. `both`: the trained network starts from
    the context encoder, and its moving average from the target encoder; else all networks start from the named one."""
    init_heads: Annotated[int | None, AT_LEAST_1] = None
    """Attention heads of the weights, short `--init-heads`. Needed only if neither the weights nor their width tell."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 autocast if the hardware has it (`auto`), always, or never; weights and optimizer stay fp32."""
    compile: bool = False
    """Compile the transformer blocks with torch.compile (pays on GPUs)."""
    recompute: bool = False
    """Keep only the inputs of the trained transformer blocks and compute the rest again in the backward pass (activation
    checkpointing): far less memory for about a third more time."""


@dataclass(frozen=True, kw_only=True)
class ParallelSettings:
    """Training with several processes, which torchrun starts: one for each GPU. Without effect in a single process."""

    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """`ddp`: every process holds the whole networks; `fsdp2`: weights, target encoder, gradients and moments are divided over
    the processes (with bf16 on GPUs, a block also uses its LayerNorms and gammas in bf16); `auto`: `fsdp2` on several GPUs
    from ViT-H on, else `ddp`."""
    reduce_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision in which gradients travel between the processes. `bf16` halves the bytes and rounds."""
    timeout_seconds: Annotated[float, POSITIVE] = 1800.0
    """How long a process waits for the others before the run ends with an error. Longer than the slowest save or look, and than
    the 600 s after which data workers that hang are started again."""


@dataclass(frozen=True, kw_only=True)
class SystemSettings:
    """Settings that cannot change the results."""

    workers: Annotated[int | None, NOT_NEGATIVE] = None
    """Processes that decode and crop. 0: the main process does. None: chosen by the cores and the cache."""
    threads: Annotated[int | None, AT_LEAST_1] = None
    """Threads of torch on the CPU. None: all cores."""
    log_every: Annotated[int, AT_LEAST_1] = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_minutes: Annotated[float, NOT_NEGATIVE] = 10.0
    """Minutes between two saves of the latest checkpoint."""
    keep_every: Annotated[int | None, AT_LEAST_1] = None
    """Also keep the checkpoints at multiples of this number of steps. None: only the latest two."""
    tensorboard: bool = False
    """Also write TensorBoard events to the run folder (extra `tracking`)."""
    progress: Literal["auto", "live", "plain", "none"] = "auto"
    """`live`: a progress bar; `plain`: one line per interval; `auto`: `live` on a terminal, else `plain`."""


@dataclass(frozen=True, kw_only=True)
class MonitorSettings:
    """Measurements during training: collapse and quality on a fixed probe batch, and an online k-NN. Changes no result."""

    every: Annotated[int | None, NOT_NEGATIVE] = 100
    """Steps between two looks. 0: no looks. None: ten looks in a run, with at least 100 steps between two."""
    images: Annotated[int, AT_LEAST_2] = 512
    """Images of the fixed probe batch. No rank above this number can be measured."""
    lidar_masks: Annotated[int, LIDAR_DRAWS] = 10
    """Draws of masks of each image for LiDAR (paper: 50, cheap: 10), if the method has a predictor. 0: no LiDAR."""
    lidar_images: Annotated[int, AT_LEAST_2] = 64
    """Images of the probe batch for LiDAR. Its value is at most one less (paper: more than the width). A look computes context
    and predictor for `lidar_masks` x `lidar_images` more images."""
    knn: bool = False
    """Also classify held-out images by k-NN, if the data has labels."""
    knn_images: Annotated[int, AT_LEAST_1] = 2000
    """Training images that the online k-NN searches. At most half as many are classified."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One pretraining run. `openjepa train --config config.yaml` repeats it."""

    recipe: str = "custom"
    """Recipe from which this run is made."""
    preset: str = "custom"
    """Preset of the recipe."""
    method: MethodSettings = field(default_factory=IJepaSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    masks: MaskSettings = field(default_factory=MultiblockSettings)
    data: DataSettings = field(default_factory=FolderSettings)
    optim: OptimizationSettings = field(default_factory=OptimizationSettings)
    run: RunSettings = field(default_factory=RunSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    monitor: MonitorSettings = field(default_factory=MonitorSettings)
    system: SystemSettings = field(default_factory=SystemSettings)


CHOICES: dict[str, Choice] = {
    "method": Choice(MethodSettings, "name", METHODS),
    "masks": Choice(MaskSettings, "strategy", MASKS),
    "data": Choice(DataSettings, "source", SOURCES),
}
"""The components of a run that can be chosen, by the name of their field in RunConfig."""
