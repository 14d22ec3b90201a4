"""The values of one line of the log. Losses are summed on the device, counts and speed on the host."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from openjepa.engine import distributed
from openjepa.engine.checkpoint import TrainerState
from openjepa.schedules import Progress
from openjepa.types import Batch, BlockMasks, LossOutput, TokenMask


class IntervalMeter:
    """Averages values over the microbatches of one logging interval. Reads nothing from the device before `finish`."""

    def __init__(self, step_seconds: float = 0.0, contexts: int = 1) -> None:
        """`step_seconds`: total seconds of the steps of earlier sessions. `contexts`: number of contexts per image."""
        self._contexts = contexts
        self._reset(step_seconds)

    def _reset(self, step_seconds: float, seconds_waited: float = 0.0, reads_repeated: int = 0) -> None:
        self._sums: dict[str, Tensor] = {}
        self._microbatches = 0
        self._images = 0
        self._mask_counts: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        self._masked_views, self._masked_patches, self._patches = 0, 0, 0
        self._begun, self._waited, self._repeated = step_seconds, seconds_waited, reads_repeated

    def add(self, output: LossOutput, batch: Batch) -> None:
        """Adds one microbatch."""
        total = output.total.detach().float()
        for name, value in {"loss": total, **_prefixed("loss", output.parts), **output.diagnostics}.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._microbatches += 1
        self._images += len(batch.sample_ids)
        for masks in batch.masks.values():
            if isinstance(masks, BlockMasks):
                for name, count in (("mask_redrawn", masks.redrawn), ("mask_padded", masks.padded)):
                    self._mask_counts[name] = self._mask_counts.get(name, 0) + count
                self._tokens = {"context_tokens": masks.context.shape[1], "target_tokens": masks.targets.shape[2]}
            else:
                self._add_masked(masks)

    def _add_masked(self, masks: TokenMask) -> None:
        """Counts masked patches. The loader's masks are on the CPU, so that this does not wait for the device."""
        num_views, num_patches = masks.masked.shape
        masked = num_views * masks.num_masked if masks.num_masked is not None else int(masks.masked.sum())
        self._masked_views += num_views
        self._masked_patches += masked
        self._patches = num_patches

    def _token_counts(self) -> dict[str, float]:
        """Token counts: the latest ones for blocks, or the mean over all masked views for single masked patches."""
        if not self._masked_views:
            return dict(self._tokens)
        masked = self._masked_patches / self._masked_views
        return {"visible_tokens": round(self._patches - masked, 2), "masked_tokens": round(masked, 2)}

    def loss_sum(self) -> Float[Tensor, ""]:
        """Sum of the losses since the last line, on the device. It is not finite if any loss was not."""
        return self._sums["loss"]

    def finish(
        self,
        state: TrainerState,
        progress: Progress,
        rates: Mapping[str, float],
        seconds_waited: float = 0.0,
        reads_repeated: int = 0,
    ) -> dict[str, float]:
        """The values of one line of metrics.jsonl, over all processes, which all call it. Starts the next interval.

        `rates`: further values of the line. `seconds_waited`: time for which this process has waited for data in this session.
        `reads_repeated`: number of reads of images that it has tried again in this session. In the line, `seconds` is the time
        of the run so far. `step_seconds` is the time of its steps including their data path, without looks and saving.
        `data_wait` is the share of it that steps spend on waiting for data. `contexts_per_second` is there only if an image has
        several contexts, `reads_repeated` only if it is above 0.
        """
        sums = torch.stack(list(self._sums.values())) / max(1, self._microbatches)
        averages = dict(zip(self._sums, distributed.mean_over_ranks(sums).tolist(), strict=True))
        seconds = max(state.step_seconds - self._begun, 1e-9)
        wait, repeated = self._share_counts(seconds_waited - self._waited, reads_repeated - self._repeated)
        line = {
            "epoch": round(progress.epoch, 4),
            "images": state.images_seen,
            "seconds": round(state.seconds, 2),
            "step_seconds": round(state.step_seconds, 2),
            **averages,
            **rates,
            "images_per_second": round(self._images / seconds, 2),
            **({"contexts_per_second": round(self._contexts * self._images / seconds, 2)} if self._contexts > 1 else {}),
            "data_wait": round(min(1.0, wait / seconds), 4),
            **self._token_counts(),
            **self._mask_counts,
            **({"reads_repeated": repeated} if repeated else {}),
        }
        self._reset(state.step_seconds, seconds_waited, reads_repeated)
        return line

    def _share_counts(self, waited: float, repeated: int) -> tuple[float, int]:
        """Adds the counts of the other processes to those of this one.

        Returns the longest wait of a process, and the number of repeated reads of all.
        """
        names = list(self._mask_counts)
        mine = (waited, repeated, self._images, self._masked_views, self._masked_patches, *self._mask_counts.values())
        waits, repetitions, *counts = zip(*distributed.gathered(mine), strict=True)
        self._images, self._masked_views, self._masked_patches, *mask_counts = map(sum, counts)
        self._mask_counts = dict(zip(names, mask_counts, strict=True))
        return float(max(waits)), sum(repetitions)

    @staticmethod
    def summary(line: Mapping[str, float], latest: Mapping[str, float]) -> dict[str, str]:
        """Values of `line` and of the monitor's `latest` look, formatted for the display."""
        shown = {
            "img/s": f"{line['images_per_second']:.0f}",
            **({"ctx/s": f"{line['contexts_per_second']:.0f}"} if "contexts_per_second" in line else {}),
            "epoch": f"{line['epoch']:.1f}",
            "loss": f"{line['loss']:.4f}",
            "lr": f"{line['lr']:.1e}",
        }
        if "rankme" in latest:
            shown["rank"] = f"{latest['rankme']:.1f}"
        if "cosine_gap" in latest:
            shown["gap"] = f"{latest['cosine_gap']:.2f}"
        if "knn" in latest:
            shown["k-NN"] = f"{100 * latest['knn']:.1f}%"
        return shown


def _prefixed(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in values.items()}
