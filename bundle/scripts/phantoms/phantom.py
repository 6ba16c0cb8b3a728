"""Phantoms: synthetic abdominal CTs with labels, for where no real ones may be had.

The table is a standard trunk in mm: x to the patient's right, y to the front, z to the head, 0 in the middle. Each
case draws its own pose, sizes, warp, contrast phase and noise. Depths are mm outside a surface, below 0 inside it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Field = npt.NDArray[np.float32]
Box = tuple[Any, ...]
Point = tuple[float, float, float]
Knot = tuple[float, float, float, float]  # x, y, z and radius

LABELS = {1: "liver", 2: "kidney", 3: "spleen", 4: "pancreas"}


@dataclass(frozen=True)
class Phantom:
    """One case: the CT and its truth over (x, y, z), and where the voxels are (RAS, mm)."""

    image_hu: npt.NDArray[np.int16]
    label: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tissue:
    """Brightness: `plain_hu` + contrast phase * `uptake_hu`, of sd `spread_hu` between and `grain_hu` within cases."""

    plain_hu: float
    uptake_hu: float = 0
    spread_hu: float = 0
    grain_hu: float = 0


@dataclass(frozen=True)
class Ellipsoid:
    """A ball stretched along the axes, then turned in the axial plane."""

    centre_mm: Point
    radii_mm: Point
    turn_deg: float = 0


@dataclass(frozen=True)
class Organ:
    """Ellipsoids and a tube melted into one body, less its notches; inside the wall it may have other content."""

    tissue: str
    ellipsoids: tuple[Ellipsoid, ...] = ()
    tube_mm: tuple[Knot, ...] = ()
    notches: tuple[Ellipsoid, ...] = ()
    label: int = 0
    lumps_mm: float = 1.0
    content: str = ""
    wall_mm: float = 3.5
    gas: bool = False


# fmt: off
TISSUES = {
    "air": Tissue(-1000), "gas": Tissue(-850, 0, 40, 20), "lung": Tissue(-840, 20, 30, 25),
    "fat": Tissue(-105, 0, 7, 8), "muscle": Tissue(48, 14, 6, 9), "wall": Tissue(42, 36, 8, 10),
    "liver": Tissue(58, 58, 12, 5), "spleen": Tissue(50, 80, 12, 5), "pancreas": Tissue(44, 54, 12, 8),
    "kidney": Tissue(42, 150, 16, 6), "medulla": Tissue(36, 100, 22, 8), "bile": Tissue(12, 0, 6, 3),
    "vein": Tissue(45, 95, 14, 4), "artery": Tissue(45, 130, 25, 4), "heart": Tissue(45, 90, 15, 12),
    "fluid": Tissue(32, 0, 12, 12), "meal": Tissue(70, 0, 22, 28), "oral contrast": Tissue(220, 0, 50, 40),
    "stool": Tissue(0, 0, 20, 150), "disc": Tissue(85, 5, 8, 6),
    "marrow": Tissue(190, 10, 35, 35), "bone": Tissue(520, 0, 60, 60),
}
HEIGHT_MM = 160.0
TALL_MM = 1e4  # an ellipsoid as tall as this is a column
TRUNK = Ellipsoid((0, 0, 0), (129, 94, TALL_MM))
CAVITY = Ellipsoid((0, 8, 0), (118, 76, TALL_MM))
CANAL = Ellipsoid((0, -72, 0), (9, 8, TALL_MM))
SPINE = (Ellipsoid((0, -48, 0), (22, 17, TALL_MM)), Ellipsoid((0, -84, 0), (4, 14, TALL_MM)),
         Ellipsoid((0, -72, 0), (30, 5, TALL_MM)))
MUSCLES = (Ellipsoid((34, -46, -70), (15, 16, 75)), Ellipsoid((33, -80, 0), (30, 17, TALL_MM)),
           Ellipsoid((-34, -46, -70), (15, 16, 75)), Ellipsoid((-33, -80, 0), (30, 17, TALL_MM)))
DOMES = (Ellipsoid((54, 10, -14), (70, 82, 78)), Ellipsoid((-54, 8, -16), (70, 82, 72)),
         Ellipsoid((0, 26, -20), (84, 62, 62)))
HEART = Ellipsoid((-14, 32, 86), (52, 40, 26), 20)
MEDIASTINUM = Ellipsoid((-2, -14, 0), (24, 34, TALL_MM))
CHEST = (
    Organ("artery", tube_mm=((-9, -24, 90, 10), (-9, -22, 0, 10), (-4, -24, -90, 8))),
    Organ("vein", tube_mm=((20, -12, 60, 12), (18, -20, 10, 11), (14, -22, -90, 11))),
    Organ("heart", (HEART,)),
)
# The order is the right of way: an organ keeps clear of all above it. The small come first, or the large drown them.
ABDOMEN = (
    Organ("pancreas", label=4, lumps_mm=1.8, tube_mm=(
        (27, 0, -30, 12), (26, 6, -16, 14), (8, 16, -6, 11), (-18, 13, 3, 11), (-44, 0, 10, 11), (-66, -10, 17, 9))),
    Organ("vein", tube_mm=((-64, -20, 16, 3), (-20, 1, 2, 4), (10, 2, -4, 6), (34, 14, 12, 6))),
    Organ("kidney", (Ellipsoid((55, -27, -6), (23, 25, 29), -20), Ellipsoid((62, -24, -30), (23, 25, 27), -20)),
          notches=(Ellipsoid((38, -14, -20), (17, 11, 18), 30),), label=2, content="medulla", wall_mm=6),
    Organ("kidney", (Ellipsoid((-55, -28, 4), (23, 25, 29), 20), Ellipsoid((-61, -25, -24), (23, 25, 28), 20)),
          notches=(Ellipsoid((-38, -15, -10), (17, 11, 18), -30),), label=2, content="medulla", wall_mm=6),
    Organ("spleen", (Ellipsoid((-86, -16, 28), (26, 44, 30), -12), Ellipsoid((-92, -8, 6), (19, 30, 24), -12)),
          notches=(Ellipsoid((-58, 0, 18), (17, 24, 22)),), label=3),
    Organ("bile", (Ellipsoid((50, 42, -22), (13, 20, 20), 25),)),
    Organ("liver", (Ellipsoid((63, 10, 22), (61, 72, 50)), Ellipsoid((84, 6, -16), (30, 48, 36)),
                    Ellipsoid((16, 50, 24), (44, 27, 28), 10), Ellipsoid((-18, 56, 30), (30, 17, 18))),
          notches=(Ellipsoid((26, 18, -4), (24, 14, 22), -20), Ellipsoid((54, -48, -26), (40, 34, 44))), label=1),
    Organ("wall", tube_mm=((-46, 6, 46, 28), (-52, 24, 26, 27), (-40, 40, 4, 22), (0, 48, -14, 16)),
          content="meal", gas=True),
    Organ("wall", tube_mm=((24, 26, -12, 12), (46, 12, -22, 12), (40, -2, -50, 12), (0, 2, -56, 11)), content="fluid"),
    Organ("wall", tube_mm=((90, 4, -90, 20), (92, 10, -46, 19), (50, 58, -48, 17)), content="stool", gas=True),
    Organ("wall", tube_mm=((50, 60, -48, 16), (-30, 64, -44, 16), (-88, 26, -6, 15)), content="stool", gas=True),
    Organ("wall", tube_mm=((-94, 16, -8, 14), (-96, -6, -50, 13), (-92, -8, -90, 13)), content="stool", gas=True),
)
# fmt: on


def make_phantom(seed: int) -> Phantom:
    """Return the case of this seed: the same voxels every time."""
    canvas = _Canvas(np.random.default_rng(seed))
    canvas.paint_body()
    below_diaphragm = canvas.paint_chest()
    for organ in CHEST:
        canvas.paint_organ(organ)
    canvas.taken_mm = np.minimum(canvas.taken_mm, -below_diaphragm - 1)
    for organ in (*ABDOMEN, *_bowel_loops(canvas.rng)):
        canvas.paint_organ(organ)
    return canvas.scan()


class _Canvas:
    """A scan in the making: where its voxels lie in the table, what they hold, how near they are to what is there."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.fat_mm = rng.uniform(7, 22)
        scale = rng.uniform((1, 1, 0.94), (1.14, 1.14, 1.08))
        width_mm = 2 * (np.array(TRUNK.radii_mm[:2]) + self.fat_mm + 8) * scale[:2]
        # A large patient has large pixels, as at the scanner: the matrix is what is limited.
        pixel_mm = max(rng.uniform(2.7, 3.3), *width_mm / (124, 100))
        slices = int(np.clip(round(HEIGHT_MM * scale[2] / rng.uniform(4.2, 5.8)), 26, 36))
        self.spacing_mm = np.round((pixel_mm, pixel_mm, HEIGHT_MM * scale[2] / slices), 2)
        self.edge_mm = float(self.spacing_mm[0])
        self.shape = (*np.clip(np.ceil(width_mm / pixel_mm).astype(int), (104, 84), (124, 100)).tolist(), slices)
        self.origin_mm = -(np.array(self.shape) - 1) / 2 * self.spacing_mm + rng.uniform(-3, 3, 3)
        voxels = [np.arange(n, dtype=np.float32) for n in self.shape]
        self.axes_mm: list[Field] = [
            ((voxels[axis] * self.spacing_mm[axis] + self.origin_mm[axis]) / scale[axis]).astype(np.float32)
            for axis in range(3)
        ]
        cos, sin = _cos_sin(rng.uniform(-7, 7))
        x, y, z = np.meshgrid(*self.axes_mm, indexing="ij")
        self.frame: Field = np.stack([x * cos - y * sin, x * sin + y * cos, z])
        self.warped: Field = self.frame + np.stack([4.5 * self.noise(30) for _ in range(3)])
        self.grain, self.lumps = self.noise(5), self.noise(7)
        # Two surfaces meet in curves: where both noises are near 0 there is a branching line, like a vessel.
        self.vessel: Field = 14 * np.hypot(self.noise(11), self.noise(11)) - 3
        phase = rng.uniform(0.6, 1.25)
        self.mean_hu = {k: t.plain_hu + phase * t.uptake_hu + rng.normal(0, t.spread_hu) for k, t in TISSUES.items()}
        self.hu: Field = np.full(self.shape, TISSUES["air"].plain_hu, np.float32)
        self.label = np.zeros(self.shape, np.uint8)
        self.room: Field = np.ones(self.shape, np.float32)

    def noise(self, length_mm: float) -> Field:
        """Return noise of mean 0 and sd 1 with no detail finer than `length_mm`."""
        waves = fft.rfftn(self.rng.standard_normal(self.shape, dtype=np.float32))
        for axis, frequencies in enumerate((fft.fftfreq, fft.fftfreq, fft.rfftfreq)):
            damped = np.exp(-2 * (np.pi * length_mm * frequencies(self.shape[axis], self.spacing_mm[axis])) ** 2)
            waves *= damped.astype(np.float32).reshape([-1 if other == axis else 1 for other in range(3)])
        field: Field = fft.irfftn(waves, s=self.shape)
        normalised: Field = (field - field.mean()) / field.std()
        return normalised

    def texture(self, tissue: str, box: Box) -> Field:
        """Return how a tissue looks in this case."""
        return self.mean_hu[tissue] + TISSUES[tissue].grain_hu * self.grain[box]

    def share(self, depth: Field) -> Field:
        """Return how much of each voxel lies inside: partial volume makes an edge as soft as a voxel is wide."""
        covered: Field = np.clip(0.5 - depth / self.edge_mm, 0, 1)
        return covered

    def fill(self, depth: Field, tissue: str, box: Box = (...,)) -> None:
        """Lay a tissue over all that was there."""
        self.hu[box] += self.share(depth) * (self.texture(tissue, box) - self.hu[box])

    def paint_body(self) -> None:
        """Paint skin, fat, muscle and bone, and leave the cavity to the organs."""
        _, y, z = self.frame
        bulge = 2 * self.noise(40)
        trunk, self.cavity = _ellipsoid(self.frame, TRUNK) + bulge, _ellipsoid(self.frame, CAVITY) + bulge
        # The back lies flat on the table, and fat is thicker there than at the front.
        skin = np.maximum(trunk - self.fat_mm * (1 - y / 250) + 3 * self.noise(40), -94 - 0.9 * self.fat_mm - y)
        self.fill(skin, "wall")
        self.fill(skin + 3, "fat")
        self.fill(trunk, "muscle")
        # Ribs run down to the front; they end before the midline and above the flank.
        rib = np.hypot(self.cavity - 5, (z + 0.45 * y + self.rng.uniform(0, 30)) % 30 - 15) - 4.5
        self.fill(np.maximum.reduce([rib, y - 60, -z - 20 - 0.3 * y]), "bone")
        self.fill(self.cavity, "fat")
        self.fill(np.maximum(self.vessel + 1, self.cavity), "vein")
        muscle = np.minimum.reduce([_ellipsoid(self.frame, part) for part in MUSCLES])
        self.fill(np.maximum(muscle, trunk), "muscle")
        bone = np.minimum.reduce([_ellipsoid(self.frame, part) for part in SPINE]) + self.lumps
        self.fill(bone, "bone")
        self.fill(bone + 3, "marrow")
        self.fill(np.maximum(bone, 11 - np.abs((z + self.rng.uniform(0, 32)) % 32 - 16)), "disc")
        self.fill(_ellipsoid(self.frame, CANAL), "fluid")
        self.taken_mm: Field = np.minimum.reduce([-self.cavity - 1, bone, muscle])

    def paint_chest(self) -> Field:
        """Paint the lungs and the diaphragm, and return the depth of the abdomen."""
        breath = np.array([0, 0, self.rng.uniform(-7, 5)], np.float32).reshape(3, 1, 1, 1)
        domes = [_ellipsoid(self.frame - breath, dome) for dome in DOMES]
        abdomen = _melt([*domes, self.frame[2] + 10], 16)
        heart, middle = (_ellipsoid(self.frame - breath, part) for part in (HEART, MEDIASTINUM))
        lung = np.maximum.reduce([self.cavity + 1, 3 - np.minimum.reduce([abdomen, heart, middle]), 1 - self.taken_mm])
        self.fill(np.maximum(lung - 4, self.cavity), "muscle")
        self.fill(lung, "lung")
        self.fill(np.maximum(self.vessel + 1, lung + 4), "vein")
        self.taken_mm = np.minimum(self.taken_mm, lung)
        self.base = self.hu.copy()
        return abdomen

    def paint_organ(self, organ: Organ) -> None:
        """Paint an organ, shifted and sized for this case, as far as there is room."""
        low, high = _bounds(organ)
        limits = zip(self.axes_mm, low - 30, high + 30, strict=True)
        box: Box = tuple(slice(*np.searchsorted(axis, (start, end)).tolist()) for axis, start, end in limits)
        centre = ((low + high) / 2).astype(np.float32).reshape(3, 1, 1, 1)
        shift = self.rng.uniform(-6, 6, (3, 1, 1, 1)).astype(np.float32)
        size = self.rng.uniform(0.9, 1.1)
        depth = size * _depth((self.warped[(slice(None), *box)] - centre - shift) / size + centre, organ)
        depth += organ.lumps_mm * self.lumps[box]
        near = max(0, self.rng.uniform(-2, 2)) - self.taken_mm[box]
        pieces, count = ndimage.label(np.maximum(depth, near) < -1.5)
        if count == 0:
            return
        # What a neighbour cuts off would be debris: only the largest piece stays.
        largest = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
        depth[~ndimage.binary_dilation(largest)] = 99
        # Neighbours that touch share the voxels between them and leave none to the fat behind.
        share = np.minimum(self.share(np.maximum(depth, near - self.edge_mm / 2)), self.room[box])
        self.hu[box] += share * (self.texture(organ.tissue, box) - self.base[box])
        self.room[box] -= share
        depth = np.maximum(depth, near)
        self.taken_mm[box] = np.minimum(self.taken_mm[box], depth)
        self.label[box][depth < 0] = organ.label
        self.paint_inside(organ, depth, box)

    def paint_inside(self, organ: Organ, depth: Field, box: Box) -> None:
        """Paint what an organ holds: vessels in the liver, content within the wall, gas over the content."""
        if organ.label == 1:
            self.fill(np.maximum(self.vessel[box], depth + 4), "vein", box)
        if organ.content:
            self.fill(depth + organ.wall_mm, organ.content, box)
        if organ.gas:
            # Gas rises to the front of a patient who lies on the back; the body's turn can't tilt the level.
            low, high = _bounds(organ)
            level_mm = self.rng.uniform(*np.quantile((low[1], high[1]), (0.35, 0.8)))
            gas = np.maximum(depth + organ.wall_mm, level_mm - self.axes_mm[1][box[1]][:, None])
            self.fill(gas, "gas", box)

    def scan(self) -> Phantom:
        """Return what the scanner sees: a slight blur, and noise with a short grain."""
        hu = ndimage.gaussian_filter(self.hu, (0.5, 0.5, 0.3))
        noise = ndimage.gaussian_filter(self.rng.standard_normal(self.shape, dtype=np.float32), (0.5, 0.5, 0))
        hu += self.rng.uniform(10, 20) * noise / noise.std()
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = self.origin_mm
        return Phantom(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), self.label, affine)


