"""Settings of the optimizer and its schedules."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimizationSettings:
    """AdamW, batch and schedules. Every schedule is a pure function of the step."""

    batch_size: int = 2048
    """Images per optimizer step, over all processes and microbatches."""
    microbatch_size: int | None = None
    """Images per forward and backward of one process. None: follows `images_per_device`; without it the whole batch (divided by
    the processes)."""
    images_per_device: int | None = None
    """What a microbatch, and the group of I-JEPA's masks, should be near if they are not set: both become numbers that divide
    the batch."""
    epochs: float = 300
    """Passes over the training images; ignored where `total_steps` is set."""
    total_steps: int | None = None
    """Optimizer steps of the whole run. Required for streams of unknown length."""
    lr: float = 1e-3
    """Peak learning rate, absolute (no scaling with the batch)."""
    start_lr: float = 1e-4
    """Learning rate from which the linear warm-up starts (paper 1e-4, code 2e-4)."""
    final_lr: float = 1e-6
    """Learning rate at the end of training."""
    warmup_epochs: float | None = 15
    """Length of the warm-up in epochs (paper 15, code 40). None: follows `warmup_share`."""
    warmup_steps: int | None = None
    """Length of the warm-up in steps; overrides `warmup_epochs`."""
    warmup_share: float | None = None
    """Length of the warm-up as a share of the run, if it is given neither in steps nor in epochs."""
    lr_schedule: Literal["cosine", "constant_cooldown"] = "cosine"
    """After the warm-up: cosine to `final_lr`, or constant and then linear to `final_lr` over `cooldown` of the run."""
    cooldown: float = 0.2
    """Share of the run that `constant_cooldown` cools down over."""
    weight_decay: float = 0.04
    """Weight decay at the start; biases and 1-D parameters are never decayed."""
    final_weight_decay: float = 0.4
    """Weight decay at the end."""
    weight_decay_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How it gets there (paper: linear, code: cosine)."""
    schedule_stretch: float = 1.0
    """Schedules run over this many times the training length (released code: `ipe_scale`, 1.0)."""
    beta1: float = 0.9
    """AdamW's first moment."""
    beta2: float = 0.999
    """AdamW's second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    schedule_steps: Literal["from_one", "from_zero", "inclusive"] = "from_one"
    """How the schedules number the steps: the first is 1 (I-JEPA, MSN) or 0 (MAE); `inclusive`: from 0, and the last step of
    the warm-up already has the peak rate, that of a cooldown the final one (DINO, iBOT, data2vec)."""
    clip_grad: float | None = None
    """Largest gradient norm. None: no clipping (I-JEPA, MAE)."""
    clip_mode: Literal["global", "per_tensor"] = "global"
    """Norm of all gradients together (MSN, data2vec), or of each parameter's alone (DINO, iBOT)."""
