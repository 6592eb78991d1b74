"""How each image of a batch is scaled, cropped, flipped and recoloured, alone or as one of four in a mosaic.

All random numbers are drawn from a seed, on the CPU, so that augmentation is the same on every device. It is done in
`boxwright.data.augment`.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from boxwright.config import Augment
from boxwright.data.mixing import Mixing, place_tiles
from boxwright.types import Batch

HALVE_UNDER = 0.6  # images that shrink more are sampled from a half-size copy; measured as closest to antialiasing


@dataclass
class Plan:
    """Augmentation of each image: a window of it is resized to a new size in whole pixels, then perhaps flipped.

    Windows lie on whole pixels, except in the `pix2seq` geometry, which crops the resized image. Sizes and corners are
    (y, x) in canvas pixels; `place_B2` is the top left corner of the result on the new canvas, not zero for the images
    of a mosaic. `halve_B` stays on the CPU, so that choosing rows by it need not wait for a device.
    """

    source_B: Tensor
    corner_B2: Tensor
    window_B2: Tensor
    old_B2: Tensor
    new_B2: Tensor
    place_B2: Tensor
    flip_B: Tensor
    colour_B3: Tensor
    halve_B: Tensor

    def __len__(self) -> int:
        return len(self.source_B)

    def __getitem__(self, rows: slice | Tensor) -> "Plan":
        return Plan(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def affine(self) -> tuple[Tensor, Tensor]:
        """(B, 2) scale and shift of the map new = scale * old + shift."""
        scale_B2 = self.new_B2 / self.window_B2
        shift_B2 = -self.corner_B2 * scale_B2
        flip_B2 = torch.stack([torch.zeros_like(self.flip_B), self.flip_B], -1)
        shift_B2 = torch.where(flip_B2, self.new_B2 - shift_B2, shift_B2) + self.place_B2
        return torch.where(flip_B2, -scale_B2, scale_B2), shift_B2


class Draws(NamedTuple):
    """Random numbers of each image, on the CPU: scale, position of the crop in [0, 1), flip, colour factors."""

    jitter_B1: Tensor
    offset_B2: Tensor
    flip_B: Tensor
    colour_B3: Tensor

    @staticmethod
    def draw(count: int, settings: Augment, seed: int) -> "Draws":
        """Of `count` images, a function of the seed."""
        draws = torch.rand(count, 7, generator=torch.Generator().manual_seed(seed))
        low, high = settings.scale or (1.0, 1.0)
        return Draws(
            jitter_B1=low + (high - low) * draws[:, :1],
            offset_B2=draws[:, 4:6],
            flip_B=draws[:, 6] < (settings.flip or 0.0),
            colour_B3=1 + (settings.colour or 0.0) * (2 * draws[:, 1:4] - 1),
        )


def make_plan(batch: Batch, settings: Augment, seed: int) -> Plan:
    """The plan of each image of a batch on its own, for each of its views."""
    count, side, device = len(batch) * (settings.views or 1), batch.images_BCHW.shape[-1], batch.images_BCHW.device
    draws = Draws.draw(count, settings, seed)
    source_B, offset_B2 = torch.arange(count, device=device) // (settings.views or 1), draws.offset_B2.to(device)
    if settings.geometry == "pix2seq":
        scale_B, flip_B = draws.jitter_B1[:, 0].to(device), draws.flip_B.to(device)
        return make_official_plan(batch, source_B, (side, side), scale_B, offset_B2[:, 0], flip_B, draws.colour_B3)
    return _zoom_plan(source_B, batch.sizes_B2[source_B], draws, draws.jitter_B1, side)


def _zoom_plan(source_B: Tensor, old_B2: Tensor, draws: Draws, scale_B1: Tensor, side: int) -> Plan:
    """Images of the size `old_B2` are scaled by `scale_B1`, which is on the CPU, and cropped to the canvas."""
    device = old_B2.device
    scaled_B2, window_B1 = old_B2 * scale_B1.to(device), (side / scale_B1).round().clamp(min=1).long().to(device)
    window_B2 = torch.where(scaled_B2 > side, torch.minimum(window_B1, old_B2), old_B2)
    room_B2 = old_B2 - window_B2
    return Plan(
        source_B=source_B,
        corner_B2=torch.minimum((draws.offset_B2.to(device) * (room_B2 + 1)).long(), room_B2),
        window_B2=window_B2,
        old_B2=old_B2,
        new_B2=scaled_B2.round().clamp(1, side).long(),
        place_B2=torch.zeros_like(old_B2),
        flip_B=draws.flip_B.to(device),
        colour_B3=draws.colour_B3.to(device),
        halve_B=scale_B1[:, 0] < HALVE_UNDER,
    )


def make_mosaic_plan(batch: Batch, mixing: Mixing, settings: Augment, seed: int) -> tuple[Plan, Plan]:
    """The plan of each mosaic, a grid of images scaled and cropped as one; and, in fours, those of its images."""
    device, side = batch.images_BCHW.device, batch.images_BCHW.shape[-1]
    draws = Draws.draw(len(batch) * (settings.views or 1), settings, seed)
    draws = Draws(*(tensor[mixing.mosaic_M] for tensor in draws))
    sources_M4 = mixing.sources_M4.to(device)
    old_M42 = batch.sizes_B2[sources_M4]
    corner_M42, grid_M2 = place_tiles(old_M42)
    grid = _zoom_plan(sources_M4[:, 0], grid_M2, draws, draws.jitter_B1 / 2, side)

    begin_M12, window_M12 = grid.corner_B2[:, None], grid.window_B2[:, None]
    first_M42 = torch.maximum(corner_M42, begin_M12)  # the part of each image inside the window, in pixels of the grid
    last_M42 = torch.maximum(torch.minimum(corner_M42 + old_M42, begin_M12 + window_M12), first_M42)
    scale_M12 = grid.new_B2[:, None] / window_M12
    place_M42, end_M42 = (((edge - begin_M12) * scale_M12).round().long() for edge in (first_M42, last_M42))
    tiles = {
        "source_B": sources_M4,
        "corner_B2": (first_M42 - corner_M42).clamp(min=0),
        "window_B2": (last_M42 - first_M42).clamp(min=1),  # of an image outside the window, whose new size is 0
        "old_B2": old_M42,
        "new_B2": end_M42 - place_M42,
        "place_B2": place_M42,
        "flip_B": mixing.flip_M4.to(device),
        "colour_B3": grid.colour_B3[:, None].expand(-1, 4, -1),
        "halve_B": grid.halve_B[:, None].expand(-1, 4),
    }
    return grid, Plan(**{name: tensor.flatten(0, 1) for name, tensor in tiles.items()})


def make_official_plan(
    batch: Batch,
    source_B: Tensor,
    canvas: tuple[int, int],
    scale_B: Tensor,
    offset_B: Tensor,
    flip_B: Tensor,
    colour_B3: Tensor,
) -> Plan:
    """The plan in the geometry of google-research/pix2seq, see `boxwright.data.augment.official_view`."""
    old_B2 = batch.sizes_B2[source_B]
    canvas_2 = torch.tensor(canvas, device=old_B2.device)
    resized_B2 = official_size(old_B2, canvas_2, scale_B)
    offset_B2 = ((resized_B2 - canvas_2).clamp(min=0) * offset_B[:, None]).long()
    new_B2 = torch.minimum(resized_B2 - offset_B2, canvas_2)
    return Plan(
        source_B=source_B,
        corner_B2=offset_B2 * old_B2 / resized_B2,
        window_B2=new_B2 * old_B2 / resized_B2,
        old_B2=old_B2,
        new_B2=new_B2,
        place_B2=torch.zeros_like(new_B2),
        flip_B=flip_B,
        colour_B3=colour_B3,
        halve_B=torch.zeros(len(source_B), dtype=torch.bool),
    )


def official_size(old_B2: Tensor, canvas_2: Tensor, scale_B: Tensor) -> Tensor:
    """Heights and widths before the crop, in float32 and in the original's order, so that they are rounded alike."""
    scale_B1 = (canvas_2 * scale_B[:, None] / old_B2).amin(1, keepdim=True)
    return (old_B2 * scale_B1).long().clamp(min=1)