def _bowel_loops(rng: np.random.Generator) -> Iterator[Organ]:
    """Yield small bowel: short tubes in front of and below the organs; each fits in where it can."""
    for _ in range(26):
        start = rng.uniform((-72, 0, -88), (66, 62, -4))
        bend, end = start + rng.normal(0, 16, (2, 3))
        radius = rng.uniform(9, 14)
        knots = tuple((float(x), float(y), float(z), radius) for x, y, z in (start, bend, end))
        content = str(rng.choice(["fluid", "meal", "oral contrast"], p=[0.55, 0.33, 0.12]))
        yield Organ("wall", tube_mm=knots, content=content, gas=rng.random() < 0.3)


def _bounds(organ: Organ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    balls = [(part.centre_mm, max(part.radii_mm)) for part in organ.ellipsoids]
    balls += [((x, y, z), radius) for x, y, z, radius in organ.tube_mm]
    centres, radii = np.array([centre for centre, _ in balls]), np.array([[radius] for _, radius in balls])
    return (centres - radii).min(0), (centres + radii).max(0)


def _depth(points: Field, organ: Organ) -> Field:
    parts = [_ellipsoid(points, part) for part in organ.ellipsoids]
    parts += [_segment(points, start, end) for start, end in itertools.pairwise(organ.tube_mm)]
    depth: Field = np.maximum.reduce([_melt(parts, 8), *(-_ellipsoid(points, notch) for notch in organ.notches)])
    return depth


def _melt(parts: Sequence[Field], width_mm: float) -> Field:
    """Return the union of the parts, its creases rounded over `width_mm`."""
    depth = parts[0]
    for part in parts[1:]:
        depth = np.minimum(depth, part) - np.maximum(width_mm - np.abs(depth - part), 0) ** 2 / (4 * width_mm)
    return depth


def _cos_sin(degrees: float) -> tuple[float, float]:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _ellipsoid(points: Field, part: Ellipsoid) -> Field:
    cos, sin = _cos_sin(part.turn_deg)
    x, y, z = (points[axis] - part.centre_mm[axis] for axis in range(3))
    scaled = [o / r for o, r in zip((x * cos + y * sin, y * cos - x * sin, z), part.radii_mm, strict=True)]
    ratio = np.sqrt(sum(s**2 for s in scaled))
    slope = np.sqrt(sum((s / r) ** 2 for s, r in zip(scaled, part.radii_mm, strict=True)))
    depth: Field = ratio * (ratio - 1) / (slope + 1e-6)
    return depth


def _segment(points: Field, start: Knot, end: Knot) -> Field:
    along = [end[axis] - start[axis] for axis in range(3)]
    offsets = [points[axis] - start[axis] for axis in range(3)]
    share = np.clip(sum(o * a for o, a in zip(offsets, along, strict=True)) / sum(a * a for a in along), 0, 1)
    distance = np.sqrt(sum((o - share * a) ** 2 for o, a in zip(offsets, along, strict=True)))
    depth: Field = distance - (start[3] + share * (end[3] - start[3]))
    return depth
