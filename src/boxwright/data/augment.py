"""Augmentation of a whole batch at once, on its device; each image has its own random numbers.

    canvas           scale 0.5            scale 1.5, cropped     flipped
    +--------+       +--------+           +--------+             +--------+
    |image   |       |im|     |           |mage mag|             |gam egam|
    |image   |  -->  |--+     |     or    |mage mag|      and    |gam egam|     colours changed by one 3x4 matrix
    |--------|       |        |           |--------|             |--------|
    +--------+       +--------+           +--------+             +--------+

Scale, crop and flip are one affine map per image, applied to the pixels by one resampling and to the boxes exactly. The
map is y' = scale * y + shift on each axis, in canvas pixels: nothing rotates, so its matrix is diagonal. The valid area
stays at the top left of the canvas, with its size in `Batch.sizes_B2`.

Large-scale jitter after Ghiasi et al. 2021 and the official Pix2Seq (`scale_jitter`, `fixed_size_crop`, `random flip`);
unlike there, the two crop offsets are independent (the official code draws one for both, so crops lie on the diagonal),
unless the settings ask for that code's `pix2seq` geometry, which is equal to it to the pixel.

A mosaic is four such maps, one for each of its images, whose results lie beside each other on the canvas. Together they
are the map of a 2 x 2 grid of the images that is fitted into the canvas and scaled and cropped as one image.
Copy-blend and mixup follow (`boxwright.data.mixing`).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from boxwright import boxes
from boxwright.config import Augment
from boxwright.data.augment_plan import Plan, make_mosaic_plan, make_official_plan, make_plan
from boxwright.data.mixing import Mixing, is_mixing, join, valid_first
from boxwright.types import Batch

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as Pillow and torchvision use it
CPU_CHUNK = 4  # images processed together on a CPU: temporaries stay in its cache and off the page tables


def augment(batch: Batch, settings: Augment, seed: int) -> Batch:
    """Scale, crop, flip, recolour and mix images; the new ones are float in [0, 1] on the batch's device.

    Args:
        batch: B images, uint8 or float, each at the top left of its canvas.
        settings: None in one of them leaves that step out. With `views` = k the result holds B * k images, the k views
            of an image next to each other, each with its own random numbers.
        seed: of all random numbers, which are the same on every device.

    Returns:
        Boxes are moved along, clipped to the image, and left out where less than `min_visible` of their area remains;
        valid rows come first. `sizes_B2` is the new valid area; `originals_B2` stays the size of the file, so
        detections on an augmented batch can't be mapped back. With mixing, images have more objects than before.
    """
    canvas = (batch.images_BCHW.shape[-2], batch.images_BCHW.shape[-1])
    plan = make_plan(batch, settings, seed)
    if not is_mixing(settings):
        return _apply(batch, plan, plan, settings, canvas)
    mixing, parts = Mixing.draw(len(batch), settings, seed), []
    if len(mixing.plain_R):
        plain = plan[mixing.plain_R]
        parts.append(_apply(batch, plain, plain, settings, canvas))
    if len(mixing.mosaic_M):
        parts.append(_apply(batch, *make_mosaic_plan(batch, mixing, settings, seed), settings, canvas))
    order_B = torch.cat([mixing.plain_R, mixing.mosaic_M]).argsort()
    return mixing.blend(join(parts, order_B), settings.min_visible or 0.0)


def official_view(batch: Batch, canvas: tuple[int, int], scale_B: Tensor, offset_B: Tensor, flip_B: Tensor) -> Batch:
    """The training images of google-research/pix2seq (its data/transforms.py), with given random numbers.

    Args:
        batch: images of any size, each at the top left of its canvas.
        canvas: height and width of the result.
        scale_B: relative to the image fitted into the canvas.
        offset_B: of the crop, in [0, 1), the same along both sides.
        flip_B: whether to flip, bool.
    """
    settings = Augment(geometry="pix2seq")
    rows_B, colour_B3 = torch.arange(len(batch)), torch.ones(len(batch), 3)
    plan = make_official_plan(batch, rows_B, canvas, scale_B, offset_B, flip_B, colour_B3)
    return _apply(batch, plan, plan, settings, canvas)


def _apply(batch: Batch, plan: Plan, tiles: Plan, settings: Augment, canvas: tuple[int, int]) -> Batch:
    """The new images and their objects.

    Args:
        batch: the images.
        plan: of each new image: its size and its colours.
        tiles: what it consists of, the same number for each, in consecutive rows; `plan` itself where it is one image.
        settings: of the augmentation.
        canvas: height and width of the new images.
    """
    moved = _move_boxes(batch, tiles, settings.min_visible or 0.0, canvas)
    if tiles is not plan:
        moved = valid_first(*(tensor.view(len(plan), -1, *tensor.shape[2:]) for tensor in moved))
    whole = settings.geometry == "pix2seq" and tiles is plan
    return Batch(
        images_BCHW=_resample(batch.images_BCHW, plan, tiles, canvas, whole),
        sizes_B2=plan.new_B2,
        originals_B2=batch.originals_B2[plan.source_B],
        boxes_BN4=moved[0],
        labels_BN=moved[1],
        valid_BN=moved[2],
        index_B=batch.index_B[plan.source_B],
    )


def _resample(images_BCHW: Tensor, plan: Plan, tiles: Plan, canvas: tuple[int, int], whole: bool) -> Tensor:
    """The new images, float in [0, 1]; on a CPU, `whole` images are resized before they are cropped."""
    count, unit = len(plan), 255.0 if images_BCHW.dtype == torch.uint8 else 1.0
    each = len(tiles) // count
    out_BCHW = torch.empty(count, images_BCHW.shape[1], *canvas, device=images_BCHW.device)
    on_cpu = images_BCHW.device.type == "cpu"
    chunk = max(1, (CPU_CHUNK if on_cpu else count) // each)
    for start in range(0, count, chunk):
        rows = slice(start, start + chunk)
        chosen, parts, out = plan[rows], tiles[start * each : (start + chunk) * each], out_BCHW[rows]
        if on_cpu:
            new_BCHW = (_resize_whole if whole else _resize_each)(images_BCHW, parts, canvas)
        else:
            new_BCHW = _sample_together(images_BCHW, parts, canvas)
        if each > 1:
            new_BCHW = new_BCHW.unflatten(0, (-1, each)).sum(1)  # each is zero where the others are
        _recolour(new_BCHW, _colours(new_BCHW, chosen, unit), chosen, out)
    return out_BCHW


def _resize_whole(images_BCHW: Tensor, plan: Plan, canvas: tuple[int, int]) -> Tensor:
    """The CPU's way in the `pix2seq` geometry: images are resized in floats, without antialiasing, then cropped."""
    new_BCHW = torch.zeros(len(plan.source_B), 3, *canvas)
    scale_B2 = plan.new_B2 / plan.window_B2
    resized_B2, offsets_B2 = (plan.old_B2 * scale_B2).round().long(), (plan.corner_B2 * scale_B2).round().long()
    geometry = torch.cat([plan.source_B[:, None], plan.old_B2, resized_B2, offsets_B2, plan.new_B2], -1).tolist()
    for out_CHW, flip, (source, *old, resized_y, resized_x, y, x, height, width) in zip(
        new_BCHW, plan.flip_B.tolist(), geometry, strict=True
    ):
        old_1CHW = images_BCHW[source : source + 1, :, : old[0], : old[1]].float()
        cut_CHW = F.interpolate(old_1CHW, (resized_y, resized_x), mode="bilinear")[0, :, y : y + height, x : x + width]
        out_CHW[:, :height, :width] = cut_CHW.flip(-1) if flip else cut_CHW
    return new_BCHW


