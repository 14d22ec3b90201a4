"""What is allowed in a method's settings but surely not meant: values without effect, and epochs that the run does not have."""

import math

from openjepa.settings.methods import Data2VecSettings, IBotSettings, MethodSettings, MsnSettings
from openjepa.settings.methods.multi_crop import SelfDistillationSettings


def without_effect(method: MethodSettings) -> list[str]:
    """Values that were changed but that another setting switches off."""
    found = []
    if isinstance(method, MsnSettings):
        rounds = method.sinkhorn_iterations
        if not method.sinkhorn and rounds != MsnSettings.sinkhorn_iterations:
            found.append(f"method.sinkhorn_iterations={rounds} has no effect with method.sinkhorn=False")
    if isinstance(method, IBotSettings):
        of_patches = method.patch_outputs
        if method.shared_head and of_patches not in (method.outputs, IBotSettings.patch_outputs):
            found.append(f"method.patch_outputs={of_patches} has no effect with method.shared_head=True")
    if isinstance(method, Data2VecSettings):
        is_constant = method.ema_start == method.ema_end
        if is_constant and method.ema_ramp != Data2VecSettings.ema_ramp:
            found.append(f"method.ema_ramp={method.ema_ramp:g} has no effect: method.ema_start and method.ema_end are the same")
    return found


def never_reached(method: MethodSettings, total_steps: int, steps_per_epoch: float) -> list[str]:
    """What DINO and iBOT count in epochs, in a run that has fewer. A stream of unknown length counts as one epoch."""
    if not isinstance(method, SelfDistillationSettings):
        return []
    epochs, found = total_steps / steps_per_epoch, []
    if method.freeze_last_layer_epochs >= epochs:
        found.append(
            f"method.freeze_last_layer_epochs={method.freeze_last_layer_epochs:g} of a run of {epochs:.3g} epochs: the last "
            "layer never learns; set it to 0, or train longer"
        )
    ramps = {"teacher_temperature": (method.teacher_temperature_start, method.teacher_temperature, 0)}
    if isinstance(method, IBotSettings):
        ramps["patch_temperature"] = (method.patch_temperature_start, method.patch_temperature, method.patch_start_epoch)
    warmup = method.teacher_temperature_warmup_epochs
    for name, (start, end, first) in ramps.items():
        if start != end and first + warmup > math.ceil(epochs):
            found.append(
                f"method.{name}={end:g} is never reached: its {first + warmup} epochs are more than the {epochs:.3g} of the "
                "run; lower method.teacher_temperature_warmup_epochs, or train longer"
            )
    return found