def _resize_each(images_BCHW: Tensor, plan: Plan, canvas: tuple[int, int]) -> Tensor:
    """The CPU's way: antialiased resizing of bytes, three times as fast there as `grid_sample` of floats."""
    new_BCHW = torch.zeros(len(plan.source_B), 3, *canvas, dtype=images_BCHW.dtype)
    geometry = torch.cat([plan.source_B[:, None], plan.corner_B2, plan.window_B2, plan.new_B2, plan.place_B2], -1)
    for out_CHW, flip, (source, y, x, rows, columns, height, width, top, left) in zip(
        new_BCHW, plan.flip_B.tolist(), geometry.tolist(), strict=True
    ):
        if not height * width:
            continue  # outside the crop of its mosaic
        window_1CHW = images_BCHW[source : source + 1, :, y : y + rows, x : x + columns]
        new_1CHW = F.interpolate(window_1CHW, (height, width), mode="bilinear", antialias=True)
        out_CHW[:, top : top + height, left : left + width] = (new_1CHW.flip(-1) if flip else new_1CHW)[0]
    return new_BCHW.float()


def _sample_together(images_BCHW: Tensor, plan: Plan, canvas: tuple[int, int]) -> Tensor:
    """Other devices' way: bilinear sampling of all images, and for those that shrink much, of their half-size copy."""
    images_BCHW = images_BCHW.index_select(0, plan.source_B).float()
    scale_B2, shift_B2 = plan.affine()
    new_BCHW = _sample(images_BCHW, plan.old_B2, scale_B2, shift_B2, canvas)
    rows = plan.halve_B.nonzero()[:, 0].to(images_BCHW.device)
    if len(rows):
        half_BCHW = F.avg_pool2d(images_BCHW.index_select(0, rows), 2, ceil_mode=True)
        half = _sample(half_BCHW, plan.old_B2[rows] // 2, scale_B2[rows] * 2, shift_B2[rows], canvas)
        new_BCHW.index_copy_(0, rows, half)
    return new_BCHW.mul_(_mask(new_BCHW, plan))


def _sample(
    images_BCHW: Tensor, sizes_B2: Tensor, scale_B2: Tensor, shift_B2: Tensor, canvas: tuple[int, int]
) -> Tensor:
    """Sample at the inverse map of each pixel centre of the new canvas; samples stay off the padding."""
    grid_BHW2 = torch.empty(len(images_BCHW), *canvas, 2, device=images_BCHW.device)
    for axis, (new, old) in enumerate(zip(canvas, images_BCHW.shape[-2:], strict=True)):
        centres_S = torch.arange(0.5, new, device=images_BCHW.device)
        old_BS = (centres_S - shift_B2[:, axis, None]) / scale_B2[:, axis, None]
        last_B1 = (sizes_B2[:, axis, None] - 0.5).clamp(min=0.5)
        old_BS = torch.minimum(old_BS.clamp(min=0.5), last_B1) * (2 / old) - 1
        grid_BHW2[..., 1 - axis] = old_BS[:, None, :] if axis else old_BS[:, :, None]
    return F.grid_sample(images_BCHW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)


def _colours(images_BCHW: Tensor, plan: Plan, unit: float) -> Tensor:
    """(B, 3, 4): saturation around the pixel's grey, contrast around the image's mean grey, brightness, in this order.

    As in torchvision's ColorJitter, but clamped once, at the end. Maps values up to `unit` to [0, 1].
    """
    grey_3 = torch.tensor(GREY, device=images_BCHW.device)
    mean_B = images_BCHW.sum((2, 3)) @ grey_3 / plan.new_B2.prod(-1)
    brightness_B, contrast_B, saturation_B = plan.colour_B3.unbind(-1)
    matrix_B33 = saturation_B[:, None, None] * torch.eye(3, device=grey_3.device)
    matrix_B33 = matrix_B33 + (1 - saturation_B)[:, None, None] * grey_3.expand(3, 3)
    matrix_B33 = matrix_B33 * contrast_B[:, None, None]
    bias_B31 = ((1 - contrast_B) * mean_B)[:, None, None].expand(-1, 3, 1)
    return torch.cat([matrix_B33, bias_B31], -1) * (brightness_B / unit)[:, None, None]


def _recolour(images_BCHW: Tensor, colours_B34: Tensor, plan: Plan, out_BCHW: Tensor) -> None:
    """Apply the colour matrix; the padding, which its fourth column would tint, becomes zero again."""
    out_B3P = out_BCHW.flatten(2)
    torch.bmm(colours_B34[:, :, :3], images_BCHW.flatten(2), out=out_B3P)
    out_B3P.add_(colours_B34[:, :, 3:]).clamp_(0, 1)
    out_BCHW.mul_(_mask(images_BCHW, plan))


def _mask(images_BCHW: Tensor, plan: Plan) -> Tensor:
    """(B, 1, H, W) float, 1 on the new image; cheaper than bool, which each multiplication would convert again."""
    masks = []
    for axis, length in enumerate(images_BCHW.shape[-2:]):
        pixel_S, first_B1 = torch.arange(length, device=plan.new_B2.device), plan.place_B2[:, axis, None]
        masks.append(((pixel_S >= first_B1) & (pixel_S < first_B1 + plan.new_B2[:, axis, None])).float())
    rows_BS, columns_BS = masks
    return (rows_BS[:, :, None] * columns_BS[:, None])[:, None]


def _move_boxes(batch: Batch, plan: Plan, min_visible: float, canvas: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, labels and valid mask after the map, valid rows first and the others zero."""
    old_2, new_2 = (
        torch.tensor(size[::-1], device=plan.new_B2.device) for size in (batch.images_BCHW.shape[2:], canvas)
    )
    old_BN22 = batch.boxes_BN4[plan.source_B].unflatten(-1, (2, 2))
    scale_B112, shift_B112 = (each_B2.flip(-1)[:, None, None] for each_B2 in plan.affine())
    new_BN22 = old_BN22 * (scale_B112 * (old_2 / new_2)) + shift_B112 / new_2
    whole_BN4 = torch.cat([new_BN22.amin(-2), new_BN22.amax(-2)], -1)
    low_B14 = (plan.place_B2.flip(-1) / new_2).repeat(1, 2)[:, None]
    high_B14 = ((plan.place_B2 + plan.new_B2).flip(-1) / new_2).repeat(1, 2)[:, None]
    clipped_BN4 = torch.minimum(torch.maximum(whole_BN4, low_B14), high_B14)
    visible_BN = boxes.area(clipped_BN4)
    enough_BN = visible_BN >= min_visible * (1 - 1e-5) * boxes.area(whole_BN4)  # rounding drops no fully visible box
    keep_BN = batch.valid_BN[plan.source_B] & (visible_BN > 0) & enough_BN
    return valid_first(clipped_BN4, batch.labels_BN[plan.source_B], keep_BN)
